"""A fleet whose clients ask for different load-time options: who gets what, and at whose cost."""

from collections.abc import Sequence

import anyio
import pytest

from kvsup import events
from kvsup.errors import CapacityError, QueueFull
from kvsup.fitting import NOTHING, Asked
from tests.runtime.growing import (
    LARGER,
    LARGEST,
    ONE,
    OTHER_PAIR,
    STREAM,
    Holder,
    n_spawned,
    size_bytes,
    standin_models,
    use,
)
from tests.runtime.scripted import pid_of, scripted
from tests.runtime.supervised import Folder, running, until
from tests.standin.script import LOAD, make_gate, open_gate


@pytest.mark.parametrize(
    "clients",
    [
        (LARGER, LARGEST),
        (NOTHING, LARGER),
        (LARGER, Asked(num_thread=2)),
        (Asked(num_batch=32), Asked(num_batch=96, num_ctx=300)),
        (NOTHING, OTHER_PAIR),
        (Asked(num_gpu=0), Asked(num_gpu=5), Asked(use_mmap=False)),
        (LARGER, Asked(num_ctx=512, kv_cache_type="q4_0"), Asked(num_ctx=768)),
    ],
)
async def test_clients_that_differ_once_served_start_no_process(
    folder: Folder, clients: Sequence[Asked]
) -> None:
    """Turn by turn, without a pause between, each is served by what is there."""
    folder.write(a="")

    async with running(folder.read()) as now:
        for asked in clients:
            await use(now.fleet, asked)
        before = n_spawned(now)

        for asked in [*clients] * 3:
            await use(now.fleet, asked)

        assert n_spawned(now) == before <= len(clients)


async def test_clients_that_differ_and_come_together_are_all_served(folder: Folder) -> None:
    """A crowd costs at most one load for each wish, and then none."""
    folder.write(a="num_parallel = 2")
    crowd = [NOTHING, LARGER, LARGEST, Asked(num_thread=2), OTHER_PAIR] * 6

    async with running(folder.read()) as now:
        async with anyio.create_task_group() as tasks:
            for asked in crowd:
                tasks.start_soon(use, now.fleet, asked)
        before = n_spawned(now)

        for asked in crowd:
            await use(now.fleet, asked)

        assert before <= 5
        assert n_spawned(now) == before


async def test_growth_keeps_the_running_stream_until_its_end(folder: Folder) -> None:
    """The larger one loads and serves while the old one ends what it began."""
    folder.write(a="")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a") as old:
            upstream = await old.ready()
            async with upstream.stream("POST", "/completion", body=STREAM) as response:
                assert await response.read()

                larger = await use(now.fleet, LARGER)

                assert larger is not old
                assert larger.plan.model.num_ctx == 512
                rest = await response.read_all()
            assert b'"stop":true' in rest
            assert old.is_leaving
        await until(lambda: now.fleet.loaded() == [larger])


async def test_growth_while_the_old_one_streams_serves_smaller_requests_too(folder: Folder) -> None:
    """Nobody waits for the old one's last stream."""
    folder.write(a="")

    async with running(folder.read()) as now, now.fleet.lease("a") as old:
        await old.ready()
        larger = await use(now.fleet, LARGER)

        assert await use(now.fleet) is larger


async def test_growth_twice_while_the_middle_one_streams_serves_smaller_requests_too(
    folder: Folder,
) -> None:
    """It is the largest that serves, not the first that was larger than the file."""
    folder.write(a="")

    async with running(folder.read()) as now, now.fleet.lease("a", asked=LARGER) as middle:
        await middle.ready()
        largest = await use(now.fleet, LARGEST)
        served = Holder(now.fleet)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served.run)

            await until(lambda: served.served or now.fleet.n_waiting)

            assert now.fleet.n_waiting == 0
            await until(lambda: served.served is largest)
            served.may_leave.set()


async def test_growth_that_can_never_fit_is_refused_and_stops_nothing(folder: Folder) -> None:
    """The one that runs goes on, in the same process, and serves who asks for what it has."""
    folder.write(a="")
    plan = folder.plan("a")
    folder.host = f"memory = '{size_bytes(plan, num_ctx=4096)}B'\n"

    async with running(folder.read()) as now:
        base = await use(now.fleet)
        pid = pid_of(base)

        for _ in range(3):
            with pytest.raises(CapacityError, match="num_ctx"):
                await use(now.fleet, Asked(num_ctx=8192))

        assert now.of_kind(events.Stopping) == []
        assert now.fleet.instances() == [base]
        assert await use(now.fleet) is base
        assert pid_of(base) == pid


async def test_growth_beyond_what_is_free_is_refused_and_stops_nothing(folder: Folder) -> None:
    """With ``memory = "auto"`` a model alone may try; one that replaces what runs may not."""
    folder.host = "memory_headroom = '1000TiB'\n"
    folder.write(a="")

    async with running(folder.read()) as now:
        base = await use(now.fleet)

        with pytest.raises(CapacityError):
            await use(now.fleet, Asked(num_ctx=8192))

        assert now.of_kind(events.Stopping) == []
        assert await use(now.fleet) is base


