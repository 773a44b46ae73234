"""Ollama's answers about models (server/routes.go, api/types.go, 2026-08), as plain objects.

Pure rendering of what the caller found out. Fields stand in Ollama's order; those that Ollama
leaves out when empty are left out.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from kvsup.ollama.names import DEFAULT_NAMESPACE
from kvsup.ollama.ndjson import rfc3339

FOREVER_NS = 2**63 - 1
"""``expires_at`` of a model that stays: the last instant of Go's clock, in the year 2262."""

_NS_PER_S = 1_000_000_000
_CUTS_THINKING = re.compile(r"""split\(\s*['"]</think>""")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model that can be asked for."""

    name: str
    """As ``names.display_name`` writes it, with the tag."""
    modified_at_ns: int
    size_bytes: int
    digest: str
    """64 hex digits; different for every name that clients shall tell apart."""
    families: tuple[str, ...]
    """Architectures: the GGUF's, then the projector's."""
    parameter_size: str
    quantization_level: str
    kv_cache_type: str
    """``type_k:type_v``."""
    num_ctx: int
    """Tokens that a request may use."""
    context_length: int = 0
    """Tokens that the model was trained on."""
    embedding_length: int = 0
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEntry:
    """One model that is loaded."""

    name: str
    digest: str
    families: tuple[str, ...]
    parameter_size: str
    quantization_level: str
    size_bytes: int
    """Weights, KV cache and compute buffers, wherever they lie."""
    size_vram_bytes: int
    expires_at_ns: int | None
    """None for a model that stays."""
    context_length: int
    """Tokens of one slot."""
    kv_cache_type: str
    kv_bytes: Mapping[Literal["k", "v"], int]
    kv_warnings: tuple[str, ...] = ()
    """What its owner should know of its KV cache."""
    given_up: tuple[str, ...] = ()
    """What it has not, since its memory was short."""
    kept: Mapping[str, int] | None = None
    """Its ``conversations`` in files, their ``bytes``, ``restored_tokens``; None: none are."""
    cache_hit_rate: float | None = None
    """Share of the tokens of its prompts that were not read again; None before there are any."""


def version(text: str) -> dict[str, object]:
    """Return the answer of ``/api/version``; clients compare ``text``, so it is ``x.y.z``."""
    return {"version": text}


def tags(entries: Iterable[CatalogEntry]) -> dict[str, object]:
    """Return the answer of ``/api/tags``, newest model first."""
    newest_first = sorted(entries, key=lambda entry: entry.modified_at_ns, reverse=True)
    return {"models": [_tag(entry) for entry in newest_first]}


def ps(entries: Iterable[RunningEntry]) -> dict[str, object]:
    """Return the answer of ``/api/ps``, longest-lived first.

    Beyond Ollama's fields each model has ``kv_cache_type`` and ``kv_bytes`` (``k`` and ``v``), and
    one with something to tell of its KV cache ``kv_warnings``, a list of sentences; one that
    stepped down its fallback has ``given_up``, a list of what it has not. One whose conversations
    are kept has ``kept``, and one that has answered ``cache_hit_rate``, from 0 to 1.
    """
    longest_first = sorted(entries, key=_expires_at_ns, reverse=True)
    return {"models": [_running(entry) for entry in longest_first]}


def openai_models(entries: Iterable[CatalogEntry]) -> dict[str, object]:
    """Return the answer of ``/v1/models``; an empty list where Ollama says null."""
    return {"object": "list", "data": [openai_model(entry) for entry in entries]}


def openai_model(entry: CatalogEntry) -> dict[str, object]:
    """Return the answer of ``/v1/models/NAME``."""
    *namespaces, _ = entry.name.split("/")
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.modified_at_ns // _NS_PER_S,
        "owned_by": namespaces[-1] if namespaces else DEFAULT_NAMESPACE,
    }


def capabilities(
    architecture: str,
    *,
    pooling: bool,
    embeds: bool,
    chat_template: str | None,
    sees: bool,
    hears: bool,
    fills_in: bool,
) -> tuple[str, ...]:
    """Return what a model can do, by Ollama's rules for GGUF files (server/images.go).

    A template that asks for ``enable_thinking`` counts as thinking, too.

    Args:
        architecture: ``general.architecture``.
        pooling: whether the GGUF has ``<architecture>.pooling_type``.
        embeds: whether it is run so that it gives embeddings.
        chat_template: the Jinja text in force.
        sees: whether its projector takes images.
        hears: whether its projector takes sounds.
        fills_in: whether its vocabulary has tokens for a text with a gap.
    """
    template = chat_template or ""
    found = {
        "completion": not pooling,
        "embedding": pooling or embeds,
        "vision": sees,
        "audio": hears,
        "tools": "tools" in template or "tool_call" in template,
        "insert": fills_in and not pooling,
        "thinking": _thinks(template) or architecture in {"gpt-oss", "gptoss"},
    }
    return tuple(name for name, can in found.items() if can)


def local_time(time_ns: int) -> str:
    """Return a time since the epoch as Go writes a local one: RFC 3339 with the zone's offset."""
    there = datetime.fromtimestamp(time_ns // _NS_PER_S, timezone.utc).astimezone()
    *_, fraction = rfc3339(time_ns).removesuffix("Z").partition(".")
    offset = there.strftime("%z")
    zone = f"{offset[:3]}:{offset[3:5]}" if there.utcoffset() else "Z"
    return f"{there:%Y-%m-%dT%H:%M:%S}{'.' if fraction else ''}{fraction}{zone}"


def _thinks(template: str) -> bool:
    if "enable_thinking" in template or ("<think>" in template and "</think>" in template):
        return True
    return "reasoning_content" not in template and _CUTS_THINKING.search(template) is not None


def _tag(entry: CatalogEntry) -> dict[str, object]:
    lengths = {
        "context_length": entry.context_length,
        "embedding_length": entry.embedding_length,
    }
    tag: dict[str, object] = {
        "name": entry.name,
        "model": entry.name,
        "modified_at": local_time(entry.modified_at_ns),
        "size": entry.size_bytes,
        "digest": entry.digest,
        "details": {**details(entry), **{key: n for key, n in lengths.items() if n}},
    }
    return {**tag, "capabilities": list(entry.capabilities)} if entry.capabilities else tag


def _running(entry: RunningEntry) -> dict[str, object]:
    running: dict[str, object] = {
        "name": entry.name,
        "model": entry.name,
        "size": entry.size_bytes,
        "digest": entry.digest,
        "details": details(entry),
        "expires_at": local_time(_expires_at_ns(entry)),
        "size_vram": entry.size_vram_bytes,
        "context_length": entry.context_length,
        "kv_cache_type": entry.kv_cache_type,
        "kv_bytes": dict(entry.kv_bytes),
    }
    told = {"kv_warnings": list(entry.kv_warnings), "given_up": list(entry.given_up)}
    running |= {key: texts for key, texts in told.items() if texts}
    if entry.kept is not None:
        running["kept"] = dict(entry.kept)
    if entry.cache_hit_rate is not None:
        running["cache_hit_rate"] = entry.cache_hit_rate
    return running


def _expires_at_ns(entry: RunningEntry) -> int:
    return FOREVER_NS if entry.expires_at_ns is None else entry.expires_at_ns


def details(entry: CatalogEntry | RunningEntry) -> dict[str, object]:
    """Return the ``details`` of a model as ``/api/ps`` and ``/api/show`` have them."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": entry.families[0],
        "families": list(entry.families),
        "parameter_size": entry.parameter_size,
        "quantization_level": entry.quantization_level,
    }
