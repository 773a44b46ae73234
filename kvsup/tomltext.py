"""Change a TOML text as a person would: comments stay with what they stand above."""

from collections.abc import Iterator, Mapping
from typing import Any

import tomli
import tomlkit

from kvsup.keylines import key_lines

Table = Mapping[str, Any]
Unit = tuple[str, ...]
"""What is kept or replaced as a whole: a key at the top, or the table of one variant."""

_SPLIT = "variants"


def rewrite(text: str, wanted: Table) -> str:
    """Return ``text``, changed so that it holds ``wanted`` and nothing else.

    What is equal stays as it is written, with the comments directly above it; what is new stands
    below the comments at the top, or at the end where it is a table. A text that is too artful for
    that (dots in quoted keys, inline variants) is written anew, without comments.

    Raises:
        tomli.TOMLDecodeError: ``text`` is no TOML.
    """
    text = f"{text.rstrip()}\n"
    old, new = _units(tomli.loads(text)), _units(wanted)
    kept = {unit for unit, value in new.items() if unit in old and old[unit] == value}
    if _SPLIT in wanted:
        kept.add((_SPLIT,))  # a header of its own above the variants
    fresh = {unit: value for unit, value in new.items() if unit not in kept}
    head, *blocks = _blocks(text)
    changed = "".join(
        (
            head[1],
            tomlkit.dumps({u[0]: v for u, v in fresh.items() if not _has_header(v)}),
            *(block for unit, block in blocks if unit in kept),
            "\n",
            tomlkit.dumps(_nested({u: v for u, v in fresh.items() if _has_header(v)})),
        )
    )
    changed = f"{changed.rstrip()}\n"
    return changed if _holds(changed, wanted) else tomlkit.dumps(wanted)


def _has_header(value: object) -> bool:
    """Say whether a value is written as a table, or as a list of them: no plain key may follow."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(one, Mapping) for one in values)


def _units(table: Table) -> dict[Unit, Any]:
    units: dict[Unit, Any] = {}
    for key, value in table.items():
        if key == _SPLIT and isinstance(value, Mapping):
            units |= {(key, name): inner for name, inner in value.items()}
        else:
            units[(key,)] = value
    return units


def _nested(units: Mapping[Unit, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for unit, value in units.items():
        place = nested
        for part in unit[:-1]:
            place = place.setdefault(part, {})
        place[unit[-1]] = value
    return nested


def _blocks(text: str) -> Iterator[tuple[Unit, str]]:
    """Yield the comments at the top, then each key or table header with what stands above it.

    That are the comments directly above and the blank lines above those. Comments from the first
    line on speak of the whole file.
    """
    lines = text.splitlines(keepends=True)
    starts = sorted((number - 1, key) for key, number in key_lines(text).items())
    begin = 0
    unit: Unit = ()
    for start, key in starts:
        above = start
        while above > 0 and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        above = above or start
        while above > 0 and not lines[above - 1].strip():
            above -= 1
        yield unit, "".join(lines[begin:above])
        begin, unit = above, _unit_of(key)
    yield unit, "".join(lines[begin:])


def _unit_of(key: str) -> Unit:
    parts = key.split(".")
    return tuple(parts[:2] if parts[0] == _SPLIT else parts[:1])


def _holds(text: str, wanted: Table) -> bool:
    try:
        return tomli.loads(text) == wanted
    except tomli.TOMLDecodeError:
        return False
