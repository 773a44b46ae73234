"""A real memory control group, in which the kernel kills for want of memory."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")

MIB = 1 << 20


class MemoryGroup:
    """One group; processes enter it by themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        is_v2 = (folder / "memory.max").exists()
        self._used = folder / ("memory.current" if is_v2 else "memory.usage_in_bytes")
        self._limit = folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")
        self.counter = folder / ("memory.events" if is_v2 else "memory.oom_control")
        self._unlimited = "max" if is_v2 else "-1"
        for swap in ("memory.swap.max", "memory.swappiness"):
            with suppress(OSError):
                (folder / swap).write_text("0")

    def limit(self, n_bytes: int | None) -> None:
        """Let the group hold so many bytes; None: as many as it wants."""
        self._limit.write_text(self._unlimited if n_bytes is None else str(n_bytes))

    @property
    def entering(self) -> str:
        """Return the line of a shell script that puts the shell into the group."""
        return f"echo $$ > {self.folder}/cgroup.procs"

    @property
    def used_bytes(self) -> int:
        """Return what it holds now."""
        return int(self._used.read_text())

    def members(self) -> list[str]:
        """Return the pids in it."""
        return (self.folder / "cgroup.procs").read_text().split()

    def fill(self, n_bytes: int) -> int:
        """Let a process in the group take so many bytes; return its exit code.

        The kernel prefers every other process of the group as its victim.
        """
        code = f"open('/proc/self/oom_score_adj', 'w').write('-1000'); bytearray({n_bytes})"
        line = f'{self.entering}; exec "$0" -c "$1"'
        return subprocess.run(["/bin/sh", "-c", line, sys.executable, code], check=False).returncode

    def has_killed_itself(self) -> None:
        """Let a process in the group be killed by the kernel for want of memory."""
        self.limit(32 * MIB)
        line = f'{self.entering}; exec "$0" -c "bytearray({128 * MIB})"'
        ended = subprocess.run(["/bin/sh", "-c", line, sys.executable], check=False)
        assert ended.returncode == -9


@contextmanager
def memory_group(name: str) -> Iterator[MemoryGroup]:
    """Make a group and remove it; skip the test where this user cannot make one."""
    folder = (_V1 if _V1.is_dir() else _V2) / f"kvsup-test-{os.getpid()}-{name}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control group can be made here: {error}")
    try:
        if not any((folder / limit).exists() for limit in ("memory.max", "memory.limit_in_bytes")):
            pytest.skip("control groups have no memory controller here")
        yield MemoryGroup(folder)
    finally:
        deadline_s = time.monotonic() + 20
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        folder.rmdir()
