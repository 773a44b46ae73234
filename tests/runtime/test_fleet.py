"""All instances together: who is loaded, who waits, who must go. Real llama-servers."""

import time
from functools import partial

import anyio
import pytest

from kvsup import events
from kvsup.errors import CapacityError, ModelNotFound, QueueFull
from kvsup.lifecycle import State
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.learning import sizes_of
from tests.runtime.clients import Client
from tests.runtime.supervised import Folder, reach, running, until
from tests.standin.script import LOAD, Steps, make_gate, open_gate, write_script

ONE = "memory = '64GiB'\nmax_loaded_models = 1\n"


def has_waiting(fleet: Fleet, n_waiting: int) -> bool:
    """Say whether so many requests wait."""
    return fleet.n_waiting == n_waiting


async def test_lease_of_an_unknown_name_is_refused(folder: Folder) -> None:
    """A name that nothing has is the client's mistake, told at once."""
    folder.write(a="")

    async with running(folder.read()) as now:
        with pytest.raises(ModelNotFound, match="'nope'"):
            async with now.fleet.lease("nope"):
                pass


async def test_lease_by_alias_and_in_another_case_reaches_the_same_instance(folder: Folder) -> None:
    """Names are found as Ollama finds them."""
    folder.write(a='aliases = ["other"]')

    async with running(folder.read()) as now:
        assert now.fleet.instance("OTHER:latest") is now.fleet.instance("A")


async def test_two_hundred_clients_on_one_cold_model_cause_one_load(folder: Folder) -> None:
    """A load is of the instance, whoever asked first; each of the clients is served."""
    folder.write(a="num_parallel = 4")

    async with running(folder.read()) as now:
        clients = [Client(now.fleet, "a") for _ in range(200)]
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(client.pass_by)

        assert all(client.has_lease.is_set() for client in clients)
        assert len(now.of_kind(events.Spawned)) == 1


async def test_slots_bound_how_many_are_served_at_once(folder: Folder) -> None:
    """``num_parallel`` leases at once, the next waits for one of them."""
    folder.write(a="num_parallel = 2")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        first, second, third = (Client(now.fleet, "a") for _ in range(3))
        for client in (first, second, third):
            tasks.start_soon(client.run)
        await first.has_lease.wait()
        await second.has_lease.wait()
        assert now.fleet.n_waiting == 1
        assert now.fleet.instance("a").busy_slots == 2

        first.may_leave.set()

        await third.has_lease.wait()
        second.may_leave.set()
        third.may_leave.set()


async def test_lease_without_a_slot_is_granted_while_all_slots_are_busy(folder: Folder) -> None:
    """Calls such as ``/props`` take no slot and wait for nobody."""
    folder.write(a="")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        client = Client(now.fleet, "a")
        tasks.start_soon(client.run)
        await client.has_lease.wait()

        async with now.fleet.lease("a", slots=0) as instance:
            assert instance.leases == 2

        client.may_leave.set()


async def test_admission_with_room_for_one_evicts_the_idle_model(folder: Folder) -> None:
    """The idle one goes, is reaped first, and only then the new one is spawned."""
    folder.host = ONE
    folder.write(a="", b="")

    async with running(folder.read()) as now:
        await Client(now.fleet, "a").pass_by()
        await Client(now.fleet, "b").pass_by()

        kinds = [
            (type(e).__name__, e.model)
            for e in now.told
            if isinstance(e, events.Spawned | events.Ready | events.Stopping | events.Stopped)
        ]
        assert kinds == [
            ("Spawned", "a"),
            ("Ready", "a"),
            ("Stopping", "a"),
            ("Stopped", "a"),
            ("Spawned", "b"),
            ("Ready", "b"),
        ]
        assert [i.plan.name for i in now.fleet.loaded()] == ["b"]


