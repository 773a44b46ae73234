"""Whether the kernel killed a process for want of memory: real kills, and files as captured."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvsup.runtime.kernel import OomWatch, counter_files, killed_line, n_kills, n_oom_kills
from tests.runtime.memgroup import MIB, memory_group

EVENTS = "low 0\nhigh 0\nmax 31\noom 2\noom_kill {}\noom_group_kill 0\n"
"""``memory.events`` of version 2, as Linux 6.18 writes it."""

OOM_CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
"""``memory.oom_control`` of version 1."""

V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {} {} rw,relatime shared:9 - cgroup cgroup rw,memory"
KILLED = (
    "3,1104,1667953985,-;Memory cgroup out of memory: Killed process {} (llama-server)"
    " total-vm:426184kB, anon-rss:102016kB, file-rss:6612kB\n SUBSYSTEM=cgroup\n"
)


class Machine:
    """A ``/proc`` and control groups in a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.groups = folder / "groups"
        (self.proc / "7").mkdir(parents=True)
        (self.proc / "self").mkdir()
        self.groups.mkdir()
        self.kmsg = folder / "kmsg"  # not there: it cannot be read
        self.count_all(3)

    def mount(self, line: str, *, cgroup: str) -> None:
        """Mount a hierarchy, with process 7 in a group of it."""
        self.proc.joinpath("self", "mountinfo").write_text(
            f"1 2 0:3 / /proc rw - proc proc rw\n{line}\n"
        )
        self.proc.joinpath("7", "cgroup").write_text(cgroup)

    def count_all(self, n: int) -> None:
        """Let the machine have killed ``n`` since it booted."""
        (self.proc / "vmstat").write_text(f"nr_free_pages 5\noom_kill {n}\n")

    def count(self, path: str, text: str) -> Path:
        """Write a file of counters."""
        file = self.groups / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def watch(self) -> OomWatch:
        """Return a watch of process 7."""
        return OomWatch(7, proc=self.proc, kmsg=self.kmsg)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine with nothing mounted."""
    return Machine(tmp_path)


def test_counter_of_version_2_is_that_of_the_own_group(machine: Machine) -> None:
    """A kill elsewhere on the machine does not count."""
    machine.mount(
        V2_MOUNT.replace("/sys/fs/cgroup", str(machine.groups)),
        cgroup="0::/system.slice/kvsup.service\n",
    )
    machine.count("system.slice/kvsup.service/memory.events", EVENTS.format(1))
    watch = machine.watch()

    machine.count_all(4)
    assert watch.evidence() == ""

    file = machine.count("system.slice/kvsup.service/memory.events", EVENTS.format(2))
    assert watch.evidence() == f"oom_kill in {file} rose from 1 to 2"


def test_group_without_a_controller_counts_in_its_parent(machine: Machine) -> None:
    """A process is charged to the nearest group above that has one."""
    machine.mount(
        V2_MOUNT.replace("/sys/fs/cgroup", str(machine.groups)), cgroup="0::/user.slice/a.scope\n"
    )
    file = machine.count("user.slice/memory.events", EVENTS.format(0))
    watch = machine.watch()

    machine.count("user.slice/memory.events", EVENTS.format(1))

    assert str(file) in watch.evidence()


def test_version_1_beside_version_2_is_read_from_its_own_mount(machine: Machine) -> None:
    """In a container the mount shows only a part of the hierarchy."""
    mount = V1_MOUNT.format("/docker/abc", machine.groups)
    machine.mount(mount, cgroup="8:pids:/\n4:memory:/docker/abc/kvsup\n0::/\n")
    file = machine.count("kvsup/memory.oom_control", OOM_CONTROL.format(0))

    assert next(counter_files(7, proc=machine.proc)) == file
    watch = machine.watch()
    machine.count("kvsup/memory.oom_control", OOM_CONTROL.format(1))
    assert watch.evidence()


def test_kill_that_is_older_than_the_samples_is_not_the_processes(machine: Machine) -> None:
    """Another process of the group was killed long before this one ended."""
    machine.mount(
        V2_MOUNT.replace("/sys/fs/cgroup", str(machine.groups)), cgroup="0::/kvsup.service\n"
    )
    machine.count("kvsup.service/memory.events", EVENTS.format(0))
    watch = machine.watch()
    machine.count("kvsup.service/memory.events", EVENTS.format(1))

    assert watch.evidence() != ""
    for _ in range(4):
        watch.sample()

    assert watch.evidence() == ""


def test_count_of_the_machine_is_asked_where_there_is_no_other(machine: Machine) -> None:
    """No control groups, no log: better than nothing."""
    watch = machine.watch()

    machine.count_all(4)

    assert watch.evidence() == f"oom_kill in {machine.proc}/vmstat rose from 3 to 4"


def test_process_that_is_gone_is_still_told_of(machine: Machine) -> None:
    """Its ``/proc`` ends with it, and is not asked."""
    machine.mount(
        V2_MOUNT.replace("/sys/fs/cgroup", str(machine.groups)), cgroup="0::/kvsup.service\n"
    )
    machine.count("kvsup.service/memory.events", EVENTS.format(0))
    watch = machine.watch()
    (machine.proc / "7" / "cgroup").unlink()
    watch.sample()

    machine.count("kvsup.service/memory.events", EVENTS.format(1))

    assert watch.evidence()


@pytest.mark.parametrize(
    ("records", "is_named"),
    [
        ([KILLED.format(7)], True),
        ([KILLED.format(8)], True),
        ([KILLED.format(77)], False),
        (["6,1,1,-;eth0: link up\n", KILLED.format(7)], True),
        (["3,1,1,-;Out of memory: Killed process 7 (llama-server) total-vm:4kB\n"], True),
        (["6,1,1,-;someone wrote: Killed process 7 (x)\n"], False),
        ([], False),
    ],
)
def test_record_of_the_kernels_log_that_names_the_pid_is_found(
    records: list[str], *, is_named: bool
) -> None:
    """Each ``read`` gives one record, with its sequence number and facts around the text."""
    with _log_of(records) as kmsg:
        line = killed_line(kmsg, {7, 8})

    assert bool(line) == is_named
    assert "SUBSYSTEM" not in line
    assert not line.startswith("3,")


@contextmanager
def _log_of(records: list[str]) -> Iterator[int]:
    """Yield a descriptor that gives a record a read, as /dev/kmsg does, and then EAGAIN."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)  # in packets
    try:
        for record in records:
            os.write(writing, record.encode())
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def test_kill_of_what_a_script_has_started_is_told(machine: Machine) -> None:
    """The kernel's log names the llama-server, whose pid is not the one that was spawned."""
    for parent, children in ((7, "8 9 "), (8, ""), (9, "10 ")):
        task = machine.proc / f"{parent}/task/{parent}"
        task.mkdir(parents=True)
        (task / "children").write_text(children)
    os.mkfifo(machine.kmsg)
    watch = machine.watch()
    with machine.kmsg.open("w") as kmsg:
        kmsg.write(KILLED.format(10))

    assert watch.evidence().startswith("kernel log: Memory cgroup out of memory: Killed process 10")
    watch.close()


