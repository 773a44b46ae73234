"""A bug in kvsup costs one process at most, whose end is one like any other."""

import os
import signal
from contextlib import suppress

import pytest

from kvsup import events
from kvsup.errors import InstanceFailed, UpstreamError
from kvsup.lifecycle import State
from kvsup.restart import ExitCause
from kvsup.runtime import watch
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.tenure import Tenure
from tests.runtime.scripted import files_of, pid_of
from tests.runtime.supervised import QUICK_RESTART, Folder, is_alive, running, until

pytestmark = pytest.mark.anyio

BUG = RuntimeError("as no line should do")


def fail(*_: object, **__: object) -> None:
    """Be a bug."""
    raise BUG


async def test_bug_in_reading_what_it_tells_is_a_death_like_any_other(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is ended, its upstream is handed out no more, and the next one serves."""
    folder.write(a=QUICK_RESTART)

    async with running(folder.read()) as now, now.fleet.lease("a") as instance:
        broken = await instance.ready()
        pid = pid_of(instance)
        with monkeypatch.context() as patch:
            patch.setattr(watch, "scan", fail)
            with suppress(UpstreamError):  # it may break off, or be answered
                await broken.fetch("POST", "/completion", body=b'{"prompt": "Hi", "n_predict": 1}')
            await until(lambda: broken.end)
        end = await instance.end_of(broken)

        assert end is not None
        assert (end.cause, end.returncode) == (ExitCause.BUG, -signal.SIGKILL)
        assert repr(BUG) in end.detail
        assert end.ready_for_s
        assert not is_alive(pid)
        assert await instance.ready() is not broken
        (died,) = now.of_kind(events.Died)
        assert isinstance(died, events.Died)
        assert died.cause == "BUG"


async def test_bug_while_it_is_stopped_leaves_nothing_behind(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped all the same."""
    folder.write(a="")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a") as instance:
            await instance.ready()
        pid = pid_of(instance)
        with monkeypatch.context() as patch:
            patch.setattr(Tenure, "stop", fail)
            instance.stop("asked")
            await until(lambda: instance.state is State.STOPPED)

    assert not is_alive(pid)
    assert files_of(instance) == []


async def test_bug_in_a_start_is_told_to_who_waits_until_it_is_reset(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not known to end with a process is not tried again and again."""
    folder.write(a="", b="")

    async with running(folder.read()) as now, now.fleet.lease("b") as other:
        serves = await other.ready()
        with monkeypatch.context() as patch:
            patch.setattr(Tenure, "begin", fail)
            with pytest.raises(InstanceFailed, match="internal error"):
                async with now.fleet.lease("a") as instance:
                    await instance.ready()
        assert len(now.of_kind(events.GaveUp)) == 1
        now.fleet.reset("a")

        async with now.fleet.lease("a") as instance:
            await instance.ready()
        assert await other.ready() is serves


async def test_bug_in_scheduling_ends_nothing_that_serves(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that dies meanwhile comes back, and who waited is served afterwards."""
    folder.write(a=QUICK_RESTART, b="")

    async with running(folder.read()) as now, now.fleet.lease("a") as instance:
        broken = await instance.ready()
        with monkeypatch.context() as patch:
            patch.setattr(Fleet, "_schedule", fail)
            os.kill(pid_of(instance), signal.SIGKILL)
            await until(lambda: broken.end)
            await instance.ready()
            with pytest.raises(RuntimeError, match=str(BUG)):
                async with now.fleet.lease("b"):
                    pass
        async with now.fleet.lease("b") as other:
            await other.ready()
        (died,) = now.of_kind(events.Died)
        assert isinstance(died, events.Died)
        assert died.cause == "KILLED"
