"""The history that outlives its process: on real files, with what real disks do to them."""

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from kvsup import events
from kvsup.history import Record
from kvsup.runtime.chronicle import Chronicle
from kvsup.runtime.historyfiles import (
    MAX_AGE_S,
    MAX_EVIDENCE_FILES,
    MAX_FILE_BYTES,
    MAX_RECORDS,
    HistoryFiles,
)
from tests.runtime.supervised import until

pytestmark = pytest.mark.anyio

NAMES = ("m", "a/b:c", "A/b:c", "kvsup", "..", "ü" * 200, "")
"""What a model may be called, and what would be awkward as a file."""


class Facts(msgspec.Struct):
    """Some evidence."""

    n: int


@pytest.fixture
def files(tmp_path: Path) -> HistoryFiles:
    """Return the files of an empty state folder."""
    return HistoryFiles(tmp_path)


def chronicle_of(state: Path, told: list[events.Event] | None = None) -> Chronicle:
    """Return a chronicle as a kvsup that starts on ``state`` has it."""
    emit = (told if told is not None else []).append
    return Chronicle(HistoryFiles(state), version="0.1", emit=emit)


@asynccontextmanager
async def running(chronicle: Chronicle) -> AsyncIterator[None]:
    """Run a chronicle; at the end it has written everything."""
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            await tasks.start(chronicle.run)
            yield
            tasks.cancel_scope.cancel()


def texts(chronicle: Chronicle, model: str = "m") -> list[str]:
    """Return the lines of one model."""
    return [record.text for record in chronicle.of(model) if record.model == model]


def kept_texts(state: Path, model: str | None = "m") -> list[str]:
    """Return the lines of one model that are on disk."""
    return [record.text for record in HistoryFiles(state).read(now_s=time.time()).get(model, [])]


async def until_kept(state: Path, text: str) -> None:
    """Wait until a line is on disk."""
    await until(lambda: text in kept_texts(state))


def the_file(state: Path) -> Path:
    """Return the file of model ``m``."""
    (path,) = (state / "history").glob("m-*.jsonl")
    return path


