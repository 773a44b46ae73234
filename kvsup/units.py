"""Durations and sizes as people and Ollama write them."""

import math
import re

FOREVER_S = math.inf
"""A keep_alive that never ends."""

_MAX_S = 2**63 / 1e9
"""Go's longest duration, some 292 years."""

_MAX_BYTES = 2**63 - 1
"""The largest size that files and programs count with."""

_DURATION_UNITS_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b?|b)?", re.IGNORECASE)


def parse_duration(value: object) -> float:
    """Return seconds for a number of seconds or a Go duration such as ``"1h30m"``.

    Negative values mean for ever. The texts of the errors are Go's, since Ollama's clients see
    them (api/types.go Duration, 2026-08).

    Raises:
        ValueError: the value is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"Unsupported type: '{_go_type(value)}'")
    if not isinstance(value, str):
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f'time: invalid duration "{value}"')
        return FOREVER_S if value < 0 or value > _MAX_S else float(value)
    text = value.strip()
    negative = text.startswith("-")
    rest = text[1:] if text[:1] in {"-", "+"} else text
    if rest == "0":
        return 0.0
    if not rest:
        raise ValueError(f'time: invalid duration "{text}"')
    total_s, position = 0.0, 0
    while position < len(rest):
        part = _DURATION_PART.match(rest, position)
        if part is None:
            raise ValueError(f'time: invalid duration "{text}"')
        number, unit = part.groups()
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _DURATION_UNITS_S:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        total_s += float(number) * _DURATION_UNITS_S[unit]
        position = part.end()
    return FOREVER_S if negative or total_s > _MAX_S else total_s


def parse_duration_setting(value: object) -> float:
    """Return as ``parse_duration`` does; a text may also be a bare number of seconds.

    So it is in ``OLLAMA_KEEP_ALIVE``, but not in requests.

    Raises:
        ValueError: the value is neither; the message says what to write.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+\s*", value):
        return parse_duration(int(value))
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f'{error}; write e.g. "5m" or a number of seconds') from error


def format_duration(seconds: float) -> str:
    """Return a short form for settings, such as ``1h30m``, ``2.5s``, and ``-1`` for ever."""
    if math.isinf(seconds):
        return "-1"
    if seconds < 60 or seconds != int(seconds):
        return f"{seconds:g}s"
    hours, rest = divmod(int(seconds), 3600)
    minutes, secs = divmod(rest, 60)
    parts = ((hours, "h"), (minutes, "m"), (secs, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def format_span(seconds: float) -> str:
    """Return how long something took for a person: ``0.4 s``, ``40 s``, ``2 min``, ``3 h``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"


def parse_bytes(value: object) -> int:
    """Return bytes for an integer or a size such as ``"8GiB"`` (powers of 1024) or ``"8GB"``.

    Raises:
        ValueError: the value is no size, or larger than any.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{value!r} is no size; write e.g. "8GiB" or a number of bytes')
    number, unit = float(match[1]), (match[2] or "b").lower()
    base = 1024 if "i" in unit else 1000
    n_bytes = number * base ** "bkmgt".index(unit[0])
    if n_bytes > _MAX_BYTES:
        raise ValueError(f"{value!r} is more than anything has")
    return int(n_bytes)


def format_bytes(n_bytes: float) -> str:
    """Return a size with three digits that matter, in powers of 1024: ``23.9 MiB``."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def _go_type(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, dict):
        return "map[string]interface {}"
    return "[]interface {}" if isinstance(value, list) else type(value).__name__
