"""Decode TOML tables into configuration, collecting every problem with its file, line and key.

Pure: texts and tables in, values and problems out. Reading files is ``runtime/configdir.py``'s.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from kvsup.config import ModelConfig
from kvsup.errors import Problem
from kvsup.hostconfig import SHARED_KEYS, HostConfig
from kvsup.keylines import item_lines, key_lines
from kvsup.kvtypes import parse_kv_pair
from kvsup.units import parse_bytes, parse_duration_setting

S = TypeVar("S", bound=Struct)
Table = Mapping[str, Any]

_NOT_INHERITED = ("name", "aliases", "preload", "pin", "variants")
_EXAMPLES = {"fallback": "num_ctx = 4096", "messages": 'role = "user", content = "Hi"'}
"""What a table of a list could hold."""
_MERGED_TABLES = ("options", "env", "restart", "watchdog")


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed configuration file, or the environment, with what is needed to point into it."""

    name: str
    table: Table
    text: str = ""
    spelling: Mapping[str, str] = field(default_factory=dict)
    """Keys that are spelled otherwise here: variables of the environment."""

    def problem(self, key: str, message: str) -> Problem:
        """Return a problem that points at ``key`` (dotted) in this source."""
        lines, place = {**item_lines(self.text), **key_lines(self.text)}, key
        while place and place not in lines:  # inside an inline table: the table's own line
            place = place.rpartition(".")[0]
        return Problem(self.name, lines.get(place), self.spelling.get(key, key), message)


@dataclass(slots=True)
class _Decoder:
    source: Source
    problems: list[Problem]

    def struct(self, kind: type[S], table: Table, path: str) -> S | None:
        """Decode ``table`` field by field, so that each wrong key is reported.

        The struct is made of what is right, so that it can be checked further; None where a key
        that must be there is not.
        """
        fields = _keys(kind)
        values: dict[str, Any] = {}
        for key, value in table.items():
            where = f"{path}{key}"
            if key not in fields:
                self._add(where, f"unknown key; {_nearest(key, tuple(fields))}")
                continue
            info = fields[key]
            if value == "auto" and (flag := _extra(info.type, "auto")):
                values[flag] = True
                continue
            try:
                values[info.name] = self._value(info.type, value, where)
            except (ValueError, msgspec.ValidationError) as error:
                self._add(where, _readable(str(error)) + _choices(info.type))
        required = [info for info in fields.values() if info.required]
        for info in required:
            if info.encode_name not in table:
                self._add(f"{path}{info.encode_name}", f"missing; write {info.encode_name} = …")
        return kind(**values) if all(info.name in values for info in required) else None

    def _value(self, annotation: Any, value: Any, where: str) -> Any:
        kind = _kind(annotation)
        if kind in {"duration", "timeout"}:
            return _duration_s(value, may_be_zero=kind == "duration")
        if kind == "size":
            return None if value == "auto" and _optional(annotation) else parse_bytes(value)
        if kind == "pair":
            if not isinstance(value, str):
                raise ValueError('is no text; write e.g. "q8_0:q5_1"')
            return parse_kv_pair(value)
        bare = _bare(annotation)
        if isinstance(bare, type) and issubclass(bare, Struct):
            if not isinstance(value, Mapping):
                raise ValueError(f"is no table; write [{where}]")
            return self.struct(bare, value, f"{where}.") or bare()
        if (item := _item(bare)) is not None:
            return self._tables(item, value, where)
        return msgspec.convert(value, annotation)

    def _tables(self, item: type[Struct], value: Any, where: str) -> tuple[Struct, ...]:
        """Decode an array of tables, which are counted from 1; what cannot be made is left out."""
        example = _EXAMPLES[where.rpartition(".")[2]]
        if not isinstance(value, (list, tuple)) or not all(isinstance(t, Mapping) for t in value):
            raise ValueError(f"is no list of tables; write e.g. {where} = [{{ {example} }}]")
        made = []
        for number, table in enumerate(value, start=1):
            if table:
                made.append(self.struct(item, table, f"{where}.{number}."))
            else:
                self._add(f"{where}.{number}", f"is empty; write e.g. {example}")
        return tuple(one for one in made if one is not None)

    def _add(self, key: str, message: str) -> None:
        self.problems.append(self.source.problem(key, message))


def decode_host(file: Source | None, environment: Source) -> tuple[HostConfig, list[Problem]]:
    """Return the host's settings, those of ``file`` over those of ``environment``.

    Where there are problems, the settings are those that can be read.
    """
    problems: list[Problem] = []
    sources = [environment] if file is None else [environment, file]
    merged: dict[str, Any] = {}
    for source in sources:
        _Decoder(source, problems).struct(HostConfig, source.table, "")
        merged.update(source.table)
    return _quietly(HostConfig, merged) or HostConfig(), problems


