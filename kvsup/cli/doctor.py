"""``kvsup doctor``: what is there, what is missing, and what to do about it."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import typer

from kvsup import __version__, slowpaths
from kvsup.cli.client import base_url
from kvsup.environment import ignored_variables
from kvsup.errors import ConfigError
from kvsup.hostconfig import HostConfig
from kvsup.kvtypes import parse_kv_pair
from kvsup.llama.binary import Binary
from kvsup.runtime import paths
from kvsup.runtime.binaries import default_binary, probe
from kvsup.runtime.configdir import read_configuration, read_host
from kvsup.runtime.learning import fa_quants
from kvsup.runtime.remembered import Remembered
from kvsup.units import format_bytes

_USUAL = ("q8_0:q8_0", "q8_0:q5_1", "q8_0:q4_0", "q4_0:q4_0", "f16:q8_0", "iq4_nl:iq4_nl")
_WORDS = {
    "fast": "fast",
    "converted": "slower, converted to f16 on each step",
    "cpu": "slow, on the CPU",
    "aborts": "may abort",
    "unknown": "not known",
}

NO_MODEL = "no model yet; kvsup pull NAME, or write a TOML file that names a GGUF"

Finding = tuple[str, bool, str]
"""What was looked at, whether it is well, and what was found."""


def examine(config_dir: Path | None, *, as_json: bool) -> bool:
    """Print every finding; return whether all is well."""
    folder = paths.config_dir(str(config_dir) if config_dir else None)
    host, _ = read_host(folder, os.environ)
    findings = [
        ("kvsup", True, __version__),
        *_binary(host),
        *_configuration(folder),
        *_host(),
    ]
    if as_json:
        rows = [{"what": what, "well": well, "found": found} for what, well, found in findings]
        typer.echo(json.dumps(rows))
    else:
        for what, well, found in findings:
            typer.echo(f"{'ok ' if well else 'BAD'} {what}: {found}")
    return all(well for _, well, _ in findings)


def _binary(host: HostConfig) -> Iterator[Finding]:
    path = host.llama_server or default_binary(paths.cache_dir())
    state = paths.state_dir(host.state_dir)
    if path is None:
        yield "llama-server", False, "none found; run kvsup setup"
        return
    try:
        binary = probe(path, state=state, inherited=os.environ)
    except ValueError as error:
        yield "llama-server", False, str(error)
        return
    yield "llama-server", True, f"{binary.path} ({binary.version}, {binary.label})"
    yield "KV cache types", True, ", ".join(binary.kv_types)
    devices = [
        f"{d.name} {d.description}, {format_bytes(d.free_bytes)} free" for d in binary.devices
    ]
    yield "devices", True, "; ".join(devices) or "CPU only"
    yield from _kv_paths(binary, fa_quants(Remembered(state), binary))


def _kv_paths(binary: Binary, compiled: tuple[str, ...] | None) -> Iterator[Finding]:
    """Yield how fast the usual KV pairs are on each kind of device, and how to build what is not.

    Heads of 128 are taken, as most models have them; ``kvsup check`` says it of each model.
    """
    backends: list[slowpaths.Backend] = [
        slowpaths.backend_of([device.name], None) for device in binary.devices
    ]
    if not backends:
        backends = ["cpu"]
    for backend in dict.fromkeys(backends):
        path_by_pair = {
            pair: slowpaths.path_of(
                parse_kv_pair(pair),
                backend,
                build=None if binary.kv_layer_flags else binary.build,
                head_k=128,
                head_v=128,
                fa_quants=compiled,
                flash_attention="on",
            )
            for pair in _USUAL
        }
        yield f"KV pairs on {backend}", True, _summary(path_by_pair)
        if backend == "cpu":
            word = "f16:f16 reads prompts fastest, others may write faster; kvsup probe measures"
            yield f"KV pairs on {backend}", True, word


def _summary(path_by_pair: Mapping[str, slowpaths.Path]) -> str:
    pairs: dict[str, list[str]] = {}
    for pair, path in path_by_pair.items():
        pairs.setdefault(_WORDS[path.verdict], []).append(pair)
    texts = [f"{word}: {', '.join(names)}" for word, names in pairs.items()]
    mends = (f"for {pair}, {path.mend}" for pair, path in path_by_pair.items() if path.mend)
    return "; ".join([*texts, *islice(mends, 1)])


def _configuration(folder: Path) -> Iterator[Finding]:
    try:
        configuration = read_configuration(folder, os.environ)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield "configuration", False, line
        return
    names = ", ".join(plan.name for plan in configuration.plans)
    yield "configuration", True, f"{folder}: {names or NO_MODEL}"
    yield from (("sources", True, f"left out: {line}") for line in configuration.left_out)
    yield "state folder", True, str(configuration.state_dir)
    host = configuration.host
    yield "models folder", True, str(paths.models_dir(host.models_dir))
    yield "registries", True, ", ".join(host.registries) or "none: nothing can be pulled"


def _host() -> Iterator[Finding]:
    url = base_url()
    address, _, port = url.removeprefix("http://").rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe_socket:
        answers = probe_socket.connect_ex((address.strip("[]"), int(port))) == 0
    yield "address", True, f"{url}, {'something listens there' if answers else 'free'}"
    if paths.LLAMA_CONFIG.exists():
        word = "is read by every llama-server; remove from it what kvsup's files do not want"
        yield "llama.cpp's own file", False, f"{paths.LLAMA_CONFIG} {word}"
    for name, word in ignored_variables(os.environ).items():
        yield "ignored variable", True, f"{name}: {word}"
    for name in sorted(os.environ):
        if name.startswith(("LLAMA_ARG_", "AIP_")):
            yield "ignored variable", True, f"{name}: kvsup's children do not inherit it"
