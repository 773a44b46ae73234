"""What the machine has: the only place that asks the operating system about it.

It answers when no file descriptor is left, too, with what it knew last.
"""

import functools
import os
from contextlib import suppress
from pathlib import Path

import psutil

_NETWORK_TYPES = (
    "nfs", "cifs", "smb", "afs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "sshfs", "davfs",
    "webdav", "s3fs", "gcsfuse", "rclone", "ncp", "beegfs", "ocfs2", "pvfs", "orangefs", "virtiofs",
)  # fmt: skip
"""How the types of network file systems begin."""


class _Available:
    """The RAM that was free when that could last be asked."""

    last_bytes = 0


def memory_available_bytes() -> int:
    """Return the RAM that can be had without swapping, page cache included."""
    with suppress(OSError):  # psutil opens /proc/meminfo
        _Available.last_bytes = int(psutil.virtual_memory().available)
    return _Available.last_bytes


def private_bytes(pid: int) -> int:
    """Return the RAM that a process holds and shares with no file; 0 where that is not told."""
    try:
        memory = psutil.Process(pid).memory_info()
    except (psutil.Error, OSError):
        return 0
    return max(0, memory.rss - memory.shared) if hasattr(memory, "shared") else 0


def is_on_network(folder: Path) -> bool:
    """Say whether a folder lies on a disk of another machine; False where that is not told."""
    try:
        mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
        places = (folder.resolve(), *folder.resolve().parents)
    except (OSError, RuntimeError):
        return False
    return is_network_type(next((mounts[place] for place in places if place in mounts), ""))


def is_network_type(name: str) -> bool:
    """Say whether file systems of a type, as the system names it, lie on another machine."""
    kind = name.lower().removeprefix("fuse.")
    return kind.startswith(_NETWORK_TYPES)


@functools.cache
def n_processors() -> int | None:
    """Return how many processors there are; None where the system does not tell."""
    return os.cpu_count()
