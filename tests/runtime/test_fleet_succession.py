"""An edit of a model that is in use: the new one is loaded before the old one goes."""

import anyio

from kvsup import events
from kvsup.errors import ModelNotFound
from kvsup.fitting import Asked
from kvsup.lifecycle import State
from kvsup.runtime.succession import RECENT_S
from tests.runtime.growing import STREAM, Holder, use
from tests.runtime.supervised import QUICK_RESTART, Folder, Running, reach, running, until
from tests.standin.script import LOAD, Steps, make_gate, n_starts, open_gate, write_script

NO_SUCH_ARGUMENT = 'extra_args = ["--poll", "much"]'


def edit(now: Running, folder: Folder, text: str) -> None:
    """Write the file of ``a`` anew and take it up."""
    folder.write(a=text)
    configuration = folder.read()
    now.fleet.replace(configuration.plans, configuration.host)


class Gated:
    """A model ``a`` whose second load waits for a gate."""

    def __init__(self, folder: Folder) -> None:
        self.gate = make_gate(folder.path / "gate")
        second: Steps = [["listen"], ["wait", str(self.gate)], ["ready"]]
        self.script = folder.path / "s.json"
        self._line = write_script(self.script, starts=[LOAD, second, LOAD])
        self._folder = folder
        folder.write(a=self.text())

    def text(self, rest: str = "") -> str:
        """Return its file with more in it."""
        return self._folder.standin(self._line, rest)


def kinds(now: Running) -> list[str]:
    """Return what happened to processes, in order."""
    told = (events.Spawned, events.Ready, events.Stopping, events.Stopped)
    return [type(event).__name__ for event in now.told if isinstance(event, told)]


async def test_old_one_serves_until_the_new_one_does(folder: Folder) -> None:
    """Nobody waits for the load: requests go to the old one, then to the new one."""
    gated = Gated(folder)

    async with running(folder.read()) as now:
        old = await use(now.fleet)
        edit(now, folder, gated.text("batch_size = 32"))
        new = now.fleet.instance("a")
        await reach(new, State.LOADING)

        assert await use(now.fleet) is old
        assert now.fleet.succeeded() == [old]

        await anyio.to_thread.run_sync(open_gate, gated.gate)
        await reach(old, State.STOPPED)
        assert await use(now.fleet) is new
        assert kinds(now) == ["Spawned", "Ready", "Spawned", "Ready", "Stopping", "Stopped"]


async def test_stream_on_the_old_one_ends_there_while_the_new_one_serves(folder: Folder) -> None:
    """It is drained, however long that takes."""
    folder.write(a="num_parallel = 2")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a") as old:
            upstream = await old.ready()
            async with upstream.stream("POST", "/completion", body=STREAM) as response:
                assert await response.read()
                edit(now, folder, "num_parallel = 2\nbatch_size = 32")
                new = now.fleet.instance("a")
                await reach(new, State.READY)

                assert await use(now.fleet) is new
                assert b'"stop":true' in await response.read_all()
            assert old.state is State.DRAINING
        await reach(old, State.STOPPED)


async def test_edit_that_cannot_be_loaded_takes_nothing_away(folder: Folder) -> None:
    """The new one has given up and says why; the old one serves as before."""
    folder.write(a=QUICK_RESTART)

    async with running(folder.read()) as now:
        old = await use(now.fleet)
        edit(now, folder, NO_SUCH_ARGUMENT)
        new = now.fleet.instance("a")
        await reach(new, State.FAILED)

        assert await use(now.fleet) is old
        assert now.of_kind(events.Stopping) == []

        edit(now, folder, "batch_size = 32")
        third = now.fleet.instance("a")
        await until(lambda: old.is_leaving or third.state is State.READY)
        assert (await use(now.fleet)).plan.model.batch_size == 32


async def test_without_memory_for_both_the_old_one_goes_first(folder: Folder) -> None:
    """What is loaded never exceeds what may be."""
    folder.host = "memory = '64GiB'\nmax_loaded_models = 1\n"
    folder.write(a="")

    async with running(folder.read()) as now:
        await use(now.fleet)
        edit(now, folder, "batch_size = 32")
        await use(now.fleet)

        assert kinds(now) == ["Spawned", "Ready", "Stopping", "Stopped", "Spawned", "Ready"]


async def test_model_that_was_not_used_lately_is_not_loaded_again(folder: Folder) -> None:
    """Its next request loads it, if one comes."""
    folder.write(a="")

    async with running(folder.read()) as now:
        old = await use(now.fleet)
        old.last_used_s -= RECENT_S
        edit(now, folder, "batch_size = 32")

        await reach(old, State.STOPPED)
        assert now.fleet.loaded() == []
        assert len(now.of_kind(events.Spawned)) == 1


async def test_edit_that_is_taken_back_in_the_load_leaves_the_old_one(folder: Folder) -> None:
    """What is configured again runs already."""
    gated = Gated(folder)

    async with running(folder.read()) as now:
        old = await use(now.fleet)
        edit(now, folder, gated.text("batch_size = 32"))
        second = now.fleet.instance("a")
        await reach(second, State.LOADING)

        edit(now, folder, gated.text())

        assert now.fleet.instance("a") is old
        assert await use(now.fleet) is old
        await until(lambda: now.fleet.loaded() == [old])
        assert not now.fleet.succeeded()
        assert second.state is State.STOPPED


async def test_edit_in_the_load_of_the_one_before_keeps_the_first_until_the_last_serves(
    folder: Folder,
) -> None:
    """Of three only the outer two ever serve."""
    gated = Gated(folder)

    async with running(folder.read()) as now:
        first = await use(now.fleet)
        edit(now, folder, gated.text("batch_size = 32"))
        second = now.fleet.instance("a")
        await until(lambda: n_starts(gated.script) == 2)

        edit(now, folder, gated.text("batch_size = 96"))

        assert await use(now.fleet) is first
        await reach(second, State.STOPPED)
        await until(lambda: now.fleet.instance("a").state is State.READY)
        third = await use(now.fleet)
        assert third.plan.model.batch_size == 96
        await until(lambda: now.fleet.loaded() == [third])


async def test_removal_while_the_new_one_loads_stops_both(folder: Folder) -> None:
    """A name that is gone is served by nobody."""
    gated = Gated(folder)

    async with running(folder.read()) as now:
        await use(now.fleet)
        edit(now, folder, gated.text("batch_size = 32"))
        await reach(now.fleet.instance("a"), State.LOADING)
        folder.write(b="")
        folder.remove("a")
        configuration = folder.read()

        now.fleet.replace(configuration.plans, configuration.host)

        await until(lambda: now.fleet.loaded() == [])
        told: list[str] = []
        try:
            await use(now.fleet)
        except ModelNotFound as error:
            told.append(error.name)
        assert told == ["a"]


async def test_growth_to_what_the_old_one_is_waits_for_its_place(folder: Folder) -> None:
    """A request may ask for the very plan that was edited away: one socket, one process."""
    folder.write(a="batch_size = 96")

    async with running(folder.read()) as now, now.fleet.lease("a") as old:
        await old.ready()
        edit(now, folder, "batch_size = 32")
        await reach(now.fleet.instance("a"), State.READY)
        holder = Holder(now.fleet, Asked(num_batch=96))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holder.run)
            await until(lambda: now.fleet.n_waiting == 1)
            assert now.fleet.waiting()[0].instance.key == old.key
            holder.may_leave.set()
            tasks.cancel_scope.cancel()
