"""Where a request runs again, if what became of its process is known late."""

import time
from types import SimpleNamespace
from typing import cast

import anyio
import anyio.lowlevel
import pytest

from kvsup.api.survival import Survival
from kvsup.errors import EngineError, NotListening, Poisoned, UpstreamError
from kvsup.restart import Exit, ExitCause
from kvsup.runtime.docket import Docket
from kvsup.runtime.instance import Instance
from kvsup.runtime.upstream import Upstream

pytestmark = pytest.mark.anyio


class Slow:
    """As much of an instance as a survival needs, whose processes are reaped late."""

    def __init__(self) -> None:
        self.plan = SimpleNamespace(name="m")
        self.docket = Docket("m")
        self.dead: list[Upstream] = []
        """Those that ended, of which the next ``ready`` learns."""

    async def ready(self) -> Upstream:
        """Reap what ended, and return the next process."""
        await anyio.lowlevel.checkpoint()
        while self.dead:
            self.docket.died(self.dead.pop(), Exit(ExitCause.CRASHED, -11, time.monotonic(), 1.0))
        return Upstream("/nowhere")


def crash(survival: Survival, instance: Slow, upstream: Upstream) -> None:
    """Let ``upstream`` end under the request."""
    with pytest.raises(UpstreamError), survival.on(upstream):
        raise UpstreamError("broke off")
    instance.dead.append(upstream)


async def test_a_late_verdict_keeps_it_from_running_once_more() -> None:
    """It comes while the request waits for the next process."""
    instance = Slow()
    case = instance.docket.open("poison")
    survival = Survival(cast(Instance, instance), case)
    crash(survival, instance, await survival.upstream())
    crash(survival, instance, await survival.upstream())

    with pytest.raises(Poisoned):
        await survival.upstream()


async def test_a_late_suspicion_makes_it_wait_for_its_turn() -> None:
    """It took the way of one that is no suspect until its process was reaped."""
    instance = Slow()
    first, second = (
        Survival(cast(Instance, instance), instance.docket.open(name)) for name in "ab"
    )
    upstream = await first.upstream()
    crash(first, instance, upstream)
    instance.dead.clear()
    crash(second, instance, upstream)
    done = []

    async def run(survival: Survival, name: str) -> None:
        with survival.on(await survival.upstream()):
            done.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, first, "a")
        tasks.start_soon(run, second, "b")
        await anyio.wait_all_tasks_blocked()
        assert len(done) == 1
        (first if done == ["a"] else second).came_further()

    assert sorted(done) == ["a", "b"]


async def test_a_dead_process_that_takes_no_connection_is_still_one_it_ran_on() -> None:
    """It ran there before; only one that finds nobody at its first try never did."""
    instance = Slow()
    case = instance.docket.open("a")
    survival = Survival(cast(Instance, instance), case)
    upstream = Upstream("/nowhere")
    crash(survival, instance, upstream)

    with pytest.raises(NotListening), survival.on(upstream):
        raise NotListening("nobody there")

    assert instance.docket.running(upstream) == ["a"]
    with pytest.raises(NotListening), survival.on(other := Upstream("/elsewhere")):
        raise NotListening("nobody there")
    assert instance.docket.running(other) == []


async def test_a_client_that_leaves_while_it_runs_is_company_for_who_stays() -> None:
    """One whose answer was an error is none: it had ended."""
    instance, upstream = Slow(), Upstream("/nowhere")
    patient = instance.docket.open("patient")
    leaving, refused = instance.docket.open("leaving"), instance.docket.open("refused")
    instance.docket.starts(patient, upstream)

    with pytest.raises(EngineError), Survival(cast(Instance, instance), refused).on(upstream):
        raise EngineError("no such thing", status=400)
    assert instance.docket.running(upstream) == ["patient"]

    with anyio.CancelScope() as scope, Survival(cast(Instance, instance), leaving).on(upstream):
        scope.cancel()
        await anyio.lowlevel.checkpoint()
    instance.docket.close(refused)
    instance.docket.close(leaving)
    instance.docket.died(upstream, Exit(ExitCause.HUNG, -9, time.monotonic(), 1.0))

    assert len(patient.deaths) == 1
    assert patient.alone == []
