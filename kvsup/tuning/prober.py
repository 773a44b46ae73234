"""Measures each KV pair that is served once, beside f16:f16, while nobody asks for anything."""

import time
from collections.abc import Awaitable, Callable

import anyio

from kvsup.errors import KvsupError
from kvsup.events import Event, Probed, ProbeFailed
from kvsup.kvtypes import F16
from kvsup.plan import Plan
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.knowledge import is_probed, keep_probe
from kvsup.runtime.remembered import Remembered
from kvsup.tuning.speed import probe

_CHECK_INTERVAL_S = 2.0


class Prober:
    """Runs beside a fleet; a request that comes while it measures ends the measurement."""

    def __init__(
        self,
        fleet: Fleet,
        store: Remembered,
        *,
        idle_s: float,
        emit: Callable[[Event], None],
        reload: Callable[[], Awaitable[None]],
    ) -> None:
        """Measure once nobody has asked for anything in ``idle_s``.

        What was found is emitted; ``reload`` takes up a pair that is to be replaced.
        """
        self._fleet = fleet
        self._store = store
        self._idle_s = idle_s
        self._emit = emit
        self._reload = reload
        self._given_up: set[str] = set()
        """Identities of plans whose probe failed; they are tried again by the next kvsup."""

    async def run(self) -> None:
        """Look at every interval for something to measure."""
        while True:
            await anyio.sleep(_CHECK_INTERVAL_S)
            plan = self._due()
            if plan is not None:
                await self._measure(plan)

    def _due(self) -> Plan | None:
        """Return a plan whose pair is to be measured now, if any."""
        if not self._fleet.is_idle(since_s=time.monotonic() - self._idle_s):
            return None
        served = {instance.plan.identity for instance in self._fleet.loaded()}
        for plan in self._fleet.plans():
            is_wanted = plan.identity in served or plan.model.kv_slow != "warn"
            is_open = plan.model.kv_cache_type != F16 and plan.identity not in self._given_up
            if is_wanted and is_open and not is_probed(self._store, plan):
                return plan if self._fleet.has_room(plan) else None
        return None

    async def _measure(self, plan: Plan) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cancel_when_asked, tasks.cancel_scope)
            try:
                found = await probe(plan, plan.model.kv_cache_type)
            except KvsupError as error:
                self._given_up.add(plan.identity)
                self._emit(ProbeFailed(plan.name, str(error)))
            else:
                keep_probe(self._store, plan, found)
                self._emit(
                    Probed(
                        plan.name,
                        found.pair,
                        found.speed.depth_tokens,
                        found.prompt_ratio,
                        found.generation_ratio,
                    )
                )
                await self._reload()
            tasks.cancel_scope.cancel()

    async def _cancel_when_asked(self, scope: anyio.CancelScope) -> None:
        started_s = time.monotonic()
        while self._fleet.is_idle(since_s=started_s):
            await self._fleet.changed()
        scope.cancel()