def decode_models(
    file: Source, host: Table, *, stem: str, stored: Callable[[Any], Table] = lambda _: {}
) -> tuple[list[ModelConfig], list[Problem]]:
    """Return the model of ``file`` and its variants.

    Where there are problems, the models have what can be read of them, to be checked further.

    Args:
        file: the model's file.
        host: the host's TOML table, environment included; its shared keys are defaults here.
        stem: the file's name without suffix, the model's name if it gives none.
        stored: what a store says of the weights that ``model`` names: keys under the file's own.
    """
    problems: list[Problem] = []
    decoder = _Decoder(file, problems)
    own = {key: value for key, value in file.table.items() if key != "variants"}
    decoder.struct(ModelConfig, own, "")
    shared = {key: host[key] for key in SHARED_KEYS if key in host}
    base = {"name": stem, **own}
    tables = [base]
    for variant, table in _variants(file, problems):
        decoder.struct(ModelConfig, {"model": "", **table}, f"variants.{variant}.")
        name = variant_name(str(base["name"]), variant)
        tables.append({**overlay(base, table), "name": name})
    laid = [{**shared, **_over(stored(table.get("model")), table)} for table in tables]
    models = [_quietly(ModelConfig, table) for table in laid]
    return [msgspec.structs.replace(m, source=file.name) for m in models if m], problems


def decode_stored(name: str, table: Table, host: Table, *, source: str) -> ModelConfig:
    """Return a model that no file describes, with what a store and the host say of it.

    Args:
        name: that it is served under.
        table: TOML keys, ``model`` among them.
        host: as for ``decode_models``.
        source: how a file would name it.

    Raises:
        ValueError: what the store says is wrong.
    """
    shared = {key: host[key] for key in SHARED_KEYS if key in host}
    decoder = _Decoder(Source("", {}), [])
    model = decoder.struct(ModelConfig, {**shared, **table, "name": name}, "")
    for problem in decoder.problems:
        raise ValueError(f"{problem.key} {problem.message}")
    assert model is not None, "the caller names its weights"  # noqa: S101 - a bug of ours
    return msgspec.structs.replace(model, source=source)


def _over(stored: Table, table: Table) -> dict[str, Any]:
    """Return ``table`` over what a store says; arguments that it needs stay in front."""
    merged = overlay(stored, table)
    needed, own = stored.get("extra_args", []), table.get("extra_args")
    return {**merged, "extra_args": [*needed, *own]} if needed and isinstance(own, list) else merged


def _variants(file: Source, problems: list[Problem]) -> Iterator[tuple[str, Table]]:
    variants = file.table.get("variants", {})
    if not isinstance(variants, Mapping):
        problems.append(file.problem("variants", "is no table; write [variants.NAME]"))
        return
    for variant, table in variants.items():
        path = f"variants.{variant}"
        if not isinstance(table, Mapping):
            problems.append(file.problem(path, "is no table of keys"))
            continue
        if "name" in table:
            message = "a variant is named by its table; drop it"
            problems.append(file.problem(f"{path}.name", message))
        yield variant, table


def _quietly(kind: type[S], table: Table) -> S | None:
    """Return what can be read of tables whose problems have been noted, each in its source."""
    return _Decoder(Source("", table), []).struct(kind, table, "")


def variant_name(base: str, variant: str) -> str:
    """Return the name a variant is served under: ``qwen3:agent``, or ``a:1-agent`` of ``a:1``."""
    return f"{base}-{variant}" if ":" in base else f"{base}:{variant}"


def overlay(base: Table, table: Table) -> dict[str, Any]:
    """Return the TOML keys of a variant: those of its ``table`` over those that it inherits."""
    merged = {key: value for key, value in base.items() if key not in _NOT_INHERITED}
    for key, value in table.items():
        below = merged.get(key)
        if key in _MERGED_TABLES and isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = {**below, **value}
        else:
            merged[key] = value
    return merged


@cache
def _keys(kind: type[Struct]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """Return the fields of ``kind`` that are keys."""
    return {f.encode_name: f for f in msgspec.structs.fields(kind) if not _hidden(f.type)}


def _duration_s(value: object, *, may_be_zero: bool) -> float:
    seconds = parse_duration_setting(value)
    if seconds == 0 and not may_be_zero:
        raise ValueError('0 is no time at all; write e.g. "1m", or "-1" for ever')
    return seconds


def _metas(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__metadata__", ())


def _extra(annotation: Any, key: str) -> Any:
    for meta in _metas(annotation):
        if isinstance(meta, Meta) and meta.extra and key in meta.extra:
            return meta.extra[key]
    return None


def _kind(annotation: Any) -> str | None:
    kind: str | None = _extra(annotation, "kind")
    return kind


def _hidden(annotation: Any) -> bool:
    return bool(_extra(annotation, "hidden"))


def _bare(annotation: Any) -> Any:
    return annotation.__origin__ if _metas(annotation) else annotation


def _item(bare: Any) -> type[Struct] | None:
    """Return the struct of which ``bare`` is a tuple, if it is one."""
    first = next(iter(get_args(bare)), None) if get_origin(bare) is tuple else None
    return first if isinstance(first, type) and issubclass(first, Struct) else None


def _optional(annotation: Any) -> bool:
    return type(None) in getattr(_bare(annotation), "__args__", ())


def _nearest(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"


def _readable(message: str) -> str:
    """Turn msgspec's words into ours: ``Expected `int`, got `str```."""
    text = message.replace("`", "").split(" - at ")[0]
    return text[0].lower() + text[1:] if text else text


def _choices(annotation: Any) -> str:
    """Return the words to write where a field takes only a few."""
    bare = _bare(annotation)
    if _extra(annotation, "auto") and not _kind(annotation):
        return '; write a number or "auto"'
    literal = next((a for a in (bare, *get_args(bare)) if get_origin(a) is Literal), None)
    if literal is None:
        return ""
    *others, last = get_args(literal)
    return f"; write {', '.join(others)} or {last}" if others else f"; write {last}"