async def test_admission_after_a_pause_evicts_the_idle_model(folder: Folder) -> None:
    """A fleet that sleeps until something is due looks earlier where a request makes it so."""
    folder.host = ONE
    folder.write(a="", b="")

    async with running(folder.read()) as now:
        await Client(now.fleet, "a").pass_by()
        await anyio.wait_all_tasks_blocked()

        await Client(now.fleet, "b").pass_by()

        assert [i.plan.name for i in now.fleet.loaded()] == ["b"]


async def test_admission_with_room_for_two_evicts_the_least_recently_used(folder: Folder) -> None:
    """Use, not load, decides who goes."""
    folder.host = "memory = '64GiB'\nmax_loaded_models = 2\n"
    folder.write(a="", b="", c="")

    async with running(folder.read()) as now:
        for name in ("a", "b", "a"):
            await Client(now.fleet, name).pass_by()
        for instance in now.fleet.loaded():
            instance.measured.load_s = 1.0  # what their return costs decides, too
            instance.descent.keep(instance.plan, sizes_of(instance.plan, instance.measured))
        await Client(now.fleet, "c").pass_by()

        assert {i.plan.name for i in now.fleet.loaded()} == {"a", "c"}


async def test_admission_beside_a_leased_model_waits_for_it(folder: Folder) -> None:
    """A model that serves is never evicted; the other is loaded once it is idle."""
    folder.host = ONE
    folder.write(a="", b="")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        first, second = Client(now.fleet, "a"), Client(now.fleet, "b")
        tasks.start_soon(first.run)
        await first.has_lease.wait()
        tasks.start_soon(second.run)
        await until(lambda: now.fleet.n_waiting == 1)
        assert now.fleet.instance("a").state is State.READY
        assert now.of_kind(events.Stopping) == []

        first.may_leave.set()

        await second.has_lease.wait()
        second.may_leave.set()


async def test_two_models_with_room_for_one_are_served_in_order_of_arrival(folder: Folder) -> None:
    """One that waits for the place of a model that has had its time comes before newer requests."""
    folder.host = ONE
    folder.write(a="", b="")
    order: list[str] = []

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        first = Client(now.fleet, "a", order)
        tasks.start_soon(first.run)
        await first.has_lease.wait()
        (resident,) = now.fleet._residents.now()
        over_s = resident.turn_since_s + resident.turn_s
        await until(lambda: time.monotonic() > over_s)
        for n_waiting, name in enumerate(["b", "a", "b"], start=1):
            tasks.start_soon(Client(now.fleet, name, order).pass_by)
            await until(partial(has_waiting, now.fleet, n_waiting))

        first.may_leave.set()

    assert order[:2] == ["a", "b"]
    assert sorted(order) == ["a", "a", "b", "b"]


async def test_model_just_loaded_serves_those_who_wait_for_it_before_it_goes(
    folder: Folder,
) -> None:
    """Alternating requests do not swap at each one: a load serves all who waited for it."""
    folder.host = ONE
    folder.write(a="", b="")
    clients = 6

    async with running(folder.read()) as now:
        async with anyio.create_task_group() as tasks:
            for _ in range(clients):
                tasks.start_soon(Client(now.fleet, "a").pass_by)
                tasks.start_soon(Client(now.fleet, "b").pass_by)

        assert len(now.of_kind(events.Spawned)) <= 3


async def test_pinned_model_is_never_evicted_and_the_other_is_refused_with_the_reason(
    folder: Folder,
) -> None:
    """What can never be admitted is told at once instead of queued for ever."""
    folder.host = ONE
    folder.write(a="pin = true", b="")

    async with running(folder.read()) as now:
        await Client(now.fleet, "a").pass_by()

        other = Client(now.fleet, "b")
        await other.pass_by()

        assert isinstance(other.error, CapacityError)
        assert "unpin a model" in str(other.error)
        assert now.fleet.instance("a").state is State.READY


async def test_model_over_the_memory_budget_is_refused_with_the_numbers(folder: Folder) -> None:
    """A model that does not fit an empty machine never will."""
    folder.host = "memory = '50MiB'\n"
    folder.write(a="")

    async with running(folder.read()) as now:
        client = Client(now.fleet, "a")
        await client.pass_by()

        assert isinstance(client.error, CapacityError)
        assert "50" in str(client.error)
        assert now.told == []


