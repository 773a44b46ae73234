"""Ollama's answers about models (server/routes.go, api/types.go, 2026-08), as plain objects.

Pure rendering of what the caller found out. Fields stand in Ollama's order; those that Ollama
leaves out when empty are left out.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kvsup.ollama.names import DEFAULT_NAMESPACE
from kvsup.ollama.ndjson import rfc3339

FOREVER_NS = 2**63 - 1
"""``expires_at`` of a model that stays: the last instant of Go's clock, in the year 2262."""

_NS_PER_S = 1_000_000_000
_HIDDEN_KEYS = ("general.name", "tokenizer.chat_template")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model that can be asked for."""

    name: str
    """As ``names.display_name`` writes it, with the tag."""
    modified_at_ns: int
    size_bytes: int
    digest: str
    """64 hex digits; different for every name that clients shall tell apart."""
    family: str
    """The GGUF's architecture."""
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
    family: str
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


def version(text: str) -> dict[str, object]:
    """Return the answer of ``/api/version``; clients compare ``text``, so it is ``x.y.z``."""
    return {"version": text}


def tags(entries: Iterable[CatalogEntry]) -> dict[str, object]:
    """Return the answer of ``/api/tags``, newest model first."""
    newest_first = sorted(entries, key=lambda entry: entry.modified_at_ns, reverse=True)
    return {"models": [_tag(entry) for entry in newest_first]}


def ps(entries: Iterable[RunningEntry]) -> dict[str, object]:
    """Return the answer of ``/api/ps``, longest-lived first.

    Beyond Ollama's fields each model has ``kv_cache_type`` and ``kv_bytes`` (``k`` and ``v``).
    """
    longest_first = sorted(entries, key=_expires_at_ns, reverse=True)
    return {"models": [_running(entry) for entry in longest_first]}


def show(
    entry: CatalogEntry,
    *,
    path: str,
    metadata: Mapping[str, object],
    parameter_count: int,
    template: str | None = None,
    system: str | None = None,
    options: Mapping[str, object],
    license_text: str | None = None,
    verbose: bool = False,
) -> dict[str, object]:
    """Return the answer of ``/api/show``.

    ``metadata`` are the GGUF's keys, ``options`` the model's with the request's on top. Arrays of
    ``model_info`` are null unless ``verbose``, as in Ollama.
    """
    parameters = {**options, "num_ctx": entry.num_ctx}
    template = template or "{{ .Prompt }}"
    fields: dict[str, object] = {
        "license": license_text,
        "modelfile": _modelfile(entry, path, template, system, parameters),
        "parameters": "\n".join(f"{key:<30} {text}" for key, text in _values(parameters)),
        "template": template,
        "system": system,
    }
    return {
        **{key: value for key, value in fields.items() if value},
        "details": _details(entry),
        "model_info": _model_info(metadata, parameter_count, verbose=verbose),
        "capabilities": list(entry.capabilities),
        "modified_at": rfc3339(entry.modified_at_ns),
    }


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


def chat_done(model: str, *, reason: Literal["load", "unload"], now_ns: int) -> dict[str, object]:
    """Return ``/api/chat``'s answer to a request without messages."""
    message = {"role": "assistant", "content": ""}
    return _done(model, {"message": message}, reason, now_ns)


def generate_done(
    model: str, *, reason: Literal["load", "unload"], now_ns: int
) -> dict[str, object]:
    """Return ``/api/generate``'s answer to a request without a prompt."""
    return _done(model, {"response": ""}, reason, now_ns)


def capabilities(
    architecture: str, *, pooling: bool, chat_template: str | None, has_projector: bool
) -> list[str]:
    """Return what a model can do, by Ollama's rules for GGUF files (server/images.go).

    ``pooling`` says whether the GGUF has ``<architecture>.pooling_type``. A template that asks for
    ``enable_thinking`` counts as thinking, too.
    """
    template = chat_template or ""
    found = {
        "completion": not pooling,
        "embedding": pooling,
        "vision": has_projector,
        "tools": "tools" in template or "tool_call" in template,
        "thinking": "</think>" in template
        or "enable_thinking" in template
        or architecture in {"gpt-oss", "gptoss"},
    }
    return [name for name, can in found.items() if can]


def _tag(entry: CatalogEntry) -> dict[str, object]:
    lengths = {
        "context_length": entry.context_length,
        "embedding_length": entry.embedding_length,
    }
    details = {**_details(entry), **{key: length for key, length in lengths.items() if length}}
    tag: dict[str, object] = {
        "name": entry.name,
        "model": entry.name,
        "modified_at": rfc3339(entry.modified_at_ns),
        "size": entry.size_bytes,
        "digest": entry.digest,
        "details": details,
    }
    return {**tag, "capabilities": list(entry.capabilities)} if entry.capabilities else tag


def _running(entry: RunningEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "model": entry.name,
        "size": entry.size_bytes,
        "digest": entry.digest,
        "details": _details(entry),
        "expires_at": rfc3339(_expires_at_ns(entry)),
        "size_vram": entry.size_vram_bytes,
        "context_length": entry.context_length,
        "kv_cache_type": entry.kv_cache_type,
        "kv_bytes": dict(entry.kv_bytes),
    }


def _expires_at_ns(entry: RunningEntry) -> int:
    return FOREVER_NS if entry.expires_at_ns is None else entry.expires_at_ns


def _details(entry: CatalogEntry | RunningEntry) -> dict[str, object]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": entry.family,
        "families": [entry.family],
        "parameter_size": entry.parameter_size,
        "quantization_level": entry.quantization_level,
    }


def _model_info(
    metadata: Mapping[str, object], parameter_count: int, *, verbose: bool
) -> dict[str, object]:
    shown: dict[str, object] = {
        key: None if value and isinstance(value, (list, tuple)) and not verbose else value
        for key, value in metadata.items()
        if key not in _HIDDEN_KEYS
    }
    return {**shown, "general.parameter_count": parameter_count}


def _modelfile(
    entry: CatalogEntry,
    path: str,
    template: str,
    system: str | None,
    parameters: Mapping[str, object],
) -> str:
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {entry.name}",
        "",
        f"FROM {path}",
        f"TEMPLATE {_quoted(template)}",
    ]
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f"PARAMETER {key} {text}" for key, text in _values(parameters)]
    lines.append(f"PARAMETER kv_cache_type {entry.kv_cache_type}")
    return "\n".join(lines) + "\n"


def _values(parameters: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return names and values as Go's ``%#v`` writes them, one for each element of a list."""
    pairs = []
    for key, value in parameters.items():
        elements: Collection[object] = value if isinstance(value, (list, tuple)) else (value,)
        pairs += [(key, json.dumps(element, ensure_ascii=False)) for element in elements]
    return pairs


def _quoted(text: str) -> str:
    """Return a Modelfile value: bare, or in quotes if blanks or newlines would be lost."""
    if "\n" not in text and text == text.strip():
        return text
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _done(model: str, empty: Mapping[str, object], reason: str, now_ns: int) -> dict[str, object]:
    start = {"model": model, "created_at": rfc3339(now_ns)}
    return {**start, **empty, "done": True, "done_reason": reason}
