"""Files and folders that are this user's alone, whatever the umask is."""

import os
from contextlib import suppress
from pathlib import Path

UNFINISHED = ".new"
"""Ends the name of a file that is being written; one that a kill has left is nobody's."""


def make_folder(folder: Path) -> None:
    """Make a folder in one that is there, closed to other users; one that is there is closed.

    Raises:
        OSError: it cannot be made or closed.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def replace_file(path: Path, data: bytes, *, must_sync: bool = False) -> None:
    """Write a whole file, mode 0600, so that whoever reads sees the old or the new one.

    Args:
        path: in a folder that is there.
        data: its bytes.
        must_sync: they outlive a crash of the machine.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(file, data)
            if must_sync:
                os.fsync(file)
        finally:
            os.close(file)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_all(file: int, data: bytes) -> None:
    """Write all of ``data`` to a descriptor.

    Raises:
        OSError: a part of it may be written.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