async def test_growth_that_fits_only_in_the_place_of_the_old_one_takes_it(folder: Folder) -> None:
    """Memory for one is enough: the old one is reaped first."""
    standin_models(folder, "a")
    folder.host = f"memory = '{size_bytes(folder.plan('a'), num_ctx=512)}B'\n"

    async with running(folder.read()) as now:
        await use(now.fleet)
        larger = await use(now.fleet, LARGER)

        kinds = [type(event).__name__ for event in now.told]
        assert kinds == ["Spawned", "Ready", "Stopping", "Stopped", "Spawned", "Ready"]
        assert now.fleet.loaded() == [larger]


async def test_growth_that_waits_for_another_model_lets_smaller_requests_be_served(
    folder: Folder,
) -> None:
    """What runs is there for who asks for no more, as long as it is not in the way."""
    standin_models(folder, "a", "b")
    small, large = (size_bytes(folder.plan("a"), num_ctx=n) for n in (256, 8192))
    folder.host = f"memory = '{large + small // 2}B'\n"
    assert 2 * small < large + small // 2

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        base = await use(now.fleet)
        other, large_one, small_one = (
            Holder(now.fleet, name="b"),
            Holder(now.fleet, Asked(num_ctx=8192)),
            Holder(now.fleet),
        )
        tasks.start_soon(other.run)
        await until(lambda: other.served)
        tasks.start_soon(large_one.run)
        await until(lambda: now.fleet.n_waiting == 1)
        tasks.start_soon(small_one.run)

        await until(lambda: small_one.served or now.fleet.n_waiting == 2)
        served = small_one.served

        for holder in (small_one, other, large_one):
            holder.may_leave.set()
        await until(lambda: large_one.served)
        assert served is base


async def test_growth_whose_client_leaves_the_queue_leaves_no_trace(folder: Folder) -> None:
    """The old one neither stops nor drains, and nothing is loaded for nobody."""
    folder.host = ONE
    folder.write(a="num_parallel = 2")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a") as base, anyio.create_task_group() as tasks:
            await base.ready()
            tasks.start_soon(use, now.fleet, LARGER)
            await until(lambda: now.fleet.n_waiting == 1)

            tasks.cancel_scope.cancel()

        assert now.fleet.n_waiting == 0
        assert now.fleet.instances() == now.fleet.loaded() == [base]
        assert await use(now.fleet) is base
        assert n_spawned(now) == 1
        assert now.of_kind(events.Stopping) == []


async def test_growth_whose_client_leaves_in_the_load_ends_and_serves_the_next(
    folder: Folder,
) -> None:
    """A load that has begun is of the model, not of the client; no lease is left behind."""
    gate = make_gate(folder.path / "gate")
    scripted(folder, LOAD, [["listen"], ["wait", str(gate)], ["ready"]])

    async with running(folder.read()) as now:
        await use(now.fleet)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use, now.fleet, LARGER)
            await until(lambda: n_spawned(now) == 2)
            tasks.cancel_scope.cancel()
        (larger,) = (i for i in now.fleet.instances() if i.plan.model.num_ctx == 512)
        assert larger.leases == 0

        open_gate(gate)

        assert await use(now.fleet, LARGER) is larger
        assert n_spawned(now) == 2


async def test_growth_beyond_the_queue_is_refused_and_leaves_no_trace(folder: Folder) -> None:
    """A full queue is told to a client that asks for more as to any other."""
    folder.host = f"{ONE}max_queue = 0\n"
    folder.write(a="")

    async with running(folder.read()) as now, now.fleet.lease("a") as base:
        await base.ready()

        with pytest.raises(QueueFull):
            await use(now.fleet, LARGER)

        assert now.fleet.instances() == [base]
        assert not base.is_leaving


async def test_growth_ends_with_the_process(folder: Folder) -> None:
    """Once the larger one was unloaded, the file's settings are loaded again."""
    folder.write(a="")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a", asked=LARGER, keep_alive_s=0.0) as larger:
            await larger.ready()
        await until(lambda: not now.fleet.loaded())

        base = await use(now.fleet)

        assert base.plan.model.num_ctx == 256
        assert now.fleet.instances() == [base]


async def test_growth_that_is_being_unloaded_is_not_loaded_again_for_less(folder: Folder) -> None:
    """Who comes while it stops, and asks for nothing, is served as the file says."""
    folder.write(a="")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        waiting = Holder(now.fleet)
        async with now.fleet.lease("a", asked=LARGER) as larger:
            await larger.ready()
            now.fleet.unload("a", "a test")
            tasks.start_soon(waiting.run)
            await until(lambda: now.fleet.n_waiting or n_spawned(now) == 2)
        await until(lambda: waiting.served)
        waiting.may_leave.set()

    assert waiting.served is not None
    assert waiting.served.plan.model.num_ctx == 256