def made_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return what lies in a folder, at any depth, by name."""
    return sorted(folder.rglob(pattern))


def died(n: int, model: str = "m") -> events.Died:
    """Return a death that can be told from others."""
    return events.Died(model, f"death {n}")


async def test_history_is_there_after_a_restart_of_kvsup(tmp_path: Path) -> None:
    """Also of models with names that no file could have, each apart; and when kvsup began."""
    first = chronicle_of(tmp_path)
    async with running(first):
        for n, name in enumerate(NAMES):
            first.note(died(n, name))

    second = chronicle_of(tmp_path)

    assert sorted(second.models()) == sorted(NAMES)
    for n, name in enumerate(NAMES):
        assert texts(second, name) == [f"death {n}"]
    own = [record.event for record in second.of("m") if record.model is None]
    assert own == ["Began", "Ended"]


async def test_files_are_private_and_stay_in_their_folders(tmp_path: Path) -> None:
    """0600 in 0700, whatever was there before and whatever the umask says."""
    (tmp_path / "history").mkdir(mode=0o755)
    old_mask = os.umask(0)
    told: list[events.Event] = []
    chronicle = chronicle_of(tmp_path, told)
    try:
        async with running(chronicle):
            for name in NAMES:
                chronicle.note(died(1, name))
                chronicle.keep(name, Facts(1))
    finally:
        os.umask(old_mask)

    made = made_in(tmp_path)
    assert {path.relative_to(tmp_path).parts[0] for path in made} == {"history", "evidence"}
    assert len(told) == len(NAMES)
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_torn_last_line_costs_one_record_and_is_mended(tmp_path: Path) -> None:
    """As after a power cut in a write: what was whole is read, what follows is not glued to it."""
    first = chronicle_of(tmp_path)
    async with running(first):
        for n in range(3):
            first.note(died(n))
    path = the_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])

    second = chronicle_of(tmp_path)
    assert texts(second) == ["death 0", "death 1"]
    async with running(second):
        second.note(died(3))

    assert kept_texts(tmp_path) == ["death 0", "death 1", "death 3"]
    assert all(msgspec.json.decode(line) for line in path.read_bytes().splitlines())


@pytest.mark.parametrize(
    "rubbish",
    [b"\x00" * 4096, b"\xff\xfe\n", b"[]\n", b'{"at_s": "then"}\n', b"\n\n", b"[" * 100_000],
)
async def test_lines_that_are_no_records_are_skipped(tmp_path: Path, rubbish: bytes) -> None:
    """Zeros as some file systems leave them, another program's, another version's."""
    first = chronicle_of(tmp_path)
    async with running(first):
        first.note(died(0))
    path = the_file(tmp_path)
    path.write_bytes(rubbish + b"\n" + path.read_bytes())

    second = chronicle_of(tmp_path)
    async with running(second):
        second.note(died(1))

    assert kept_texts(tmp_path) == ["death 0", "death 1"]


async def test_history_is_bounded_in_number_and_bytes(tmp_path: Path) -> None:
    """The newest stay; the file never grows much beyond its bound."""
    chronicle = chronicle_of(tmp_path)
    largest_bytes = 0
    async with running(chronicle):
        for n in range(3 * MAX_RECORDS):
            chronicle.note(events.Died("m", f"death {n} {'x' * 400}"))
            if n % 100 == 0:
                await until_kept(tmp_path, f"death {n} {'x' * 400}")
                largest_bytes = max(largest_bytes, the_file(tmp_path).stat().st_size)

    assert 0 < largest_bytes <= MAX_FILE_BYTES
    assert len(texts(chronicle)) == MAX_RECORDS
    last = [text.split()[1] for text in kept_texts(tmp_path)]
    assert last == [str(n) for n in range(3 * MAX_RECORDS - len(last), 3 * MAX_RECORDS)]
    assert len(last) > 100


async def test_history_is_bounded_in_age(tmp_path: Path, files: HistoryFiles) -> None:
    """What is older than a month is not told."""
    now_s = time.time()
    old = Record(now_s - MAX_AGE_S - 5, "Died", "m", "long ago")
    new = Record(now_s - MAX_AGE_S + 5, "Died", "m", "lately")

    files.append("m", [old, new], [old, new])

    assert texts(chronicle_of(tmp_path)) == ["lately"]


async def test_evidence_is_kept_told_and_bounded(tmp_path: Path) -> None:
    """The newest few of each model; the event that tells is emitted once the file is there."""
    told: list[events.Event] = []
    chronicle = chronicle_of(tmp_path, told)
    async with running(chronicle):
        for n in range(MAX_EVIDENCE_FILES + 3):
            chronicle.keep("m", Facts(n))
            await until(lambda: len(told) > n)  # noqa: B023 - awaited at once
            event = told[n]
            assert isinstance(event, events.Evidence)
            assert number_in(Path(event.path)) == n

    left = made_in(tmp_path / "evidence", "*.json")
    assert list(map(number_in, left)) == list(range(3, MAX_EVIDENCE_FILES + 3))


def number_in(path: Path) -> int:
    """Return what the evidence in a file is."""
    return msgspec.json.decode(path.read_bytes(), type=Facts).n


class FullDisk:
    """Stands in for ``os.write`` of a disk that takes so many bytes and then no more."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self.n_refused = 0
        self._write = os.write

    def write(self, file: int, data: bytes) -> int:
        """Write what there is room for, as the kernel does; then ENOSPC."""
        if not self.room_bytes and len(data):
            self.n_refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n_bytes = self._write(file, data[: self.room_bytes])
        self.room_bytes -= n_bytes
        return n_bytes


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    """Return the disk below the history's files, with room for all."""
    disk = FullDisk(1 << 30)
    monkeypatch.setattr(os, "write", disk.write)
    return disk


