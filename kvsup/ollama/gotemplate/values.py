"""Go's values as templates see them: truth, comparison, fields, elements (Go 1.26).

``str`` is a string (see ``literals``), ``int`` an int, ``float`` a float64, ``bool`` a bool,
``list`` a slice of ``any``, ``dict`` a map from strings to ``any``, ``None`` a nil that a map or a
slice holds. A struct is a ``Struct``, a value whose type prints itself a ``Named``. Data must be
nested less deeply than some fifty levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kvsup.ollama.gotemplate.literals import from_bytes, to_bytes

NO_VALUE = object()
"""The result of an expression that has none, as a missing key; it prints as ``<no value>``."""

_TYPE_NAMES = {
    bool: "bool",
    int: "int",
    float: "float64",
    str: "string",
    list: "[]interface {}",
    dict: "map[string]interface {}",
}
_BASIC = {bool: "bool", int: "int", float: "float", str: "string"}


@dataclass(frozen=True, slots=True)
class Struct:
    """A Go struct: it has these fields and no others, and is always true."""

    type_name: str
    fields: Mapping[str, object]
    json: Mapping[str, object] | None = None
    """What ``encoding/json`` writes, in this order; None where that is ``fields``."""
    methods: Mapping[str, object] = field(default_factory=dict)
    """Results of the methods that take no argument."""


@dataclass(frozen=True, slots=True)
class Named:
    """A list, map or nil of a type that prints itself."""

    value: list[object] | dict[str, object]
    type_name: str
    json: object
    """What ``encoding/json`` writes; None marks a nil."""
    text: str | None = None
    """What printing it gives; None where that is the JSON."""


class GoError(Exception):
    """An operation failed; the evaluation knows where."""


def plain(value: object) -> object:
    """Return the list or map in a ``Named``, any other value as it is."""
    return value.value if isinstance(value, Named) else value


def type_name(value: object) -> str:
    """Return the name of the value's Go type."""
    if isinstance(value, Struct | Named):
        return value.type_name
    return _TYPE_NAMES.get(type(value), "interface {}")


def is_nil(value: object) -> bool:
    """Say whether the value is a nil of any kind."""
    return value is None or value is NO_VALUE or (isinstance(value, Named) and value.json is None)


def truth(value: object) -> bool:
    """Say whether a value is true: not the zero of its type, or not empty."""
    return value is not NO_VALUE and bool(plain(value))


def equal(first: object, *others: object) -> bool:
    """Say whether ``first`` equals one of ``others``.

    Raises:
        GoError: two values are of different types, or of a type without equality.
    """
    if not others:
        raise GoError("missing argument for comparison")
    return any(_equal(first, other) for other in others)


def _equal(first: object, other: object) -> bool:
    kind, other_kind = _BASIC.get(type(first)), _BASIC.get(type(other))
    if kind != other_kind:
        if any(value is None or value is NO_VALUE for value in (first, other)):
            return False
        names = f"{type_name(first)} and {type_name(other)}"
        raise GoError(f"incompatible types for comparison: {names}")
    if kind:
        return first == other
    if is_nil(first) or is_nil(other):
        return is_nil(first) and is_nil(other)
    raise GoError(f"non-comparable type {type_name(other)}")


def less(first: object, other: object) -> bool:
    """Say whether ``first`` stands before ``other``; raises as ``equal``."""
    if _BASIC.get(type(first)) is None or _BASIC.get(type(other)) is None:
        raise GoError("invalid type for comparison")
    if isinstance(first, str) and isinstance(other, str):
        return to_bytes(first) < to_bytes(other)
    if type(first) is not type(other):
        names = f"{type_name(first)} and {type_name(other)}"
        raise GoError(f"incompatible types for comparison: {names}")
    if isinstance(first, bool) or not isinstance(first, int | float):
        raise GoError("invalid type for comparison")
    return bool(first < other)  # type: ignore[operator] # of the same type


