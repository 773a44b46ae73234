"""Go's literals: quoted strings, characters and numbers (strconv of Go 1.26).

A Go string is bytes. Here it is a ``str`` in which a byte that is no UTF-8 stands as the lone
surrogate that the error handler ``surrogateescape`` makes of it.
"""

import math
import re

_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([abfnrtv\\'\"]))"
    r"|(\\)",
)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_QUOTED = {value: f"\\{name}" for name, value in _SIMPLE.items()} | {"\\": "\\\\"}
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_MAX_INT = 2**63
_MAX_CHAR_LITERAL = 12
"""Characters of the longest valid one, with its quotes."""


def to_bytes(text: str) -> bytes:
    """Return the bytes of a Go string; a surrogate that stands for no byte becomes U+FFFD."""
    if text.isascii():
        return text.encode()
    return _LONE_SURROGATE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def from_bytes(data: bytes) -> str:
    """Return the Go string of these bytes."""
    return data.decode("utf-8", "surrogateescape")


def unquote(literal: str) -> str:
    """Return the text of a string literal in double quotes or back quotes.

    Raises:
        ValueError: an escape is none of Go's.
    """
    inner = literal[1:-1]
    if literal[0] == "`":
        return inner.replace("\r", "")
    return _unescape(inner, other_quote="'")


def character(literal: str) -> int:
    """Return the code point of a character literal; raises as ``unquote``."""
    if literal == "''":
        raise ValueError("invalid syntax")
    if len(literal) > _MAX_CHAR_LITERAL or len(text := _unescape(literal[1:-1], '"')) != 1:
        raise ValueError(f"malformed character constant: {literal}")
    code = ord(text)
    return code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code


def number(literal: str) -> int | float:
    """Return the value of a number: a float if it has a point or an exponent.

    Raises:
        ValueError: it is malformed, or beyond 64 bits.
    """
    body = literal.lower().lstrip("+-")
    if not body.startswith("0x") and any(sign in body for sign in ".e"):
        if not _FLOAT.fullmatch(literal) or math.isinf(float(literal)):
            raise ValueError(f"illegal number syntax: {quote(literal)}")
        return float(literal)
    try:
        value = int(literal, 8 if re.fullmatch("0[0-7_]+", body) else 0)
    except ValueError:
        fault = "integer overflow" if _FLOAT.fullmatch(literal) else "illegal number syntax"
        raise ValueError(f"{fault}: {quote(literal)}") from None
    if not -_MAX_INT <= value < _MAX_INT:
        raise ValueError(f"integer overflow: {quote(literal)}")
    return value


def quote(text: str, mark: str = '"') -> str:
    """Return ``text`` as a literal between two of ``mark``."""
    return mark + "".join(_quoted(character, mark) for character in text) + mark


def _quoted(character: str, mark: str) -> str:
    code = ord(character)
    if character == mark:
        return "\\" + mark
    if character in _QUOTED:
        return _QUOTED[character]
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescape(inner: str, other_quote: str) -> str:
    def replaced(match: "re.Match[str]") -> str:
        byte, octal, short, long, simple, bad = match.groups()
        if bad or simple == other_quote:
            raise ValueError("invalid syntax")
        if simple:
            return _SIMPLE.get(simple, simple)
        code = int(byte or short or long, 16) if not octal else int(octal, 8)
        is_byte = bool(byte or octal)
        if code > (0xFF if is_byte else 0x10FFFF) or (not is_byte and 0xD800 <= code < 0xE000):
            raise ValueError("invalid syntax")
        return chr(0xDC00 + code) if is_byte and code >= 0x80 else chr(code)

    return from_bytes(to_bytes(_ESCAPE.sub(replaced, inner)))
