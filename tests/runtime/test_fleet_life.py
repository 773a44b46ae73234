"""How long a model stays, and what follows when it is unloaded, crashes or gives up."""

import math
import os
import signal
import time

import anyio
import pytest

from kvsup import events
from kvsup.errors import InstanceError, InstanceFailed
from kvsup.lifecycle import State
from kvsup.runtime.fleet import Fleet
from tests.runtime.clients import Client
from tests.runtime.supervised import QUICK_RESTART, Folder, reach, running, until
from tests.standin.script import LOAD, write_script

ONE = "memory = '64GiB'\nmax_loaded_models = 1\n"


async def test_keep_alive_of_zero_unloads_after_the_request(folder: Folder) -> None:
    """The request's own keep_alive counts, from its end on."""
    folder.write(a="")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a", keep_alive_s=0.0) as instance:
            await instance.ready()
            assert not instance.is_leaving

        await until(lambda: now.fleet.loaded() == [])
        assert [e.why for e in now.told if isinstance(e, events.Stopping)] == ["idle"]


async def test_keep_alive_of_a_number_unloads_that_long_after_the_last_request(
    folder: Folder,
) -> None:
    """It is counted from the end of the last request, not from the load."""
    folder.write(a="keep_alive = 0.2")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a") as instance:
            await instance.ready()
            left_s = time.monotonic()

        assert left_s + 0.2 <= instance.idle_until_s <= time.monotonic() + 0.2
        await until(lambda: now.fleet.loaded() == [])
        assert time.monotonic() >= left_s + 0.2


async def test_keep_alive_of_minus_one_never_ends_but_makes_room(folder: Folder) -> None:
    """For ever means until another model needs the place."""
    folder.host = ONE
    folder.write(a='keep_alive = "-1"', b="")

    async with running(folder.read()) as now:
        await Client(now.fleet, "a").pass_by()
        assert math.isinf(now.fleet.instance("a").idle_until_s)

        await Client(now.fleet, "b").pass_by()

        assert [i.plan.name for i in now.fleet.loaded()] == ["b"]


async def test_request_while_its_model_is_unloaded_gets_a_new_process(folder: Folder) -> None:
    """A stop that is under way is not taken back: the request waits for the next start."""
    folder.write(a="")

    async with running(folder.read()) as now:
        await Client(now.fleet, "a").pass_by()
        assert now.fleet.unload("a", "asked")

        client = Client(now.fleet, "a")
        await client.pass_by()

        assert client.has_lease.is_set()
        assert len(now.of_kind(events.Spawned)) == 2


async def test_crash_between_requests_is_mended_before_the_next(folder: Folder) -> None:
    """Nobody sees it; the model is in memory again by itself."""
    folder.write(a=QUICK_RESTART)

    async with running(folder.read()) as now:
        await Client(now.fleet, "a").pass_by()
        instance = now.fleet.instance("a")
        os.kill(instance.snapshot().pid or 0, signal.SIGKILL)

        await until(lambda: len(now.of_kind(events.Ready)) == 2)

        await Client(now.fleet, "a").pass_by()
        assert len(now.of_kind(events.Spawned)) == 2


async def test_failed_model_tells_waiters_and_newcomers_and_others_are_served(
    folder: Folder,
) -> None:
    """A model that has given up answers at once with its cause, until it is reset."""
    folder.write(a='extra_args = ["--poll", "much"]', b="")

    async with running(folder.read()) as now:
        clients = [Client(now.fleet, "a") for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(client.pass_by)
        late = Client(now.fleet, "a")
        await late.pass_by()
        await Client(now.fleet, "b").pass_by()

        for client in (*clients, late):
            assert isinstance(client.error, InstanceFailed)
            assert 'error while handling argument "--poll"' in str(client.error)
        assert len(now.of_kind(events.GaveUp)) == 1


async def test_reset_of_a_failed_model_starts_it_at_the_next_request(folder: Folder) -> None:
    """What was wrong outside may have been mended."""
    script = write_script(folder.path / "s.json", starts=[[["exit", 1]], LOAD])
    folder.write(a=folder.standin(script, '[restart]\npolicy = "never"'))

    async with running(folder.read()) as now:
        failed, again = Client(now.fleet, "a"), Client(now.fleet, "a")
        await failed.pass_by()
        assert isinstance(failed.error, InstanceFailed)

        now.fleet.reset("a")
        await again.pass_by()

        assert again.has_lease.is_set()


async def test_preload_loads_at_the_start(folder: Folder) -> None:
    """Without any request."""
    folder.write(a="preload = true", b="")

    async with running(folder.read()) as now:
        await reach(now.fleet.instance("a"), State.READY)

        assert now.fleet.instance("b").state is State.STOPPED


@pytest.mark.parametrize("is_asked_for", [True, False])
async def test_model_that_never_becomes_ready_starves_no_other(
    folder: Folder, *, is_asked_for: bool
) -> None:
    """Killed from outside in each load it is never given up, asked for again and again, or kept."""
    folder.host = ONE
    line = write_script(
        folder.path / "s.json", starts=[[["listen"], ["stage", 0.0], ["die", "SIGKILL"]]]
    )
    preload = "" if is_asked_for else "preload = true\n"
    folder.write(a=folder.standin(f"restart_wait = 1\n{preload}{line}", QUICK_RESTART), b="")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        if is_asked_for:
            tasks.start_soon(_ask_again_and_again, now.fleet, 0.0)
            tasks.start_soon(_ask_again_and_again, now.fleet, 0.5)
        await until(lambda: len(now.of_kind(events.Died)) > 1)

        async with now.fleet.lease("b") as instance:
            await instance.ready()

        assert not now.of_kind(events.GaveUp)
        tasks.cancel_scope.cancel()


async def _ask_again_and_again(fleet: Fleet, first_s: float) -> None:
    """Want ``a``, which never serves, so that with another client someone always does."""
    await anyio.sleep(first_s)
    while True:
        with pytest.raises(InstanceError, match="did not come back"):
            async with fleet.lease("a") as instance:
                await instance.ready()
