"""Write several files of a folder: all of them, or none."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from kvsup.errors import ConfigError


def write_files(folder: Path, texts: Mapping[str, str], *, replaces: bool) -> None:
    """Write each text under its name in ``folder``, which is made if missing.

    All of them lie on the disk before the first gets its name; if one cannot get it, those that
    had theirs lose it again, and what was there before is there again.

    Args:
        folder: where.
        texts: by names of files.
        replaces: whether files of these names may be replaced.

    Raises:
        ConfigError: a file is there already, or cannot be written; nothing has changed then.
    """
    there = [name for name in texts if os.path.lexists(folder / name)]
    if there and not replaces:
        names = ", ".join(str(folder / name) for name in there)
        raise ConfigError(f"{names}: there already; move them away, or use --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".import-") as beside,
            ExitStack() as undo,
        ):
            for name, text in texts.items():
                _write(Path(beside) / name, text)
            for name in texts:
                _place(Path(beside), folder / name, undo, replaces=replaces)
            undo.pop_all()
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}; nothing was changed") from error


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _place(beside: Path, target: Path, undo: ExitStack, *, replaces: bool) -> None:
    new, old = beside / target.name, beside / f"{target.name}.old"
    if replaces and os.path.lexists(target):
        os.link(target, old, follow_symlinks=False)
        undo.callback(old.replace, target)
        new.replace(target)
    else:
        os.link(new, target)  # fails where one has come meanwhile
        undo.callback(_remove, target)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
