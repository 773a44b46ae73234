"""Go's values as text: ``fmt`` and ``encoding/json`` (Go 1.26)."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal

from kvsup.ollama.gotemplate.literals import quote, to_bytes
from kvsup.ollama.gotemplate.values import NO_VALUE, GoError, Named, Struct, type_name

MAX_TEXT_CHARS = 16 * 1024 * 1024
"""What one text may grow to: far more than a prompt, far less than memory."""

_MAX_FIELD_CHARS = 1_000_000
_SIZE_DIGITS = 8
_VERB = re.compile(r"%([+\-# 0]*)(\*|[0-9]*)(?:\.(\*|[0-9]*))?(.?)", re.DOTALL)
_JSON_ESCAPES = {
    **{ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"},
    **dict.fromkeys(range(0xD800, 0xE000), "\\ufffd"),
}


def bounded(pieces: Iterable[str]) -> str:
    """Return the pieces as one text.

    Raises:
        GoError: it is longer than ``MAX_TEXT_CHARS``.
    """
    kept: list[str] = []
    room = MAX_TEXT_CHARS
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            raise GoError(f"text exceeds {MAX_TEXT_CHARS} characters")
        kept.append(piece)
    return "".join(kept)


# --- fmt


def show(value: object) -> str:
    """Return a value as ``%v`` prints it."""
    return _formatted(value, "v", "", None)


def print_line(*values: object) -> str:
    """Return ``fmt.Sprintln``: blanks between all values, and a line end."""
    shown = (f" {show(value)}" if at else show(value) for at, value in enumerate(values))
    return bounded((*shown, "\n"))


def print_values(*values: object) -> str:
    """Return ``fmt.Sprint``: blanks between two values of which neither is a string."""

    def pieces() -> Iterator[str]:
        before: object = ""
        for at, value in enumerate(values):
            yield " " if at and not isinstance(value, str) and not isinstance(before, str) else ""
            yield show(value)
            before = value

    return bounded(pieces())


def print_format(template: str, *values: object) -> str:
    """Return ``fmt.Sprintf``, but for ``%U``, ``%p`` and arguments by number."""
    return bounded(_format_pieces(template, list(values)))


def _format_pieces(template: str, values: list[object]) -> Iterator[str]:
    unused = values[::-1]
    position = 0
    for match in _VERB.finditer(template):
        yield template[position : match.start()]
        position = match.end()
        flags, width, precision, verb = match.groups()
        if verb == "%":
            yield "%"
            continue
        stars = [size == "*" for size in (width, precision)]
        sizes = [unused.pop() if star and unused else None for star in stars]
        width_chars, is_bad_width = _size(width or None, sizes[0], -_MAX_FIELD_CHARS)
        precision_chars, is_bad_precision = _size(precision, sizes[1], 0)
        yield "%!(BADWIDTH)" if is_bad_width else ""
        yield "%!(BADPREC)" if is_bad_precision else ""
        if not verb:
            yield "%!(NOVERB)"
        elif not unused:
            yield f"%!{verb}(MISSING)"
        else:
            if width_chars is not None and width_chars < 0:
                flags, width_chars = flags + "-", -width_chars
            yield _formatted(unused.pop(), verb, flags, precision_chars, width_chars or 0)
    yield template[position:]
    if unused:
        extra = ", ".join(map(_with_type, reversed(unused)))
        yield f"%!(EXTRA {extra})"


def _with_type(value: object) -> str:
    return "<nil>" if value is None else f"{type_name(value)}={show(value)}"


def _size(text: str | None, given: object, least: int) -> tuple[int | None, bool]:
    """Return a width or precision, and whether it is bad; a text of None is none at all."""
    if text is None:
        return None, False
    size = given if text == "*" else int(text[:_SIZE_DIGITS] or "0")
    if not isinstance(size, int) or not least <= size <= _MAX_FIELD_CHARS:
        return None, True
    return size, False


def _formatted(
    value: object, verb: str, flags: str, precision: int | None, width: int = 0
) -> str:  # fmt: skip
    """Return one value by a verb; the verb goes to the elements of a list or map."""

    def inner(part: object) -> str:
        return "<nil>" if part is None else _formatted(part, verb, flags, precision, width)

    if verb == "T":
        return _padded("<nil>" if value is None else type_name(value), flags, width)
    if isinstance(value, Named):
        text = to_json(value) if value.text is None else value.text
        return inner(text if verb in "svxXq" else value.value)
    if isinstance(value, list | dict | Struct):
        return bounded(_composite(value, inner))
    shown = _scalar(value, verb, flags, precision)
    if shown is None:
        plainly = "" if value is None else f"={_formatted(value, 'v', flags, precision, width)}"
        return f"%!{verb}({'<nil>' if value is None else type_name(value)}{plainly})"
    is_signed = "0" in flags and "-" not in flags and shown[:1] in ("+", "-")
    if is_signed and not isinstance(value, str):  # zeros stand behind the sign
        return shown[0] + _padded(shown[1:], flags, width - 1)
    return _padded(shown, flags, width)


def _composite(
    value: "list[object] | dict[str, object] | Struct", inner: Callable[[object], str]
) -> Iterator[str]:
    parts: Iterable[str]
    if isinstance(value, dict):
        start, end = "map[", "]"
        parts = (f"{inner(key)}:{inner(value[key])}" for key in sorted(value))
    elif isinstance(value, list):
        start, end, parts = "[", "]", map(inner, value)
    else:
        start, end, parts = "{", "}", map(inner, value.fields.values())
    yield start
    for at, part in enumerate(parts):
        yield f" {part}" if at else part
    yield end


def _padded(text: str, flags: str, width: int) -> str:
    if "-" in flags:
        return text.ljust(width)
    return text.rjust(width, "0" if "0" in flags else " ")


def _scalar(value: object, verb: str, flags: str, precision: int | None) -> str | None:
    """Return a value that has no parts, or None if the verb is not one for it."""
    text = None
    if value is None or value is NO_VALUE:
        text = "<nil>" if verb == "v" else None
    elif isinstance(value, bool):
        text = str(value).lower() if verb in "tv" else None
    elif isinstance(value, int):
        text = _integer(value, verb, flags)
    elif isinstance(value, float):
        text = _float(value, verb, flags, precision)
    elif isinstance(value, str):
        text = _string(value, verb, flags, precision)
    return text


def _integer(value: int, verb: str, flags: str) -> str | None:
    if verb in "dvoxXb":
        sign = "+" if "+" in flags else " " if " " in flags else ""
        prefix = "#" if "#" in flags and verb in "xXb" else ""
        return format(value, f"{sign}{prefix}{'d' if verb == 'v' else verb}")
    if verb in "cq":
        shown = chr(value) if 0 <= value < 0x110000 and not 0xD800 <= value < 0xE000 else "\ufffd"
        return shown if verb == "c" else quote(shown, "'")
    return None


def _float(value: float, verb: str, flags: str, precision: int | None) -> str | None:
    sign = "+" if "+" in flags and value >= 0 else " " if " " in flags and value >= 0 else ""
    if value != value or abs(value) == float("inf"):  # noqa: PLR0124 - NaN
        name = "NaN" if abs(value) != float("inf") else "Inf"
        return ("-" if value < 0 else sign or ("+" if name == "Inf" else "")) + name
    if verb in "fFeE":
        return sign + format(value, f".{6 if precision is None else precision}{verb}")
    if verb in "vgG":
        shown = _shortest(value, -4, 6) if precision is None else format(value, f".{precision}g")
        return sign + (shown.upper() if verb == "G" else shown)
    return None


def _shortest(value: float, least: int, most: int) -> str:
    """Return the fewest digits that give ``value``; outside these powers of ten, an exponent."""
    exact = Decimal(repr(value)).normalize()
    exponent = exact.adjusted()
    if not value or least <= exponent < most:
        return format(exact, "f")
    sign = "-" if exponent < 0 else "+"
    return f"{exact.scaleb(-exponent)}e{sign}{abs(exponent):02d}"


def _string(value: str, verb: str, flags: str, precision: int | None) -> str | None:
    cut = value if precision is None else value[:precision]
    if verb in "sv":
        return cut
    if verb == "q":
        return f"`{cut}`" if "#" in flags and "`" not in cut and cut.isprintable() else quote(cut)
    if verb in "xX":
        shown = to_bytes(value)[:precision].hex()
        return shown if verb == "x" else shown.upper()
    return None


# --- JSON


def to_json(value: object) -> str:
    """Return a value as ``json.Marshal`` writes it: maps by key, structs by declaration."""
    return bounded(_json_pieces(value))


def _json_pieces(value: object) -> Iterator[str]:
    if isinstance(value, Named):
        value = value.json
    if isinstance(value, Struct):
        fields = value.fields if value.json is None else value.json
        yield from _json_enclosed("{}", fields, lambda key: fields[key])
    elif isinstance(value, dict):
        yield from _json_enclosed("{}", sorted(value), lambda key: value[key])
    elif isinstance(value, list):
        yield from _json_enclosed("[]", value, None)
    elif isinstance(value, str):
        yield json.dumps(value, ensure_ascii=False).translate(_JSON_ESCAPES)
    elif isinstance(value, float):
        yield _json_float(value)
    else:
        yield "null" if value is NO_VALUE else json.dumps(value)


def _json_enclosed(
    marks: str, items: Iterable[object], value_of: "Callable[[str], object] | None"
) -> Iterator[str]:
    yield marks[0]
    for at, item in enumerate(items):
        yield "," if at else ""
        yield from _json_pieces(item)
        if value_of is not None:
            yield ":"
            yield from _json_pieces(value_of(str(item)))
    yield marks[1]


def _json_float(value: float) -> str:
    return re.sub(r"e-0(?=[0-9]$)", "e-", _shortest(value, -6, 21))