async def test_full_disk_is_said_once_and_made_up_for_when_there_is_room(
    tmp_path: Path, disk: FullDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """History goes on in memory, the half line that the disk took is no harm, nothing is lost."""
    caplog.set_level(logging.INFO)
    chronicle = chronicle_of(tmp_path)
    async with running(chronicle):
        chronicle.note(died(0))
        await until_kept(tmp_path, "death 0")
        disk.room_bytes = 5
        for n in range(1, 4):
            n_refused = disk.n_refused
            chronicle.note(died(n))
            chronicle.keep("m", Facts(n))
            await until(lambda: disk.n_refused >= n_refused + 2)  # noqa: B023 - awaited at once

        assert texts(chronicle) == [f"death {n}" for n in range(4)]
        assert kept_texts(tmp_path) == ["death 0"]

        disk.room_bytes = 1 << 30
        chronicle.note(died(4))
        await until_kept(tmp_path, "death 4")
        assert kept_texts(tmp_path) == [f"death {n}" for n in range(5)]

    said = [record.getMessage() for record in caplog.records]
    (warning,) = (text for text in said if "cannot be written" in text)
    assert warning.startswith("history cannot be written: [Errno 28] No space left on device")
    assert said.count("history is written again") == 1
    assert made_in(tmp_path, "*.new") == []


async def test_thread_too_few_and_a_name_that_is_no_utf8_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is noted meanwhile is written once there are threads again."""
    told: list[events.Event] = []
    chronicle = chronicle_of(tmp_path, told)
    n_refused = 0

    async def refuse(*_: object, **__: object) -> None:
        nonlocal n_refused
        n_refused += 1
        raise RuntimeError("can't start new thread")

    async with running(chronicle):
        chronicle.note(died(0))
        await until_kept(tmp_path, "death 0")
        with monkeypatch.context() as patch:
            patch.setattr("anyio.to_thread.run_sync", refuse)
            chronicle.keep("m", Facts(1))
            chronicle.note(died(1))
            await until(lambda: n_refused)
        chronicle.note(events.ReloadRefused("caf\udce9.toml: is no TOML"))
        chronicle.note(died(2))
        await until_kept(tmp_path, "death 2")

    assert kept_texts(tmp_path) == ["death 0", "death 1", "death 2"]
    assert any(isinstance(event, events.Evidence) for event in told)


async def test_one_model_whose_file_fails_does_not_cost_another_its_history(
    tmp_path: Path,
) -> None:
    """A folder lies where a file should be: the others are written."""
    first = chronicle_of(tmp_path)
    async with running(first):
        first.note(died(0, "bad"))
    (path,) = (tmp_path / "history").glob("bad-*.jsonl")
    path.unlink()
    path.mkdir()

    second = chronicle_of(tmp_path)
    async with running(second):
        second.note(died(1, "bad"))
        second.note(died(1))

    assert kept_texts(tmp_path) == ["death 1"]
    assert texts(second, "bad") == ["death 1"]


async def test_disk_that_does_not_answer_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are noted and other tasks run while a write hangs; afterwards all is written."""
    hangs, goes_on, write = threading.Event(), threading.Event(), os.write

    def hang(file: int, data: bytes) -> int:
        hangs.set()
        goes_on.wait()
        return write(file, data)

    monkeypatch.setattr(os, "write", hang)
    chronicle = chronicle_of(tmp_path)
    async with running(chronicle):
        await until(hangs.is_set)
        for n in range(2 * MAX_RECORDS):
            chronicle.note(died(n))
        assert len(texts(chronicle)) == MAX_RECORDS
        goes_on.set()

    assert kept_texts(tmp_path)[-1] == f"death {2 * MAX_RECORDS - 1}"


async def test_state_folder_that_cannot_be_read_or_written_ends_nothing(tmp_path: Path) -> None:
    """There is no history of before, and what happens is in memory."""
    (tmp_path / "state").write_text("no folder")
    chronicle = chronicle_of(tmp_path / "state")

    async with running(chronicle):
        chronicle.note(died(0))

    assert texts(chronicle) == ["death 0"]


async def test_ends_of_one_moment_are_kept_apart(tmp_path: Path) -> None:
    """Two processes of a model may end within a millisecond."""
    told: list[events.Event] = []
    chronicle = chronicle_of(tmp_path, told)
    async with running(chronicle):
        chronicle.keep("m", Facts(1))
        chronicle.keep("m", Facts(2))

    paths = [Path(event.path) for event in told if isinstance(event, events.Evidence)]
    assert [msgspec.json.decode(path.read_bytes()) for path in paths] == [{"n": 1}, {"n": 2}]


async def test_start_removes_what_a_kill_left_unfinished_and_what_is_of_models_long_gone(
    tmp_path: Path, files: HistoryFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of others stays."""

    class Killed(BaseException):
        """Nothing runs after it."""

    def kill(*_: object) -> None:
        raise Killed

    long_ago_s = time.time() - MAX_AGE_S - 60
    files.append("gone", [Record(long_ago_s, "Died", "gone", "death 0")], [])
    files.keep_evidence("gone", Facts(0), at_s=long_ago_s)
    for path in made_in(tmp_path, "*.json*"):
        os.utime(path, (long_ago_s, long_ago_s))
    async with running(chronicle_of(tmp_path)):
        files.append("m", [Record(time.time(), "Died", "m", "death 1")], [])
        files.keep_evidence("m", Facts(1), at_s=time.time())
    kept = {path for path in made_in(tmp_path) if path.is_file()}
    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(Killed):
        files.keep_evidence("m", Facts(2), at_s=time.time())
    monkeypatch.undo()
    assert made_in(tmp_path, "*.new")

    async with running(chronicle_of(tmp_path)):
        pass

    assert {path for path in made_in(tmp_path) if path.is_file()} == kept
    assert not made_in(tmp_path, "gone-*")
