"""What changes of a file when it is replaced or written."""

import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file at one moment; two that are equal are the same file with the same contents."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    mode: int
    """Permissions: a file of keys is refused once others may read it."""

    def __str__(self) -> str:
        """Return the part that stands for the contents, as ``ModelFile.stamp`` has it."""
        return f"{self.device}:{self.inode}:{self.size_bytes}:{self.modified_ns}"


def stamp_of(path: Path) -> Stamp:
    """Return what ``path`` leads to, links followed.

    Raises:
        OSError: there is nothing, or it cannot be looked at.
        ValueError: it is no path.
    """
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, mode)


def stamp_or_none(path: Path) -> Stamp | None:
    """Return what ``path`` leads to, None where that is nothing."""
    try:
        return stamp_of(path)
    except (OSError, ValueError):
        return None
