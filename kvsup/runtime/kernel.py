"""What the kernel tells of a process that it killed for want of memory.

From the outside such an end is a SIGKILL by nobody. Three things tell it apart from one that a
person sent, the best first: the kernel's log names the pid; the counter of the process's own
control group rose; where neither can be read, the counter of the whole machine rose.
"""

import errno
import os
import re
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

SAMPLE_S = 2.5
"""How often the counters are to be read while the process lives."""

_N_SAMPLES = 4
"""A kill is counted before its victim is gone, which takes a while with much memory: so the oldest
sample is compared, some 10 s old."""

_PROC = Path("/proc")
_KMSG = Path("/dev/kmsg")
_RECORD_BYTES = 8192
"""The longest record of /dev/kmsg (CONSOLE_EXT_LOG_MAX, Linux)."""

_KILLED = re.compile(r"ut of memory.*: Killed process (\d+) \(")
"""As mm/oom_kill.c of Linux 6.18 words it, for the machine and for a control group."""


class OomWatch:
    """Notes for one process whether the kernel killed it for want of memory."""

    def __init__(self, pid: int, *, proc: Path = _PROC, kmsg: Path = _KMSG) -> None:
        """Watch ``pid``, which has just been spawned; ``close`` it in the end."""
        self._pid = pid
        self._pids = {pid}
        """It, and what it was seen to have started: it may be a script around a llama-server."""
        self._proc = proc
        self._samples: deque[tuple[Path, int]] = deque(maxlen=_N_SAMPLES)
        self._kmsg: int | None = None
        with suppress(OSError):  # only root may read it on most machines
            self._kmsg = os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._kmsg, 0, os.SEEK_END)
        self.sample()

    def close(self) -> None:
        """Close what is open."""
        if self._kmsg is not None:
            os.close(self._kmsg)
            self._kmsg = None

    def sample(self) -> None:
        """Read the counter that tells of the process now; it may change its control group."""
        self._pids.update(below(self._pid, proc=self._proc))
        files = [*counter_files(self._pid, proc=self._proc), self._proc / "vmstat"]
        counts = ((file, n) for file in files if (n := n_kills(file)) is not None)
        if (first := next(counts, None)) is not None:
            self._samples.append(first)

    def evidence(self) -> str:
        """Return what tells that the kernel killed the process, which has ended; else ""."""
        if self._kmsg is not None and (line := killed_line(self._kmsg, self._pids)):
            return f"kernel log: {line}"
        for file, before in self._samples:
            after = n_kills(file)
            is_of_all = file.parent == self._proc
            if after is not None and after > before and not (is_of_all and self._has_own()):
                return f"oom_kill in {file} rose from {before} to {after}"
        return ""

    def _has_own(self) -> bool:
        """Say whether a better source than the counter of the whole machine has been read."""
        return self._kmsg is not None or any(f.parent != self._proc for f, _ in self._samples)


def counter_files(pid: int, *, proc: Path = _PROC) -> Iterator[Path]:
    """Yield the file that counts kills in the control group of ``pid``, nearest first.

    ``memory.events`` of version 2 and ``memory.oom_control`` of version 1 count processes of the
    group that were killed by any out-of-memory killer (cgroup-v2.rst; mm/oom_kill.c, Linux 6.18).
    Where the group itself has no memory controller, that of its parents holds.
    """
    try:
        groups = (proc / str(pid) / "cgroup").read_text().splitlines()
        mounts = (proc / "self" / "mountinfo").read_text().splitlines()
    except OSError:
        return
    of_kind = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            of_kind["cgroup"] = path
        elif not controllers:
            of_kind["cgroup2"] = path
    for kind, name in (("cgroup", "memory.oom_control"), ("cgroup2", "memory.events")):
        for root, mount in _mounts(mounts, kind) if kind in of_kind else ():
            path = of_kind[kind]
            inside = path.removeprefix(root) if root != "/" else path
            group = mount / inside.lstrip("/")
            for folder in (group, *group.parents):
                if mount in (folder, *folder.parents):
                    yield folder / name


def below(pid: int, *, proc: Path = _PROC) -> Iterator[int]:
    """Yield the processes that the first threads of ``pid`` and its children have started."""
    with suppress(OSError, ValueError):  # it is gone
        for word in (proc / f"{pid}/task/{pid}/children").read_text().split():
            yield int(word)
            yield from below(int(word), proc=proc)


def n_oom_kills() -> int:
    """Return how many processes this kernel has killed for want of memory since it booted.

    0 where it does not tell, as on macOS. Source: proc_vmstat(5), Linux 4.13.
    """
    return n_kills(_PROC / "vmstat") or 0


def n_kills(file: Path) -> int | None:
    """Return the ``oom_kill`` of a file of counters, a line each; None where it is not told."""
    try:
        fields = (line.split() for line in file.read_text().splitlines())
        return next((int(f[1]) for f in fields if len(f) == 2 and f[0] == "oom_kill"), None)
    except (OSError, ValueError):
        return None


def killed_line(kmsg: int, pids: Collection[int]) -> str:
    """Return the record of the kernel's log that says that one of ``pids`` was killed, or "".

    Args:
        kmsg: descriptor of ``/dev/kmsg``, not blocking; it is read to the end.
        pids: as the first pid namespace has them; in another one the log names them otherwise.
    """
    while True:
        try:
            record = os.read(kmsg, _RECORD_BYTES)
        except OSError as error:
            if error.errno == errno.EPIPE:  # a record was overwritten before it was read
                continue
            return ""
        if not record:
            return ""
        text = record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0]
        if (killed := _KILLED.search(text)) and int(killed[1]) in pids:
            return text


def _mounts(mounts: list[str], kind: str) -> Iterator[tuple[str, Path]]:
    """Yield root and mount point of each hierarchy of ``kind``, of version 1 those with memory.

    The format is that of /proc/PID/mountinfo in proc_pid_mountinfo(5).
    """
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        file_system, _, options = (*rest.split(" ", 2), "", "")[:3]
        _, _, _, root, mount, *_ = (*fields.split(" "), "", "", "", "", "")
        if file_system == kind and (kind == "cgroup2" or "memory" in options.split(",")):
            yield root, Path(mount)
