"""Request bodies that are kept until their answer begins, in memory and on real disks."""

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from kvsup.runtime.keeping import IN_MEMORY_BYTES, Keeping

SMALL = b"x" * IN_MEMORY_BYTES
LARGE = os.urandom(3 * IN_MEMORY_BYTES + 17)


def open_files() -> set[str]:
    """Return what is open in this process."""
    links = psutil.Process().open_files()
    return {f"{link.fd} {link.path}" for link in links} | {f"n={psutil.Process().num_fds()}"}


def device_of(folder: Path) -> int:
    """Return the disk of a folder."""
    return folder.stat().st_dev


def names_in(folder: Path) -> list[str]:
    """Return what can be seen in a folder."""
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Take every restriction away that a careless parent may not have set."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("body", [b"", b"{}", SMALL, LARGE])
async def test_kept_body_is_read_as_often_as_it_is_needed(tmp_path: Path, body: bytes) -> None:
    """Each attempt gets the same bytes."""
    kept = await Keeping(tmp_path).keep(body)

    assert [await kept.read() for _ in range(3)] == [body] * 3
    assert kept.is_on_disk == (len(body) > IN_MEMORY_BYTES)
    kept.close()


@pytest.mark.usefixtures("open_umask")
async def test_large_body_lies_in_a_file_without_a_name_that_only_its_owner_may_read(
    tmp_path: Path,
) -> None:
    """Whoever may list the folder sees nothing; a kvsup that is killed leaves nothing."""
    kept = await Keeping(tmp_path).keep(LARGE)

    assert kept._file is not None
    status = os.fstat(kept._file.fileno())
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_nlink == 0
    assert status.st_dev == device_of(tmp_path)
    assert names_in(tmp_path) == []
    kept.close()


async def test_closed_body_leaves_no_file_descriptor(tmp_path: Path) -> None:
    """Also where it is closed twice."""
    before = open_files()
    kept = await Keeping(tmp_path).keep(LARGE)
    assert open_files() != before

    kept.close()
    kept.close()

    assert open_files() == before


async def test_keeping_that_is_cancelled_leaves_no_file_descriptor(tmp_path: Path) -> None:
    """A client that leaves while its request is written costs nothing."""
    before = open_files()
    with anyio.CancelScope() as scope:
        scope.cancel()
        kept = await Keeping(tmp_path).keep(LARGE)
        kept.close()

    assert open_files() == before


@pytest.mark.parametrize("fault", ["full", "gone", "no descriptor"])
async def test_body_that_the_disk_does_not_take_stays_in_memory_and_is_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    """A full disk, a folder that is gone and too many open files lose no request."""

    def failing(**_arguments: object) -> Any:
        if fault == "no descriptor":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Path("/dev/full").open("r+b", buffering=0)

    folder = tmp_path / "gone" if fault == "gone" else tmp_path
    if fault != "gone":
        monkeypatch.setattr(tempfile, "TemporaryFile", failing)
    keeping, before = Keeping(folder), open_files()

    with caplog.at_level(logging.WARNING):
        many = [await keeping.keep(LARGE) for _ in range(3)]

    assert [await kept.read() for kept in many] == [LARGE] * 3
    assert [kept.is_on_disk for kept in many] == [False] * 3
    assert open_files() == before
    (record,) = caplog.records
    code = {"full": errno.ENOSPC, "gone": errno.ENOENT, "no descriptor": errno.EMFILE}[fault]
    assert os.strerror(code) in record.getMessage()
    assert str(folder) in record.getMessage()


async def test_disk_that_was_full_is_used_again_and_told_of_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line an episode."""
    folder = tmp_path / "later"
    keeping = Keeping(folder)

    with caplog.at_level(logging.WARNING):
        (await keeping.keep(LARGE)).close()
        await anyio.Path(folder).mkdir()
        kept = await keeping.keep(LARGE)
        assert kept.is_on_disk
        kept.close()
        await anyio.Path(folder).rmdir()
        (await keeping.keep(LARGE)).close()

    assert len(caplog.records) == 2
