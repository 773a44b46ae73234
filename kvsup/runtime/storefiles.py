"""Reads files of a store that another program keeps: only what lies inside, only so much."""

import os
from collections.abc import Iterator
from pathlib import Path

_MAX_DEPTH = 4
_MAX_FOLDERS = 4096


def inside(path: Path, root: Path) -> Path:
    """Return ``path``, a file below ``root``, links followed; a link may not lead out of there.

    Raises:
        ValueError: it is no regular file, or leads elsewhere.
    """
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root.resolve(strict=True)):
            raise ValueError(f"{path} is a link that leads out of {root}")
        if not real.is_file():
            raise ValueError(f"{path} is no file")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, RuntimeError) as error:  # a loop of links is the latter until Python 3.13
        raise ValueError(f"{path} cannot be read: {error}") from None
    return real


def read_small(path: Path, root: Path, *, max_bytes: int) -> bytes:
    """Return what a file below ``root`` holds.

    Raises:
        ValueError: it cannot be read, is longer, or leads elsewhere.
    """
    real = inside(path, root)
    try:
        with real.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes")
    return data


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder by name, no links; none where it cannot be listed."""
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]


def files_in(folder: Path) -> list[Path]:
    """Return what is in a folder beside folders, by name; none where it cannot be listed."""
    return [Path(entry.path) for entry in _entries(folder) if not _is_folder(entry)]


def walk(root: Path) -> Iterator[Path]:
    """Yield ``root`` and the folders in it, some levels deep and not without end, no links."""
    waiting, n_seen = [(root, 0)], 0
    while waiting and n_seen < _MAX_FOLDERS:
        folder, depth = waiting.pop()
        n_seen += 1
        yield folder
        if depth < _MAX_DEPTH:
            waiting += [(inner, depth + 1) for inner in reversed(folders_in(folder))]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, but what is hidden, or what a terminal would not show."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (e for e in entries if e.name.isprintable() and not e.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except OSError:
        return []
