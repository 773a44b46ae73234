"""Find the line of each key in a TOML text, which no TOML reader tells."""

import re
from functools import lru_cache

_TABLE = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(
    r"""\s*((?:[A-Za-z0-9_\-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_\-]+|"[^"]*"))*)\s*="""
)
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


def _plain(dotted: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in dotted.split("."))
