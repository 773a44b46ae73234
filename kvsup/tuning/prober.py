"""Measures each KV pair that is served once, beside f16:f16, while nobody asks for anything."""

import time
from collections.abc import Awaitable, Callable

import anyio

from kvsup.errors import KvsupError
from kvsup.events import Event, Probed, ProbeFailed
from kvsup.kvchoice import is_slow
from kvsup.kvtypes import F16
from kvsup.measures import SpeedProbe
from kvsup.plan import Plan
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.knowledge import is_probed, keep_probe, machine_of
from kvsup.runtime.remembered import Remembered
from kvsup.stores.stored import has_file
from kvsup.tuning.speed import PROBE_CTX_TOKENS, probe

_CHECK_INTERVAL_S = 2.0


class Prober:
    """Runs beside a fleet; a request that comes while it measures ends the measurement."""

    def __init__(
        self,
        fleet: Fleet,
        store: Remembered,
        *,
        idle_s: Callable[[], float],
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
        self._tried: set[str] = set()
        """Identities of plans whose probe has ended, well or not."""

    async def run(self) -> None:
        """Look at every interval for something to measure."""
        while True:
            await anyio.sleep(_CHECK_INTERVAL_S)
            plan = self._due()
            if plan is not None:
                await self._measure(plan)

    def _due(self) -> Plan | None:
        """Return a plan whose pair is to be measured now, if any.

        It was served, or is not to be while it is slow; one that only lies in a store must have
        been served, since there may be hundreds.
        """
        if not self._fleet.is_idle(since_s=time.monotonic() - self._idle_s()):
            return None
        for instance in self._fleet.instances():
            plan = instance.plan
            is_decided_by_it = plan.model.kv_slow != "warn" and has_file(plan.model.source)
            is_wanted = instance.last_used_s > 0 or is_decided_by_it
            if not is_wanted or not self._is_open(plan):
                continue
            small = plan.with_num_ctx(min(plan.model.num_ctx, PROBE_CTX_TOKENS))
            if self._fleet.has_room(small):
                return plan
        return None

    def _is_open(self, plan: Plan) -> bool:
        """Say whether it has a pair that generates, is not f16:f16, and was never measured."""
        generates = bool(plan.estimate.caches) and plan.pooling is None
        is_new = plan.identity not in self._tried
        is_quantized = plan.model.kv_cache_type != F16
        return generates and is_quantized and is_new and not is_probed(self._store, plan)

    async def _measure(self, plan: Plan) -> None:
        found = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cancel_when_asked, tasks.cancel_scope)
            try:
                found = await probe(plan, plan.model.kv_cache_type)
            except (KvsupError, OSError) as error:
                self._tried.add(plan.identity)
                self._emit(ProbeFailed(plan.name, str(error)))
            tasks.cancel_scope.cancel()
        if found is not None:
            await self._take_up(plan, found)

    async def _take_up(self, plan: Plan, found: SpeedProbe) -> None:
        self._tried.add(plan.identity)
        keep_probe(self._store, plan, found)
        self._emit(Probed(plan.name, found.pair, found.speed.depth_tokens, *found.ratios))
        for instance in self._fleet.instances():
            known = instance.plan
            instance.take_up(machine_of(self._store, known.binary, known.file, known.model))
        if is_slow(found) and plan.model.kv_slow == "fallback":
            await self._reload()

    async def _cancel_when_asked(self, scope: anyio.CancelScope) -> None:
        started_s = time.monotonic()
        while self._fleet.is_idle(since_s=started_s):
            await self._fleet.changed()
        scope.cancel()
