"""Requests that take several slots at once, as those for several answers do."""

import anyio

from tests.runtime.supervised import Folder, running, until


async def test_request_for_several_slots_is_not_overtaken_for_ever(folder: Folder) -> None:
    """It waits for as many as are busy when it comes, and not for those that come later."""
    folder.write(a="num_parallel = 3")
    order: list[str] = []

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        gates = {name: anyio.Event() for name in ("first", "second", "many", "late")}

        async def hold(name: str, slots: int) -> None:
            async with now.fleet.lease("a", slots=slots) as instance:
                await instance.ready()
                order.append(name)
                await gates[name].wait()

        for name in ("first", "second"):
            tasks.start_soon(hold, name, 1)
        await until(lambda: len(order) == 2)
        tasks.start_soon(hold, "many", 3)
        await until(lambda: now.fleet.n_waiting == 1)
        tasks.start_soon(hold, "late", 1)
        await until(lambda: now.fleet.n_waiting == 2)
        for name in ("first", "second"):
            gates[name].set()
        await until(lambda: "many" in order)
        assert "late" not in order
        gates["many"].set()
        await until(lambda: "late" in order)
        gates["late"].set()
