"""Model names, ``[host/][namespace/]model[:tag]`` (Ollama's types/model/name.go, 2026-08)."""

import json
import re

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_NAME = re.compile(
    r"""(?:[a-z]+://)?
        (?:(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349})/(?=[^/]+/))?
        (?:(?P<namespace>[A-Za-z0-9_][A-Za-z0-9_-]{0,79})/)?
        (?P<model>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})
        (?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}))?""",
    re.VERBOSE | re.ASCII,
)


def valid_name(name: str) -> bool:
    """Say whether ``name`` follows the grammar; ``:local`` at its end is part of no name."""
    return _NAME.fullmatch(without_source(name)) is not None


def without_source(name: str) -> str:
    """Return ``name`` without edge blanks and without ``:local``, which asks for no cloud model."""
    return name.strip().removesuffix(":local")


def quoted(word: str) -> str:
    """Return ``word``, a name or what else a client sent, in quotes as Ollama's errors have it."""
    return json.dumps(word, ensure_ascii=False)


def display_name(name: str) -> str:
    """Return the shortest full form: always with the tag, without default host and namespace.

    Raises:
        ValueError: ``name`` does not follow the grammar.
    """
    match = _NAME.fullmatch(without_source(name))
    if match is None:
        raise ValueError(f"{name!r} is no model name")
    host = match["host"] or DEFAULT_HOST
    namespace = match["namespace"] or DEFAULT_NAMESPACE
    parts = [match["model"]]
    if namespace != DEFAULT_NAMESPACE or host != DEFAULT_HOST:
        parts.insert(0, namespace)
    if host != DEFAULT_HOST:
        parts.insert(0, host)
    return f"{'/'.join(parts)}:{match['tag'] or DEFAULT_TAG}"


def full_name(name: str) -> str:
    """Return the name with every part, ``registry.ollama.ai/library/qwen3:latest``."""
    shown = display_name(name)
    parts = shown.split("/")
    return "/".join([DEFAULT_HOST, DEFAULT_NAMESPACE][: 3 - len(parts)] + parts)


def lookup_keys(name: str) -> tuple[str, ...]:
    """Return the lower-case spellings under which ``name`` may be stored, the full one first.

    ``Qwen3`` gives ``("qwen3:latest", "qwen3")``, ``qwen3:8b`` only itself; an invalid name gives
    none.
    """
    if not valid_name(name):
        return ()
    full = display_name(name).lower()
    bare = full.removesuffix(f":{DEFAULT_TAG}")
    return (full,) if bare == full else (full, bare)


def is_same_name(name: str, other: str) -> bool:
    """Say whether two spellings name one model; any two that are no names are alike."""
    return lookup_keys(name)[:1] == lookup_keys(other)[:1]
