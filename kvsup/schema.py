"""JSON Schemas of the two kinds of TOML file, for editors, from the types of ``config.py``."""

from typing import Any

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from kvsup.config import ModelConfig
from kvsup.hostconfig import HostConfig
from kvsup.units import format_bytes, format_duration

_DRAFT = "https://json-schema.org/draft/2020-12/schema"

_DURATION = {
    "type": ["string", "number"],
    "pattern": r"^-?\d",
    "examples": ["5m", "1h30m", 300, "-1"],
}
_KINDS: dict[str, dict[str, Any]] = {
    "duration": _DURATION,
    "timeout": _DURATION,
    "size": {"type": ["string", "integer"], "examples": ["8GiB", "512MiB"]},
    "pair": {"type": "string", "examples": ["q8_0:q5_1", "f16:f16", "q8_0"]},
}


def model_schema() -> dict[str, Any]:
    """Return the schema of a model's file."""
    schema = _object(ModelConfig)
    keys = {key: value for key, value in schema["properties"].items() if key != "name"}
    schema["properties"]["variants"] = {
        "type": "object",
        "description": "The same weights under another name, for another purpose.",
        "additionalProperties": {
            "type": "object",
            "properties": keys,
            "additionalProperties": False,
        },
    }
    return {"$schema": _DRAFT, "title": "A model of kvsup", **schema}


def host_schema() -> dict[str, Any]:
    """Return the schema of ``kvsup.toml``."""
    return {"$schema": _DRAFT, "title": "The host's settings of kvsup", **_object(HostConfig)}


def _object(kind: type[Struct]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for info in msgspec.structs.fields(kind):
        meta = next(m for m in info.type.__metadata__ if isinstance(m, Meta))
        extra = meta.extra or {}
        if extra.get("hidden"):
            continue
        bare = info.type.__origin__
        if "kind" in extra:
            shape = dict(_KINDS[extra["kind"]])
            if type(None) in getattr(bare, "__args__", ()):
                shape["examples"] = [*shape["examples"], "auto"]
        elif isinstance(bare, type) and issubclass(bare, Struct):
            shape = _object(bare)
        elif (item := _item(bare)) is not None:
            shape = {"type": "array", "items": _object(item)}
        else:
            shape = msgspec.json.schema(info.type)
        if extra.get("auto"):
            shape = {"anyOf": [shape, {"const": "auto"}]}
        shape["description"] = meta.description
        default = _default(info, extra.get("kind"))
        if default is not None:
            shape["default"] = default
        if info.required:
            required.append(info.encode_name)
        properties[info.encode_name] = shape
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def _item(bare: Any) -> type[Struct] | None:
    """Return the struct of which ``bare`` is a tuple, if it is one."""
    first = next(iter(getattr(bare, "__args__", ())), None)
    is_struct = isinstance(first, type) and issubclass(first, Struct)
    return first if is_struct and getattr(bare, "__origin__", None) is tuple else None


def _default(info: Any, kind: str | None) -> Any:
    """Return a field's default as one would write it, or None where it has none to show."""
    value = info.default
    if value in (NODEFAULT, msgspec.UNSET, None, ""):
        return None
    if kind in {"duration", "timeout"}:
        return format_duration(value)
    if kind == "size":
        return format_bytes(value).replace(" ", "")
    return str(value) if kind == "pair" else value
