"""The end of one instance: polite, drained, forced, in a load or in a backoff."""

import os
import signal
from pathlib import Path

import pytest

from kvsup.errors import InstanceError, UpstreamError
from kvsup.lifecycle import State
from tests.runtime.scripted import files_of, pid_of, scripted
from tests.runtime.supervised import (
    QUICK_RESTART,
    Folder,
    owned,
    processes_with,
    reach,
    until,
)
from tests.standin.script import LOAD, Steps, n_starts


async def test_stop_of_the_real_one_ends_politely_and_unlinks(folder: Folder) -> None:
    """The exit line ends it; socket and record are gone, and memory is counted free."""
    folder.write(a="")

    async with owned(folder.plan("a")) as instance:
        await instance.ready()
        await until(lambda: "all slots are idle" in "\n".join(instance.logbook.tail(1000)))
        instance.stop("asked")
        await reach(instance, State.STOPPED)

    assert processes_with(instance.plan.socket) == []
    assert files_of(instance) == []
    assert instance.snapshot().n_deaths == 0
    assert instance._tenure is not None
    assert instance._tenure.child.returncode == 0


async def test_stop_whose_exit_line_is_lost_ends_by_sigterm(folder: Folder) -> None:
    """b11434 loses an exit line that it reads right after ``ready``; one SIGTERM ends it then."""
    scripted(folder, [["ignore", "exit line"], *LOAD], rest='stop_timeout = "10s"')

    async with owned(folder.plan("a")) as instance:
        await instance.ready()
        instance.stop("asked")
        await reach(instance, State.STOPPED)

    assert instance._tenure is not None
    assert instance._tenure.child.returncode == 0


async def test_stop_while_loading_ends_the_load_and_tells_the_waiter(folder: Folder) -> None:
    """A load is stopped by SIGTERM; it is no crash, and nobody waits for ever."""
    scripted(folder, [["listen"], ["stage", 0.0], ["hang"]])

    async with owned(folder.plan("a")) as instance:
        await until(lambda: Path(instance.plan.socket).exists())
        instance.stop("asked")
        with pytest.raises(InstanceError, match="was stopped: asked"):
            await instance.ready()
        await reach(instance, State.STOPPED)

    assert instance._tenure is not None
    assert instance._tenure.child.returncode == -signal.SIGTERM
    assert instance.snapshot().n_deaths == 0


@pytest.mark.parametrize(
    "steps",
    [
        [["ignore", "SIGTERM"], ["listen"], ["stage", 0.0], ["hang"]],
        [["ignore", "SIGTERM"], ["ignore", "exit line"], *LOAD],
        [["ignore", "SIGTERM"], ["grandchild"], ["ignore", "exit line"], *LOAD],
    ],
)
async def test_stop_of_one_that_ignores_every_polite_word_kills_its_session(
    folder: Folder, steps: Steps
) -> None:
    """After ``stop_timeout`` SIGKILL goes to all of it; the next start finds a clean place."""
    scripted(folder, steps, rest="stop_timeout = 0.05")

    async with owned(folder.plan("a")) as instance:
        await until(lambda: Path(instance.plan.socket).exists())
        if steps[-1] == ["ready"]:
            await instance.ready()
        instance.stop("asked")
        await reach(instance, State.STOPPED)

    assert instance._tenure is not None
    assert instance._tenure.child.returncode == -signal.SIGKILL
    await until(lambda: processes_with(instance.plan.socket) == [])
    assert files_of(instance) == []


async def test_stop_with_a_lease_drains_first(folder: Folder) -> None:
    """While one holds a lease it goes on serving; it stops with the last one."""
    folder.write(a="")

    async with owned(folder.plan("a")) as instance:
        upstream = await instance.ready()
        instance.leases = 1
        instance.stop("asked")
        await reach(instance, State.DRAINING)
        assert (await upstream.fetch("GET", "/health"))[0] == 200

        instance.leases = 0
        instance.notify()

        await reach(instance, State.STOPPED)


async def test_stop_whose_drain_time_is_over_cuts_the_stream(folder: Folder) -> None:
    """After the drain the connections are closed, so that the process can end politely."""
    folder.write(a="")
    body = b'{"prompt": "Count: 1 2 3", "stream": true, "n_predict": 250, "ignore_eos": true}'

    async with owned(folder.plan("a")) as instance:
        upstream = await instance.ready()
        instance.leases = 1
        async with upstream.stream("POST", "/completion", body=body) as response:
            assert await response.read()
            instance.stop("asked", drain_s=0.0)

            with pytest.raises(UpstreamError):
                await response.read_all()
        await reach(instance, State.STOPPED)

    assert instance._tenure is not None
    assert instance._tenure.child.returncode == 0


async def test_crash_while_draining_is_restarted_for_those_who_hold_a_lease(
    folder: Folder,
) -> None:
    """Their requests are answered by the next process, which stops when they are done."""
    script = scripted(folder, LOAD, rest=QUICK_RESTART)

    async with owned(folder.plan("a")) as instance:
        broken = await instance.ready()
        instance.leases = 1
        instance.stop("asked")
        await reach(instance, State.DRAINING)
        os.kill(pid_of(instance), signal.SIGKILL)

        await instance.end_of(broken)
        assert await instance.ready() is not broken
        instance.leases = 0
        instance.notify()
        await reach(instance, State.STOPPED)

    assert n_starts(script) == 2


async def test_stop_in_backoff_ends_it_at_once(folder: Folder) -> None:
    """An instance that waits to be restarted has no process to wait for."""
    scripted(folder, [["exit", 1]], rest="[restart]\nmin_delay = 3600\nmax_delay = 3600")

    async with owned(folder.plan("a")) as instance:
        await reach(instance, State.BACKOFF)
        instance.stop("asked")

        await reach(instance, State.STOPPED)


async def test_stop_in_backoff_with_a_lease_ends_when_the_drain_time_is_over(
    folder: Folder,
) -> None:
    """The deadline of a shutdown holds in a backoff, too; its waiter is told."""
    scripted(folder, [["exit", 1]], rest="[restart]\nmin_delay = 3600\nmax_delay = 3600")

    async with owned(folder.plan("a")) as instance:
        await reach(instance, State.BACKOFF)
        instance.leases = 1
        instance.stop("asked", drain_s=0.05)

        with pytest.raises(InstanceError, match="was stopped"):
            await instance.ready()
        await reach(instance, State.STOPPED)