@pytest.mark.parametrize("text", ["", "oom_kill\n", "oom_kill x\n", "oom_kills 3\n"])
def test_file_without_a_count_tells_nothing(tmp_path: Path, text: str) -> None:
    """Older kernels have none."""
    (tmp_path / "f").write_text(text)

    assert n_kills(tmp_path / "f") is None
    assert n_kills(tmp_path / "missing") is None


def test_real_kill_by_the_kernel_is_told_and_a_signal_is_not() -> None:
    """A process that takes more than its group has, and beside it one that gets SIGKILL."""
    before = n_oom_kills()
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    with memory_group("kernel") as group, subprocess.Popen(sleeping) as bystander:
        beside = OomWatch(bystander.pid)
        group.limit(64 * MIB)
        line = f'{group.entering}; exec "$0" -c "input(); bytearray({256 * MIB})"'
        with subprocess.Popen(
            ["/bin/sh", "-c", line, sys.executable], stdin=subprocess.PIPE
        ) as greedy:
            watch = OomWatch(greedy.pid)
            while greedy.pid not in map(int, group.members()):
                assert greedy.poll() is None
            watch.sample()
            greedy.communicate(b"\n")

        assert greedy.returncode == -signal.SIGKILL
        assert watch.evidence()
        watch.close()
        bystander.kill()
        bystander.wait()
        assert beside.evidence() == ""
        beside.close()
    assert n_oom_kills() > before


def test_watch_leaves_no_descriptor_open() -> None:
    """One is opened for the kernel's log, where that may be read."""
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths

    watch = OomWatch(os.getpid())
    watch.evidence()
    watch.close()
    watch.close()

    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above
