"""Ollama's environment variables, read as defaults under ``kvsup.toml`` (envconfig/config.go)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

DEFAULT_PORT = 11434

_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

IGNORED = {
    "OLLAMA_NOPRUNE": "kvsup never deletes a model file",
    "OLLAMA_SCHED_SPREAD": 'use extra_args = ["--split-mode", …]',
    "OLLAMA_GPU_OVERHEAD": "use memory or memory_headroom in kvsup.toml",
    "OLLAMA_LLM_LIBRARY": "use llama_server",
    "OLLAMA_DEBUG": "use log_level in kvsup.toml",
    "OLLAMA_NO_CLOUD": "kvsup has no cloud",
    "OLLAMA_REMOTES": "kvsup has no cloud",
    "OLLAMA_GO_TEMPLATE": "the GGUF's own template is used",
    "OLLAMA_MULTIUSER_CACHE": "llama-server's prompt cache is used",
}
"""Variables that mean nothing to kvsup, each with what to use instead; ``doctor`` lists them."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Host settings that the environment gives, as a TOML table, and how each key is spelled."""

    table: Mapping[str, object]
    spelling: Mapping[str, str]


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Return the settings that Ollama's variables ask for; empty and zero values ask for none."""
    table: dict[str, object] = {}
    spelling: dict[str, str] = {}
    for name, read in _VARIABLES.items():
        value = environ.get(name, "").strip().strip("\"'")
        if not value:
            continue
        for key, setting in read(value).items():
            table[key] = setting
            spelling[key] = name
    return Environment(table, spelling)


def ignored_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return those of ``environ`` that are Ollama's and mean nothing here, with a word on each."""
    return {
        name: IGNORED.get(name, "kvsup does not know it")
        for name in sorted(environ)
        if name.startswith("OLLAMA_") and name not in _VARIABLES
    }


def parse_host(text: str) -> tuple[str, int]:
    """Return address and port of an ``OLLAMA_HOST``: ``[scheme://]host[:port][/path]``.

    A missing or impossible port is 11434, or 80 and 443 with a scheme; an empty host before a port
    means every interface, as in Go.
    """
    scheme, separator, rest = text.rpartition("://")
    default = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT) if separator else DEFAULT_PORT
    rest = rest.split("/", 1)[0]
    match = re.fullmatch(
        r"\[(?P<v6>[^\]]*)\](?::(?P<p6>-?\d*))?|(?P<host>[^:]*)(?::(?P<port>-?\d*))?", rest
    )
    if match is None:  # a bare IPv6 address
        return rest, default
    host = match["v6"] if match["v6"] is not None else match["host"]
    digits = match["p6"] or match["port"] or ""
    port = int(digits) if re.fullmatch(r"[0-9]{1,5}", digits) else default
    port = port if port <= 65535 else default
    if not host:
        host = "0.0.0.0" if rest else "127.0.0.1"  # noqa: S104 - that is what the user wrote
    return host, port


def _host(value: str) -> dict[str, object]:
    host, port = parse_host(value)
    return {"host": host, "port": port}


def _text(key: str) -> Callable[[str], dict[str, object]]:
    return lambda value: {key: value}


def _count(key: str) -> Callable[[str], dict[str, object]]:
    """Read a number; what is none stays text, and is told as such."""
    return lambda value: {} if value == "0" else {key: _number(value)}


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else text


def _flash_attention(value: str) -> dict[str, object]:
    return {"flash_attention": "off" if value in _FALSE else "on"}


_VARIABLES: Mapping[str, Callable[[str], dict[str, object]]] = {
    "OLLAMA_HOST": _host,
    "OLLAMA_KV_CACHE_TYPE": _text("kv_cache_type"),
    "OLLAMA_KEEP_ALIVE": _text("keep_alive"),
    "OLLAMA_LOAD_TIMEOUT": _text("load_timeout"),
    "OLLAMA_MAX_LOADED_MODELS": _count("max_loaded_models"),
    "OLLAMA_NUM_PARALLEL": _count("num_parallel"),
    "OLLAMA_CONTEXT_LENGTH": _count("num_ctx"),
    "OLLAMA_MAX_QUEUE": _count("max_queue"),
    "OLLAMA_ORIGINS": lambda value: {"origins": [part.strip() for part in value.split(",")]},
    "OLLAMA_FLASH_ATTENTION": _flash_attention,
    "OLLAMA_MODELS": lambda _: {},  # where a store lies is no setting: runtime/stores.py
}
