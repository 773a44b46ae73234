"""What an earlier kvsup left: only a process that is surely its child is killed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import psutil
import pytest

from kvsup.runtime import orphans
from tests.running import eventually
from tests.runtime.supervised import is_alive

NOBODY = 2**22
"""Above the largest pid of a Linux machine."""


@pytest.fixture
def socket(tmp_path: Path) -> str:
    """Return the path of a socket whose llama-server is looked for."""
    return str(tmp_path / "a.sock")


@pytest.fixture
def leftover(socket: str) -> Iterator[subprocess.Popen[bytes]]:
    """Return a running process with our mark: the socket on its command line."""
    yield from _process(socket)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Return a running process without our mark."""
    yield from _process("other")


def _process(mark: str) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", "import signal; print(1, flush=True); signal.pause()", mark]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def write_record(
    socket: str,
    process: subprocess.Popen[bytes],
    *,
    created_off_s: float = 0.0,
    owner_pid: int = NOBODY,
    owner_create_time: float = 1.0,
) -> Path:
    """Write the record of ``process``, made by an owner that is dead unless said otherwise."""
    create_time = psutil.Process(process.pid).create_time() + created_off_s
    path = Path(f"{socket}.json")
    path.write_bytes(
        msgspec.json.encode(orphans.Record(process.pid, create_time, owner_pid, owner_create_time))
    )
    Path(socket).touch()
    return path


def test_reap_of_a_leftover_kills_it_and_removes_its_record_and_socket(
    tmp_path: Path, socket: str, leftover: subprocess.Popen[bytes]
) -> None:
    """Pid, create time and mark fit, and its owner is dead: it is ours."""
    record = write_record(socket, leftover)

    assert orphans.reap(tmp_path) == [leftover.pid]

    assert not is_alive(leftover.pid)
    assert not record.exists()
    assert not Path(socket).exists()


def test_reap_of_a_reused_pid_spares_it_and_removes_the_record(
    tmp_path: Path, socket: str, leftover: subprocess.Popen[bytes]
) -> None:
    """Another create time is another process, whatever its pid and its command line."""
    record = write_record(socket, leftover, created_off_s=-3.0)

    assert orphans.reap(tmp_path) == []

    assert is_alive(leftover.pid)
    assert not record.exists()


def test_reap_of_a_process_without_our_mark_spares_it(
    tmp_path: Path, socket: str, stranger: subprocess.Popen[bytes]
) -> None:
    """Without the socket on its command line it is not our llama-server."""
    write_record(socket, stranger)

    assert orphans.reap(tmp_path) == []

    assert is_alive(stranger.pid)


def test_reap_of_a_living_kvsups_child_touches_nothing(
    tmp_path: Path, socket: str, leftover: subprocess.Popen[bytes]
) -> None:
    """The child of a kvsup that runs is no orphan, nor is its record or socket ours to remove."""
    me = psutil.Process()
    record = write_record(socket, leftover, owner_pid=me.pid, owner_create_time=me.create_time())

    assert orphans.reap(tmp_path) == []

    assert is_alive(leftover.pid)
    assert record.exists()
    assert Path(socket).exists()


def test_reap_where_the_owners_pid_is_another_process_now_reaps(
    tmp_path: Path, socket: str, leftover: subprocess.Popen[bytes]
) -> None:
    """An owner's pid that was reused does not protect what it left."""
    write_record(socket, leftover, owner_pid=os.getpid(), owner_create_time=1.0)

    assert orphans.reap(tmp_path) == [leftover.pid]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}'])
def test_reap_of_an_unreadable_record_removes_it(tmp_path: Path, content: bytes) -> None:
    """A record that was half written names nobody and is in nobody's way."""
    record = tmp_path / "a.sock.json"
    record.write_bytes(content)

    assert orphans.reap(tmp_path) == []

    assert not record.exists()


def test_reap_takes_the_whole_session(tmp_path: Path, socket: str) -> None:
    """What the leftover has started ends with it."""
    program = (
        "import os, signal\npid = os.fork()\nif pid:\n    print(pid, flush=True)\nsignal.pause()"
    )
    argv = [sys.executable, "-c", program, socket]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        write_record(socket, process)

        orphans.reap(tmp_path)

        assert process.stdout.read() == b""  # the last holder of the pipe is gone
    eventually(lambda: not is_alive(grandchild))  # its zombie is for init to reap


def test_record_then_forget_leaves_nothing(
    tmp_path: Path, socket: str, leftover: subprocess.Popen[bytes]
) -> None:
    """A child that was reaped in order leaves neither record nor socket."""
    orphans.record(leftover.pid, psutil.Process(leftover.pid).create_time(), socket)
    Path(socket).touch()
    assert orphans.reap(tmp_path) == []  # its owner, this test, lives

    orphans.forget(socket)

    assert list(tmp_path.iterdir()) == []


def test_reap_unrecorded_takes_what_listens_in_the_folder_and_has_no_record(
    tmp_path: Path, socket: str
) -> None:
    """Another folder's llama-server, one with a record, and who only names a socket, are spared."""
    folder = tmp_path / "other"
    folder.mkdir()
    recorded = str(tmp_path / "b.sock")
    marks = [("--host", socket), ("--host", recorded), ("--host", f"{folder}/a.sock"), (socket,)]
    program = "import signal; print(1, flush=True); signal.pause()"
    with ExitStack() as running:
        lost, *spared = (
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program, *mark],
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            )
            for mark in marks
        )
        for process in (lost, *spared):
            running.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
        record = write_record(recorded, spared[0])
        Path(socket).touch()

        assert orphans.reap_unrecorded(tmp_path) == [lost.pid]

        assert not is_alive(lost.pid)
        assert all(is_alive(process.pid) for process in spared)
        assert not Path(socket).exists()
        assert record.exists()
        assert Path(recorded).exists()


def test_server_of_a_wrapper_script_that_died_with_kvsup_is_killed(
    tmp_path: Path, socket: str
) -> None:
    """The record is the script's; the server leads no group, and is known by its socket."""
    program = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    script = f'{sys.executable} -c "{program}" "$@"; echo over'
    argv = ["sh", "-c", script, "wrapper", "--host", socket]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as wrapper:
        assert wrapper.stdout is not None
        server = psutil.Process(int(wrapper.stdout.readline()))
        write_record(socket, wrapper)
        wrapper.kill()
    try:
        assert orphans.reap(tmp_path) == []
        assert orphans.reap_unrecorded(tmp_path) == [server.pid]

        assert not is_alive(server.pid)
    finally:
        with suppress(psutil.NoSuchProcess):
            server.kill()


def test_what_does_not_end_is_told_and_not_counted(
    tmp_path: Path,
    socket: str,
    leftover: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One in an uninterruptible sleep does not hear SIGKILL."""
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    monkeypatch.setattr(orphans, "_KILL_S", 0.01)
    write_record(socket, leftover)

    assert orphans.reap(tmp_path) == []
    monkeypatch.undo()

    assert f"pid {leftover.pid} of an earlier run does not end" in caplog.text


def test_record_that_cannot_be_removed_is_told_and_ends_nothing(
    socket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder in its place stands for one that someone made read-only; the socket goes."""
    Path(f"{socket}.json").mkdir()
    Path(socket).touch()

    orphans.forget(socket)

    assert not Path(socket).exists()
    assert f"{socket}.json cannot be removed" in caplog.text
