"""The next model's weights, read while it waits for its place. Real llama-servers."""

import logging
import shutil

import anyio
import pytest

from kvsup.runtime import readahead
from kvsup.units import format_bytes
from tests.runtime.clients import Client
from tests.runtime.supervised import Folder, running, until

LOG = logging.getLogger(readahead.__name__)


@pytest.fixture
def two(folder: Folder, caplog: pytest.LogCaptureFixture) -> Folder:
    """A folder with two models of files of their own, one loaded at a time, and its debug log."""
    caplog.set_level(logging.DEBUG, LOG.name)
    copy = folder.path / "copy.gguf"
    shutil.copy(folder.model, copy)
    folder.host += "max_loaded_models = 1\n"
    folder.write(a="", same="")
    folder.model = copy
    folder.write(b="")
    return folder


async def test_weights_are_read_while_the_model_waits_for_a_busy_one(
    two: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """All of the file is there before the place is free."""
    said = f"b: read {format_bytes(two.model.stat().st_size)} of its weights ahead"

    async with running(two.read()) as now, anyio.create_task_group() as tasks:
        busy, waiting = Client(now.fleet, "a"), Client(now.fleet, "b")
        tasks.start_soon(busy.run)
        await busy.has_lease.wait()
        tasks.start_soon(waiting.pass_by)

        await until(lambda: said in caplog.text)

        assert not waiting.has_lease.is_set()
        busy.may_leave.set()


async def test_reading_ahead_ends_with_the_wait(
    two: Folder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that leaves takes its wish with it: the rest of the file is not read."""
    monkeypatch.setattr(readahead, "_STEP_BYTES", 1 << 16)
    n_bytes = two.model.stat().st_size

    async with running(two.read()) as now, anyio.create_task_group() as tasks:
        busy = Client(now.fleet, "a")
        tasks.start_soon(busy.run)
        await busy.has_lease.wait()
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(Client(now.fleet, "b").run)
            await until(lambda: now.fleet.n_waiting == 1)
            leaving.cancel_scope.cancel()

        await until(lambda: "b: read " in caplog.text)

        assert f"read {format_bytes(n_bytes)} of" not in caplog.text
        busy.may_leave.set()


async def test_weights_that_are_mapped_already_are_not_read(
    two: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """Another model of the file that is loaded finds it in memory."""
    async with running(two.read()) as now, anyio.create_task_group() as tasks:
        busy, waiting = Client(now.fleet, "a"), Client(now.fleet, "same")
        tasks.start_soon(busy.run)
        await busy.has_lease.wait()
        tasks.start_soon(waiting.pass_by)

        await until(lambda: "same: read 0 B of its weights" in caplog.text)

        busy.may_leave.set()


async def test_file_that_is_gone_is_left_to_the_load(
    two: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """Reading ahead fails for itself alone."""
    away = two.model.with_suffix(".away")

    async with running(two.read()) as now, anyio.create_task_group() as tasks:
        busy, waiting = Client(now.fleet, "a"), Client(now.fleet, "b")
        tasks.start_soon(busy.run)
        await busy.has_lease.wait()
        await anyio.Path(two.model).rename(away)
        tasks.start_soon(waiting.pass_by)

        await until(lambda: "b: not read ahead: " in caplog.text)

        await anyio.Path(away).rename(two.model)
        busy.may_leave.set()
        await waiting.has_lease.wait()
