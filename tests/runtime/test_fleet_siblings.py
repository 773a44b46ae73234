"""Several instances of one model: failures, stops, new configurations, turns, the end."""

from pathlib import Path

import anyio
import pytest

from kvsup import events
from kvsup.errors import CapacityError, InstanceFailed, RequestError
from kvsup.fitting import NOTHING, Asked
from kvsup.lifecycle import State
from tests.runtime.growing import LARGER, ONE, OTHER_PAIR, STREAM, Holder, n_spawned, use
from tests.runtime.scripted import scripted
from tests.runtime.supervised import QUICK_RESTART, Folder, Running, reach, running, until
from tests.standin.script import LOAD, Steps, log_of, make_gate, n_starts, open_gate, write_script

NO_MEMORY: Steps = (["log", *log_of("no_memory")], ["exit", 1])


async def test_growth_that_fails_is_told_once_tried_and_harms_nobody_else(folder: Folder) -> None:
    """Who asks for less is served as before; who asks for as much is told without a new try."""
    script = scripted(folder, LOAD, NO_MEMORY, LOAD)

    async with running(folder.read()) as now:
        base = await use(now.fleet)
        for _ in range(3):
            with pytest.raises(InstanceFailed):
                await use(now.fleet, LARGER)
            assert await use(now.fleet) is base

        assert base.failure is None
        assert n_starts(script) <= 3


async def test_growth_that_fails_does_not_fail_the_smaller_request_that_came_in_its_load(
    folder: Folder,
) -> None:
    """It asked for nothing that could not be had."""
    gate = make_gate(folder.path / "gate")
    failing = [["wait", str(gate)], *NO_MEMORY]
    scripted(folder, LOAD, failing, LOAD, rest="num_parallel = 2")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        base = await use(now.fleet)
        large, small = Holder(now.fleet, LARGER), Holder(now.fleet)
        tasks.start_soon(large.run)
        await until(lambda: n_spawned(now) == 2)
        tasks.start_soon(small.run)
        await until(lambda: now.fleet.n_waiting == 1 or small.served or _n_leases(now) == 2)

        open_gate(gate)

        await until(lambda: large.error)
        await until(lambda: small.error or small.served)
        small.may_leave.set()
        assert isinstance(large.error, InstanceFailed)
        assert small.error is None
        assert small.served is base


def _n_leases(now: Running) -> int:
    return sum(instance.leases for instance in now.fleet.instances())


async def test_growth_that_dies_in_its_load_is_given_up_at_once(folder: Folder) -> None:
    """What never served is not tried again at the cost of who was served before."""
    script = scripted(folder, LOAD, [["die", "SIGKILL"]], rest=QUICK_RESTART)

    async with running(folder.read()) as now:
        await use(now.fleet)

        with pytest.raises(InstanceFailed):
            await use(now.fleet, LARGER)

        assert n_starts(script) == 2


async def test_unload_reaches_every_instance_of_the_name(folder: Folder) -> None:
    """``kvsup stop NAME`` knows names, not pairs."""
    folder.write(a="", b="")

    async with running(folder.read()) as now:
        await use(now.fleet)
        await use(now.fleet, OTHER_PAIR)
        await use(now.fleet, Asked(kv_cache_type="q8_0:q5_1", num_ctx=512))
        kept = await use(now.fleet, name="b")

        assert now.fleet.unload("a", "a test")

        await until(lambda: now.fleet.loaded() == [kept])
        assert not now.fleet.unload("a", "a test")
        assert {i.plan.name for i in now.fleet.instances()} == {"a", "b"}
        assert len(now.fleet.instances()) == 2


async def test_reset_lets_a_failed_growth_be_tried_again(folder: Folder) -> None:
    """An operator who made room says so once for the name."""
    scripted(folder, NO_MEMORY, LOAD)

    async with running(folder.read()) as now:
        with pytest.raises(InstanceFailed):
            await use(now.fleet, LARGER)

        now.fleet.reset("a")

        assert len(now.fleet.instances()) == 1
        assert (await use(now.fleet, LARGER)).plan.model.num_ctx == 512


async def test_replace_without_an_edit_keeps_what_requests_made(folder: Folder) -> None:
    """Neither the larger one nor the other pair is touched."""
    folder.write(a="")

    async with running(folder.read()) as now:
        larger, other = await use(now.fleet, LARGER), await use(now.fleet, OTHER_PAIR)

        configuration = folder.read()
        now.fleet.replace(configuration.plans, configuration.host)

        assert await use(now.fleet) is larger
        assert await use(now.fleet, OTHER_PAIR) is other
        assert now.of_kind(events.Stopping) == []