async def test_queue_that_is_full_refuses_the_next_and_serves_those_within(folder: Folder) -> None:
    """``max_queue`` requests wait; one more gets Ollama's busy answer."""
    folder.host = "memory = '64GiB'\nmax_queue = 2\n"
    folder.write(a="")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        clients = [Client(now.fleet, "a") for _ in range(3)]
        tasks.start_soon(clients[0].run)
        await clients[0].has_lease.wait()
        for client in clients[1:]:
            tasks.start_soon(client.pass_by)
        await until(lambda: now.fleet.n_waiting == 2)

        with pytest.raises(QueueFull, match="server busy"):
            async with now.fleet.lease("a"):
                pass

        assert now.fleet.n_waiting == 2
        clients[0].may_leave.set()


async def test_waiter_that_leaves_makes_room_for_the_next(folder: Folder) -> None:
    """A cancelled waiter holds no place, and nothing is granted to it."""
    folder.write(a="")

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        first, second = Client(now.fleet, "a"), Client(now.fleet, "a")
        tasks.start_soon(first.run)
        await first.has_lease.wait()
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(Client(now.fleet, "a").run)
            await until(lambda: now.fleet.n_waiting == 1)
            leaving.cancel_scope.cancel()
        assert now.fleet.n_waiting == 0

        tasks.start_soon(second.pass_by)
        first.may_leave.set()
        await second.has_lease.wait()


@pytest.mark.parametrize("phase", ["queue", "load", "ready"])
async def test_lease_cancelled_at_any_await_leaves_no_lease(folder: Folder, phase: str) -> None:
    """In the queue, in the load, and while it is held; ``running`` checks the counts again."""
    gate = make_gate(folder.path / "gate")
    load: Steps = [["listen"], ["wait", str(gate)], ["ready"]]
    steps = load if phase == "load" else LOAD
    script = write_script(folder.path / "s.json", starts=[steps])
    folder.write(a=folder.standin(script, "stop_timeout = 0.1"))

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        holder = Client(now.fleet, "a")
        if phase == "queue":
            tasks.start_soon(holder.run)
            await holder.has_lease.wait()
        client = Client(now.fleet, "a")
        instance = now.fleet.instance("a")
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(client.run)
            match phase:
                case "queue":
                    await until(lambda: now.fleet.n_waiting == 1)
                case "load":
                    await reach(instance, State.LOADING)
                case _:
                    await client.has_lease.wait()
            leaving.cancel_scope.cancel()

        assert now.fleet.n_waiting == 0
        assert instance.leases == (1 if phase == "queue" else 0)
        holder.may_leave.set()


async def test_load_whose_only_client_left_completes(folder: Folder) -> None:
    """A load belongs to the instance; its client's retry finds it done."""
    gate = make_gate(folder.path / "gate")
    load: Steps = [["listen"], ["stage", 0.0], ["wait", str(gate)], ["ready"]]
    script = write_script(folder.path / "s.json", starts=[load])
    folder.write(a=folder.standin(script))

    async with running(folder.read()) as now:
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(Client(now.fleet, "a").run)
            await reach(now.fleet.instance("a"), State.LOADING)
            leaving.cancel_scope.cancel()
        await anyio.to_thread.run_sync(open_gate, gate)

        await reach(now.fleet.instance("a"), State.READY)


async def test_cost_of_reloading_is_what_the_last_load_took(folder: Folder) -> None:
    """Measured at each load, and known to the scheduler and to the next kvsup."""
    folder.write(a="")

    async with running(folder.read()) as now:
        await Client(now.fleet, "a").pass_by()
        (resident,) = now.fleet._residents.now()
        (ready,) = (event for event in now.told if isinstance(event, events.Ready))
        assert resident.load_s == ready.load_s > 0

    async with running(folder.read()) as again:
        instance = again.fleet.instance("a")
        remembered = instance.descent.known(instance.plan)
        assert remembered is not None
        assert remembered.load_s == ready.load_s
