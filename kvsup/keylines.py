"""Find the line of each key in a TOML text, which no TOML reader tells."""

import re
from functools import lru_cache

_TABLE = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(
    r"""\s*((?:[A-Za-z0-9_\-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_\-]+|"[^"]*"))*)\s*="""
)
_TEXTS = re.compile(r""""(?:\\.|[^"\\])*"|'[^']*'|#.*""")
_BRACKETS = re.compile(r"[\[\]{}]")
_FENCES = ('"""', "'''")


@lru_cache(maxsize=64)
def key_lines(text: str) -> dict[str, int]:
    """Return the line, from 1, of each dotted key and table header of a valid TOML text."""
    lines: dict[str, int] = {}
    prefix, fence = "", ""
    for number, line in enumerate(text.splitlines(), start=1):
        if fence:
            fence = "" if fence in line else fence
            continue
        table = _TABLE.match(line)
        if table:
            prefix = _plain(table[1])
            lines.setdefault(prefix, number)
            prefix += "."
            continue
        key = _KEY.match(line)
        if key:
            lines.setdefault(prefix + _plain(key[1]), number)
            value = line[key.end() :]
            fence = next((f for f in _FENCES if value.count(f) == 1), "")
    return lines


@lru_cache(maxsize=64)
def item_lines(text: str) -> dict[str, int]:
    """Return the line of each table in an array of tables, counted from 1: ``fallback.2``.

    Keys that have lines of their own there are told, too: ``fallback.2.num_ctx``.
    """
    lines: dict[str, int] = {}
    prefix, array, fence = "", "", ""
    counts: dict[str, int] = {}
    depth = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if fence:
            fence = "" if fence in line else fence
            continue
        value = line
        if not depth:
            prefix, array, value = _header(line, prefix, counts, lines, number)
            fence = next((f for f in _FENCES if value.count(f) == 1), "")
        for sign in _BRACKETS.findall(_TEXTS.sub("", value)) if array else ():
            if sign == "{" and depth == 1:
                counts[array] = counts.get(array, 0) + 1
                lines[f"{array}.{counts[array]}"] = number
            depth += 1 if sign in "[{" else -1
    return lines


def _header(
    line: str, prefix: str, counts: dict[str, int], lines: dict[str, int], number: int
) -> tuple[str, str, str]:
    """Return the prefix behind ``line``, the array that begins on it or "", and the key's value."""
    if table := _TABLE.match(line):
        name = _plain(table[1])
        if line.lstrip().startswith("[["):
            counts[name] = counts.get(name, 0) + 1
            name = f"{name}.{counts[name]}"
            lines[name] = number
        return f"{name}.", "", ""
    if key := _KEY.match(line):
        name, value = prefix + _plain(key[1]), line[key.end() :]
        if counts:
            lines.setdefault(name, number)
        return prefix, name if value.lstrip().startswith("[") else "", value
    return prefix, "", ""


def _plain(dotted: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in dotted.split("."))