def length(value: object) -> int:
    """Return the number of elements, or of a string's bytes.

    Raises:
        GoError: the value has no length.
    """
    if value is None:
        raise GoError("len of nil pointer")
    if value is NO_VALUE:
        raise GoError("reflect: call of reflect.Value.Type on zero Value")
    held = plain(value)
    if isinstance(held, str):
        return len(to_bytes(held))
    if isinstance(held, list | dict):
        return len(held)
    raise GoError(f"len of type {type_name(value)}")


def element(value: object, *indexes: object) -> object:
    """Return the element at the first index, of that the element at the second one, and so on.

    Raises:
        GoError: an index does not fit what it indexes.
    """
    if value is None or value is NO_VALUE:
        raise GoError("index of untyped nil")
    for index in indexes:
        if value is None:
            raise GoError("index of nil pointer")
        value = _element(value, index)
    return value


def _element(value: object, index: object) -> object:
    held = plain(value)
    if isinstance(held, dict):
        if not isinstance(index, str):
            is_none = index is None or index is NO_VALUE
            fault = "is nil; should be of type" if is_none else f"has type {type_name(index)};"
            raise GoError(f"value {fault} {'' if is_none else 'should be '}string")
        return held.get(index)
    if not isinstance(held, str | list):
        raise GoError(f"can't index item of type {type_name(value)}")
    items = to_bytes(held) if isinstance(held, str) else held
    at = _bounded(index, len(items))
    if at == len(items):
        kind = "string" if isinstance(held, str) else "slice"
        raise GoError(f"reflect: {kind} index out of range")
    return items[at]


def part(value: object, *indexes: object) -> object:
    """Return the part of a list or string from the first index up to the second one.

    A third one bounds the capacity in Go, and here is only checked.

    Raises:
        GoError: an index is out of range, or the value has no parts.
    """
    if value is None or value is NO_VALUE:
        raise GoError("slice of untyped nil")
    if len(indexes) > 3:
        raise GoError(f"too many slice indexes: {len(indexes)}")
    held = plain(value)
    if not isinstance(held, str | list):
        raise GoError(f"can't slice item of type {type_name(value)}")
    if isinstance(held, str) and len(indexes) == 3:
        raise GoError("cannot 3-index slice a string")
    items = to_bytes(held) if isinstance(held, str) else held
    bounds = [_bounded(index, len(items)) for index in indexes]
    start, end = (*bounds, *(0, len(items))[len(bounds) :])[:2]
    for low, high in zip((start, end), (end, *bounds[2:]), strict=False):
        if low > high:
            raise GoError(f"invalid slice index: {low} > {high}")
    cut = items[start:end]
    if isinstance(cut, bytes):
        return from_bytes(cut)
    if isinstance(value, Named) and isinstance(value.json, list):
        return replace(value, value=cut, json=value.json[start:end])
    return cut


def _bounded(index: object, size: int) -> int:
    if index is None or index is NO_VALUE:
        raise GoError("cannot index slice/array with nil")
    if isinstance(index, bool) or not isinstance(index, int):
        raise GoError(f"cannot index slice/array with type {type_name(index)}")
    if not 0 <= index <= size:
        raise GoError(f"index out of range: {index}")
    return index


def member(value: object, name: str, static_type: str) -> object:
    """Return a field of a struct, or the value of a map's key: nil where there is none.

    ``static_type`` is the type that an error names.

    Raises:
        GoError: the value has no such field, or is a nil that a map or slice held.
    """
    if value is NO_VALUE:
        return NO_VALUE
    if value is None:
        raise GoError(f"nil pointer evaluating {static_type}.{name}")
    if isinstance(value, Struct):
        if name in value.methods:
            return value.methods[name]
        if name in value.fields:
            return value.fields[name]
    held = plain(value)
    if isinstance(held, dict):
        return held.get(name)
    raise GoError(f"can't evaluate field {name} in type {static_type}")
