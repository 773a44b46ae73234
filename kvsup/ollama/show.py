"""Ollama's answer of ``/api/show`` (GetModelInfo of server/routes.go, 2026-08), Modelfile included.

Grammar and quoting of the Modelfile: parser/parser.go.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import msgspec

from kvsup.ollama.catalog import CatalogEntry, details, local_time
from kvsup.ollama.modelfiles import written

DEFAULT_TEMPLATE = "{{ .Prompt }}"
"""What Ollama shows for a model without a template."""

_COPILOT = "GitHubCopilotChat/"
_HIDDEN_KEYS = ("general.name", "tokenizer.chat_template")
_PARAMETER_COLUMNS = 30
_MAX_PLAIN_EXPONENT = 21  # Go writes larger floats in JSON with an exponent
_ESCAPES = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v",
    '"': '\\"', "\\": "\\\\",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFView:
    """What is shown of one GGUF file; an array that was stepped over is None."""

    values: Mapping[str, object]
    n_params: int
    tensors: Sequence[tuple[str, str, tuple[int, ...]]] = ()
    """Name, type and shape of each, all parts of a split model together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownModel:
    """What ``/api/show`` tells of a model beside its entry in the catalogue."""

    entry: CatalogEntry
    path: str
    model: GGUFView
    projector_path: str | None = None
    projector: GGUFView | None = None
    template: str | None = None
    system: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    license_text: str | None = None
    draft_path: str | None = None
    adapters: Sequence[str] = ()
    messages: Sequence[tuple[str, str]] = ()
    """Role and text of each that stands before every conversation."""


def show(
    shown: ShownModel,
    *,
    asked: str,
    system: str = "",
    options: Mapping[str, object] | None = None,
    verbose: bool = False,
    user_agent: str = "",
) -> dict[str, object]:
    """Return the answer of ``/api/show``.

    Arrays of ``model_info`` are null unless ``verbose``. Copilot gets the name that it asked for
    as the model's basename, as it has it from Ollama.

    Args:
        shown: the model.
        asked: its name as the client wrote it.
        system: replaces the model's, where it is not empty.
        options: lie on top of the model's in the Modelfile.
        verbose: whether arrays are shown.
        user_agent: the client's ``User-Agent``.
    """
    entry = shown.entry
    own: dict[str, object] = {**shown.options, "num_ctx": entry.num_ctx}
    overlaid = {**own, "kv_cache_type": entry.kv_cache_type, **(options or {})}
    system = system or shown.system or ""
    basename = {"general.basename": asked} if user_agent.startswith(_COPILOT) else {}
    visible = {k: v for k, v in shown.model.values.items() if k not in _HIDDEN_KEYS}
    fields: dict[str, object] = {
        "license": shown.license_text,
        "modelfile": _modelfile(shown, system, overlaid),
        "parameters": _parameters(own),
        "template": shown.template or DEFAULT_TEMPLATE,
        "system": system,
        "details": details(entry),
        "messages": [{"role": role, "content": text} for role, text in shown.messages],
        "model_info": {**_info(visible, shown.model.n_params, verbose=verbose), **basename},
        "projector_info": shown.projector
        and _info(shown.projector.values, shown.projector.n_params, verbose=verbose),
        "tensors": [
            {"name": name, "type": kind, "shape": shape}
            for name, kind, shape in shown.model.tensors
        ],
        "capabilities": list(entry.capabilities),
        "modified_at": local_time(entry.modified_at_ns),
    }
    return {key: value for key, value in fields.items() if value}


def _info(values: Mapping[str, object], n_params: int, *, verbose: bool) -> dict[str, object]:
    shown = {key: _shown_value(value, verbose=verbose) for key, value in values.items()}
    return {**shown, "general.parameter_count": n_params}


def _shown_value(value: object, *, verbose: bool) -> object:
    if isinstance(value, float):
        return _as_go_marshals(value)
    if not isinstance(value, tuple):
        return value
    if value and not verbose:
        return None
    return [_as_go_marshals(each) if isinstance(each, float) else each for each in value]


def _as_go_marshals(number: float) -> float | int:
    """Return a float32 with no more digits than tell it from its neighbours, 1e5 as 100000."""
    if not math.isfinite(number):
        return number
    if number.is_integer() and abs(number) < 10**_MAX_PLAIN_EXPONENT:
        return int(number)
    for digits in range(6, 9):
        short = float(f"{number:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", number):
            return short
    return number


def _modelfile(shown: ShownModel, system: str, parameters: Mapping[str, object]) -> str:
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {shown.entry.name}",
        "",
        f"FROM {shown.path}",
    ]
    lines += [f"ADAPTER {path}" for path in shown.adapters]
    if shown.draft_path:
        lines.append(f"DRAFT {shown.draft_path}")
    if shown.projector_path:
        lines.append(f"FROM {shown.projector_path}")
    lines.append(f"TEMPLATE {written(shown.template or DEFAULT_TEMPLATE)}")
    if system:
        lines.append(f"SYSTEM {written(system)}")
    lines += [
        f"PARAMETER {key} {written(value if isinstance(value, str) else _go_value(value))}"
        for key, value in _each(parameters)
    ]
    if shown.license_text:
        lines.append(f"LICENSE {written(shown.license_text)}")
    lines += [f"MESSAGE {role} {written(text)}" for role, text in shown.messages]
    return "\n".join(lines) + "\n"


def _parameters(parameters: Mapping[str, object]) -> str:
    return "\n".join(
        f"{key:<{_PARAMETER_COLUMNS}} {_go_value(value)}" for key, value in _each(parameters)
    )


def _each(parameters: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield names and values, one for each element of a list."""
    for key, value in parameters.items():
        elements: Iterable[object] = value if isinstance(value, (list, tuple)) else (value,)
        yield from ((key, element) for element in elements)


def _go_value(value: object) -> str:
    """Return a value as Go's ``%#v`` writes it; an integer stays one, however large it is."""
    if isinstance(value, str):
        return '"' + "".join(_escaped(character) for character in value) + '"'
    if isinstance(value, float):
        return _go_float(value)
    return msgspec.json.encode(value).decode()


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _go_float(number: float) -> str:
    """Return the fewest digits, with an exponent below 1e-4 and from 1e6 on."""
    if not math.isfinite(number):
        return str(number)
    short = Decimal(repr(number)).normalize()
    if number and not -4 <= short.adjusted() < 6:
        return f"{number:.{len(short.as_tuple().digits) - 1}e}"
    return f"{short:f}"
