"""Set ``kv_cache_type`` in a model's file as a person would: everything else stays as it stands."""

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli
import tomlkit
from tomlkit.exceptions import TOMLKitError

from kvsup.decode import variant_name
from kvsup.errors import ConfigError, Problem
from kvsup.keylines import key_lines
from kvsup.runtime.tomlfile import read_toml

KEY = "kv_cache_type"
BYTE_ORDER_MARK = "\ufeff"
"""With which some editors begin a file."""


def with_pair(text: str, pair: str, comment: str, *, mark: str, variant: str | None = None) -> str:
    """Return the TOML ``text`` with ``pair`` as its ``kv_cache_type`` and ``comment`` above it.

    Args:
        text: of a model's file.
        pair: the new value; where the key is missing it is put before any table.
        comment: one line; it takes the place of those above the key that begin with ``mark``.
        mark: how such comments begin.
        variant: the variant to set it in, instead of the model.

    Raises:
        ValueError: the text is too artful to be changed so.
    """
    place = () if variant is None else ("variants", variant)
    key = ".".join((*place, KEY))
    try:
        wanted = _wanted(tomli.loads(text), place, pair)
        before = _inserted(text, place, pair) if key not in key_lines(text) else None
        changed = _commented(before or _replaced(text, place, pair), key, comment, mark)
        is_right = tomli.loads(changed) == wanted
    except (TOMLKitError, tomli.TOMLDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"it is too artful ({error})") from error
    if not is_right:
        raise ValueError("something else would change with it")
    return changed


def _replaced(text: str, place: tuple[str, ...], pair: str) -> str:
    """Return ``text`` with the value replaced, and what stands beside it kept."""
    document = tomlkit.parse(text)
    holder: Any = document
    for name in place:
        holder = holder[name]
    holder[KEY] = pair
    return tomlkit.dumps(document)


def _inserted(text: str, place: tuple[str, ...], pair: str) -> str | None:
    """Return ``text`` with the key where a person would put it; None where there is no such place.

    At the end of the keys at the top, above the comments of the first table, or below the header
    of the variant.
    """
    end = _line_end(text)
    lines = text.splitlines(keepends=True)
    numbers = key_lines(text)
    headers = [n - 1 for n in numbers.values() if lines[n - 1].lstrip().startswith("[")]
    if place:
        at = numbers.get(".".join(place), 0)
        if at - 1 not in headers:
            return None
    else:
        at = min(headers, default=len(lines))
        while at > 0 and lines[at - 1].lstrip().startswith("#"):
            at -= 1
        while at > 0 and not lines[at - 1].strip():
            at -= 1
    parting = end if at == len(lines) and not text.endswith(end) else ""
    return "".join((*lines[:at], parting, f'{KEY} = "{pair}"{end}', *lines[at:]))


def _line_end(text: str) -> str:
    """Return how lines end: as the first one does."""
    return "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"


def _commented(text: str, key: str, comment: str, mark: str) -> str:
    """Put ``comment`` above the line of ``key``, or of what holds it where that has no line."""
    numbers = key_lines(text)
    while key not in numbers:
        key = key.rpartition(".")[0]
    lines = text.splitlines(keepends=True)
    place = numbers[key] - 1
    above = place
    while above > 0 and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    kept = [line for line in lines[above:place] if not line.lstrip().startswith(mark)]
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
    return "".join((*lines[:above], *kept, f"{indent}{comment}{_line_end(text)}", *lines[place:]))


def _wanted(table: dict[str, Any], place: tuple[str, ...], pair: str) -> dict[str, Any]:
    holder = table
    for name in place:
        holder = holder[name]
    holder[KEY] = pair
    return table


def write_pair(path: Path, name: str, pair: str, comment: str, *, mark: str) -> None:
    """Set the pair of the model or variant ``name`` in the file at ``path``; a link stays one.

    Raises:
        ConfigError: it cannot be read or written, no longer holds the model, or is too artful.
    """
    source = read_toml(path, str(path))
    if isinstance(source, Problem):
        raise ConfigError((source,))
    variant = _variant(source.table, str(source.table.get("name", path.stem)), name)
    if variant is None and name != str(source.table.get("name", path.stem)):
        raise ConfigError(f"{path} no longer holds '{name}'")
    try:
        written = path.read_bytes().decode(
            "utf-8"
        )  # with its line ends, and its mark if it has one
        text = written.removeprefix(BYTE_ORDER_MARK)
        begin = written[: len(written) - len(text)]
        changed = begin + with_pair(text, pair, comment, mark=mark, variant=variant)
    except (OSError, ValueError) as error:
        line = f'{KEY} = "{pair}"'
        raise ConfigError(f"{path} cannot be changed: {error}; write {line} into it") from error
    _replace(path.resolve(), changed)


def _variant(table: Mapping[str, Any], base: str, name: str) -> str | None:
    variants = table.get("variants")
    names = variants if isinstance(variants, Mapping) else ()
    return next((variant for variant in names if variant_name(base, variant) == name), None)


def _replace(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")
        try:
            with open(handle, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123 - a descriptor, no path
                file.write(text)
                file.flush()
                os.fchmod(handle, stat.S_IMODE(path.stat().st_mode))
                os.fsync(handle)
            Path(beside).replace(path)
        finally:
            Path(beside).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