async def test_replace_after_an_edit_drains_what_requests_made(folder: Folder) -> None:
    """A stream on the larger one ends well, then it goes; new requests meet the new file."""
    folder.write(a="")

    async with running(folder.read()) as now:
        other = await use(now.fleet, OTHER_PAIR)
        async with now.fleet.lease("a", asked=LARGER) as larger:
            upstream = await larger.ready()
            async with upstream.stream("POST", "/completion", body=STREAM) as response:
                assert await response.read()
                folder.write(a="batch_size = 32")
                configuration = folder.read()

                now.fleet.replace(configuration.plans, configuration.host)

                new = await use(now.fleet)
                assert (new.plan.model.batch_size, new.plan.model.num_ctx) == (32, 256)
                assert b'"stop":true' in await response.read_all()
            assert larger.state is State.DRAINING
        await reach(larger, State.STOPPED)
        await reach(other, State.STOPPED)
        assert now.fleet.loaded() == [new]


async def test_replace_while_a_growth_waits_serves_it_by_the_new_file(folder: Folder) -> None:
    """Who waits for more gets it on the settings that are now."""
    folder.host = ONE
    folder.write(a="")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        waiting = Holder(now.fleet, LARGER)
        async with now.fleet.lease("a") as base:
            await base.ready()
            tasks.start_soon(waiting.run)
            await until(lambda: now.fleet.n_waiting == 1)
            folder.write(a='kv_cache_type = "q8_0"')
            configuration = folder.read()

            now.fleet.replace(configuration.plans, configuration.host)

        await until(lambda: waiting.served)
        waiting.may_leave.set()
        model = now.fleet.loaded()[0].plan.model
        assert (model.num_ctx, str(model.kv_cache_type)) == (512, "q8_0:q8_0")


async def test_pinned_model_grows_in_its_own_place(folder: Folder) -> None:
    """A pin keeps others from taking the place, not the model itself; the larger one is pinned."""
    folder.host = ONE
    folder.write(a="pin = true", b="")

    async with running(folder.read()) as now:
        await use(now.fleet)
        larger = await use(now.fleet, LARGER)
        assert now.fleet.loaded() == [larger]

        with pytest.raises(CapacityError):
            await use(now.fleet, name="b")
        with pytest.raises(CapacityError):
            await use(now.fleet, OTHER_PAIR)

        assert await use(now.fleet) is larger


async def test_two_pairs_with_room_for_one_take_turns(folder: Folder) -> None:
    """Each is served each time, and never are two loaded."""
    folder.host = ONE
    folder.write(a="")

    async with running(folder.read()) as now:
        for asked, pair in [(OTHER_PAIR, "q8_0:q5_1"), (NOTHING, "f16:f16")] * 2:
            served = await use(now.fleet, asked)

            assert str(served.plan.model.kv_cache_type) == pair
            assert now.fleet.loaded() == [served]

        assert n_spawned(now) == 4
        assert len(now.of_kind(events.Stopped)) == 3


async def test_two_pairs_with_room_for_one_that_come_together_are_both_served(
    folder: Folder,
) -> None:
    """Neither starves the other."""
    folder.host = ONE
    folder.write(a="")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(use, now.fleet, OTHER_PAIR)
            tasks.start_soon(use, now.fleet, NOTHING)


async def test_clamp_serves_the_smaller_and_refuse_says_why(folder: Folder) -> None:
    """Both leave what runs as it is."""
    folder.write(a='on_bigger_request = "clamp"', b='on_bigger_request = "refuse"')

    async with running(folder.read()) as now:
        clamped, base = await use(now.fleet, LARGER), await use(now.fleet, name="b")

        with pytest.raises(RequestError, match="512 is more than the 256"):
            await use(now.fleet, LARGER, name="b")

        assert clamped.plan.model.num_ctx == 256
        assert await use(now.fleet, name="b") is base
        assert n_spawned(now) == 2
        assert now.fleet.n_waiting == 0


async def test_close_ends_every_pair_and_a_growth_in_its_load(
    folder: Folder, tmp_path: Path
) -> None:
    """No process is left, whoever asked for it; ``running`` counts them."""
    script = write_script(tmp_path / "s.json", starts=[LOAD, LOAD, [["listen"], ["hang"]]])
    folder.write(a=folder.standin(script))

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        await use(now.fleet)
        await use(now.fleet, OTHER_PAIR)
        growth = Holder(now.fleet, LARGER)
        tasks.start_soon(growth.run)
        await until(lambda: n_spawned(now) == 3)

        now.fleet.close(drain_s=0.0)

        await until(lambda: growth.error)
        await until(lambda: now.fleet.loaded() == [])
