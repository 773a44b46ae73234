"""All instances: who is leased, who waits, who is loaded, evicted, unloaded or replaced.

What is decided is ``kvsup/scheduling.py``'s; here it is carried out and recorded without awaiting,
so no lock is needed. What takes time the instances' own tasks do, whose news call ``_schedule``.
"""

import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import anyio
from anyio.abc import TaskGroup, TaskStatus

from kvsup import events
from kvsup.errors import CapacityError, KvsupError, QueueFull, RequestError
from kvsup.fitting import NOTHING, Asked
from kvsup.hostconfig import HostConfig
from kvsup.lifecycle import AFTER_LOAD, State
from kvsup.plan import Plan, why_replaced
from kvsup.residency import Budget, idle_due, next_due_s
from kvsup.runtime.instance import Instance
from kvsup.runtime.news import News
from kvsup.runtime.queue import Queue, Queued, Request
from kvsup.runtime.readahead import ReadAhead
from kvsup.runtime.room import Residents, budget_now
from kvsup.runtime.roster import Roster, supersedes
from kvsup.runtime.succession import Succession
from kvsup.scheduling import Deny, Evict, Grant, Start, Wanted, decide

logger = logging.getLogger(__name__)


class Fleet:
    """The instances of one configuration; every method runs on the event loop's thread."""

    def __init__(
        self,
        plans: Iterable[Plan],
        host: HostConfig,
        *,
        make: Callable[..., Instance],
        emit: Callable[[events.Event], None],
    ) -> None:
        """Hold the instances of ``plans``, each made by ``make`` (``make_instance``)."""
        self._host = host
        self._emit = emit
        self._roster = Roster(plans, make=partial(make, emit=emit, on_change=self._changed))
        self._resident: dict[str, Instance] = {}
        self._succession = Succession(self._roster, self._resident)
        self._residents = Residents(self._resident)
        self._queue = Queue()
        self._read_ahead = ReadAhead(self._resident, host=lambda: self._host)
        self._again_s = math.inf
        self._tasks: TaskGroup | None = None
        self._news = News()
        self._is_closing = False
        self._last_asked_s = time.monotonic()

    # What the API asks.

    @property
    def n_waiting(self) -> int:
        """Return how many requests wait for a place."""
        return len(self._queue)

    def waiting(self) -> list[Request]:
        """Return the requests that wait, the first to be served first."""
        return list(self._queue)

    def plans(self) -> list[Plan]:
        """Return the plan of every model, in the order of the configuration."""
        return self._roster.plans()

    def instance(self, name: str) -> Instance:
        """Return the instance that serves ``name``, an alias of it, or it in another case.

        Raises:
            ModelNotFound: nothing has this name.
        """
        return self._roster.instance(name)

    def instances(self) -> list[Instance]:
        """Return every instance, loaded or not, those that requests asked for included."""
        return self._roster.instances()

    def loaded(self) -> list[Instance]:
        """Return those that hold memory, retired ones included."""
        return list(self._resident.values())

    def is_idle(self, *, since_s: float) -> bool:
        """Say whether nobody has had or wanted anything since a monotonic time."""
        is_busy = any(i.leases or i.state is State.LOADING for i in self._resident.values())
        return not is_busy and not self._queue and self._last_asked_s <= since_s

    def has_room(self, plan: Plan) -> bool:
        """Say whether there is memory for ``plan`` beside all that is loaded."""
        budget = replace(budget_now(self._host, self.plans(), self.loaded()), max_loaded=None)
        return self._residents.leave_room(plan.sizes, budget)

    def succeeded(self) -> list[Instance]:
        """Return those of an older configuration that are loaded still."""
        return [instance for instance in self._resident.values() if instance.is_retired]

    async def changed(self) -> None:
        """Wait until something has changed: a state, a lease, the configuration."""
        await self._news.wait()

    @asynccontextmanager
    async def lease(
        self,
        name: str,
        *,
        asked: Asked = NOTHING,
        keep_alive_s: float | None = None,
        slots: int = 1,
        priority: int = 0,
        is_for_newest: bool = False,
        tell: Callable[[Queued], None] = lambda _: None,
    ) -> AsyncIterator[Instance]:
        """Yield an instance of ``name`` once it has ``slots`` free slots for the caller.

        It may still be loading: await its ``ready``. While leased it is neither evicted nor
        unloaded. Leaving is synchronous, so a cancelled request cannot keep its place.

        Args:
            name: as the client wrote it.
            asked: the load-time options of the request, which may choose another instance.
            keep_alive_s: what the request says; None leaves what the instance has.
            slots: 0 for calls that take none, such as ``/props``.
            priority: that of its key; the model's is added.
            is_for_newest: never by an instance that serves until its successor does.
            tell: called once it is granted, with how it came through the queue.

        Raises:
            ModelNotFound: nothing has this name.
            RequestError: what it asks for cannot be had.
            QueueFull: ``max_queue`` requests wait already.
            CapacityError: it cannot fit.
            InstanceFailed: it has given up.
        """
        instance = self._roster.choose(name, asked, resident=self._resident)
        priority += instance.plan.model.priority
        request = self._queue.add(
            name,
            asked,
            instance,
            slots=slots,
            keep_alive_s=keep_alive_s,
            priority=priority,
            is_for_newest=is_for_newest,
        )
        try:
            self._schedule()
            if not request.settled.is_set():
                if len(self._queue) > self._host.max_queue:
                    raise QueueFull(
                        "server busy, please try again.  maximum pending requests exceeded"
                    )
                request.position = self._queue.position(request)
                await request.settled.wait()
            if request.refusal is not None:
                raise request.refusal
            tell(request.queued)
            yield request.instance
        finally:
            self._release(request)

    def load(self, name: str) -> None:
        """Load ``name`` without waiting for it; a failure is told by an event.

        Raises:
            ModelNotFound: nothing has this name.
        """
        assert self._tasks is not None  # noqa: S101 - nothing is asked before run()
        self._tasks.start_soon(self._load, self.instance(name).plan.name)

    def unload(self, name: str, why: str) -> bool:
        """Ask what is loaded of ``name`` to stop once idle; return False if nothing is."""
        siblings = self._roster.siblings(name)
        siblings.append(self._succession.stand_in(self.instance(name)))
        loaded = [i for i in siblings if self._resident.get(i.key) is i]
        for instance in loaded:
            instance.stop(why)
        self._news.tell()
        return bool(loaded)

    def reset(self, name: str) -> None:
        """End the FAILED state of ``name`` and forget its deaths."""
        for instance in self._roster.siblings(name):
            instance.reset()
        self._schedule()

    def replace(self, plans: Iterable[Plan], host: HostConfig) -> None:
        """Take up a new configuration: only what changed is replaced.

        What is in use is replaced by a new one that is loaded beside it, if there is memory for
        both; else it goes once it is idle.
        """
        self._host = host
        changes = self._roster.replace(plans, spare=self._succession.serving())
        self._succession.settle()
        now = {plan.name: plan for plan in self.plans()}
        for old in changes.retired:
            old.is_retired, old.is_removed = True, old.plan.name not in now
            if self._resident.get(old.key) is old:
                if old in changes.replaced and self._may_overlap(old):
                    self._succession.begin(old)
                else:
                    old.stop(why_replaced(old.plan, now.get(old.plan.name)))
        for name in self._succession.unloaded():
            self.load(name)
        self._emit(events.Reloaded(changes.changed, changes.added, changes.removed))
        self._changed()

    # What the composition root runs.

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hold the instances' tasks and unload what is idle; ends when ``close`` is done.

        What cannot be killed is left behind then, with its record: the next start tries again.
        """
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            self._tasks.start_soon(self._read_ahead.run)
            for plan in self.plans():
                if plan.model.preload:
                    self.load(plan.name)
            while not (self._is_closing and all(i.is_unkillable for i in self.loaded())):
                now_s = time.monotonic()
                if now_s >= self._again_s:
                    self._changed()
                residents = self._residents.now()
                idle = idle_due(residents, now_s=now_s)
                for key in idle:
                    self._resident[key].stop("idle")
                due_s = next_due_s([r for r in residents if r.key not in idle])
                await self._news.wait(until_s=min(due_s, self._again_s))
            self._tasks.cancel_scope.cancel()

    def close(self, *, drain_s: float) -> None:
        """Refuse whoever waits, and stop every instance, with ``drain_s`` for running requests."""
        self._is_closing = True
        self._schedule()
        for instance in self._resident.values():
            instance.stop("kvsup is shutting down", drain_s=drain_s)
        self._news.tell()

    # Carried out without awaiting, from here to the end.

    def _schedule(self) -> None:
        """Grant, refuse, start and evict as far as the present state allows."""
        self._stop_superseded()
        is_settled = False
        while not is_settled:
            for request in self._queue:
                if refusal := self._refusal(request):
                    self._queue.refuse(request, refusal)
            is_settled = not self._carry_out_one_schedule()
        self._read_ahead.want(request.instance for request in self._queue)

    def _carry_out_one_schedule(self) -> bool:
        """Do what is to be done now; say whether something was started, so that more may be."""
        requests = {request.number: request for request in self._queue}
        if not requests:
            self._again_s = math.inf
            return False
        absent = {
            request.instance.key: request.instance
            for request in requests.values()
            if request.instance.key not in self._resident
        }
        budget = Budget(None, None)
        if absent:
            budget = budget_now(self._host, self.plans(), self.loaded())
        schedule = decide(
            [request.ticket for request in requests.values()],
            {key: self._wanted(instance, budget) for key, instance in absent.items()},
            self._residents.now(),
            budget,
            now_s=time.monotonic(),
        )
        if schedule.again_s < self._again_s:
            self._news.tell()  # run() sleeps towards a later time
        self._again_s = schedule.again_s
        for decision in schedule.decisions:
            match decision:
                case Grant(number=number):
                    self._queue.grant(requests[number])
                case Deny(number=number, reason=reason):
                    self._deny(requests[number], reason)
                case Start(key=key):
                    self._residents.give_prompt_cache(absent[key], budget)
                    self._start(absent[key])
                case Evict(key=key, wanted=wanted):
                    other = absent[wanted].plan.name
                    self._resident[key].stop(f"to make room for {other}", room_for=other)
        return any(isinstance(decision, Start) for decision in schedule.decisions)

    def _may_overlap(self, old: Instance) -> bool:
        """Say whether the successor of ``old`` may be loaded beside it."""
        now_s = time.monotonic()
        is_waited_for = any(request.instance is old for request in self._queue)
        if not self._succession.may_begin(old, is_waited_for=is_waited_for, now_s=now_s):
            return False
        budget = budget_now(self._host, self.plans(), self.loaded())
        sizes = self._residents.sizes_of(self.instance(old.plan.name), budget)
        return self._residents.leave_room(sizes, replace(budget, is_estimated=False))

    def _stop_superseded(self) -> None:
        """Let the smaller ones of a model and pair go, once the last one started serves."""
        self._succession.settle()
        loaded = [i for i in self._resident.values() if not i.is_leaving]
        for place, instance in enumerate(loaded):
            if any(i.state is State.READY and supersedes(i, instance) for i in loaded[place:]):
                instance.stop("a larger one serves")

    def _refusal(self, request: Request) -> KvsupError | None:
        """Point the request at what serves it now, or return why nothing will."""
        if self._is_closing:
            return CapacityError("kvsup is shutting down")
        try:
            request.instance = self._roster.choose(
                request.name, request.asked, resident=self._resident
            )
        except KvsupError as error:
            return error
        if not request.is_for_newest and request.asked == NOTHING:
            request.instance = self._succession.stand_in(request.instance)
        holder = self._resident.get(request.instance.key, request.instance)
        if holder is not request.instance and not holder.is_leaving:
            holder.stop("its configuration changed")  # and was changed back: they have one socket
        if refusal := request.instance.plan.refusal:
            return RequestError(f"{request.instance.plan.name}: {refusal}")
        return request.instance.failure_error

    def _wanted(self, instance: Instance, budget: Budget) -> Wanted:
        superseded = frozenset(
            key
            for key, other in self._resident.items()
            if supersedes(instance, other) or self._succession.is_succeeded(other, by=instance)
        )
        return Wanted(self._residents.sizes_of(instance, budget), superseded)

    def _deny(self, request: Request, reason: str) -> None:
        text = f"{request.instance.plan.name} {reason}"
        if any(supersedes(request.instance, other) for other in self.loaded()):
            text += '; on_bigger_request = "clamp" serves what asks for more with what is there'
        self._queue.refuse(request, CapacityError(text))
        self._roster.drop(request.instance)

    def _start(self, instance: Instance) -> None:
        assert self._tasks is not None  # noqa: S101 - nothing is leased before run()
        instance.prepare()
        instance.keep_alive_s = instance.plan.model.keep_alive_s
        self._resident[instance.key] = instance
        self._tasks.start_soon(self._own, instance, name=f"instance {instance.plan.name}")

    async def _own(self, instance: Instance) -> None:
        try:
            await instance.run()
        finally:
            del self._resident[instance.key]
            self._residents.forget(instance.key)
            self._changed()

    def _release(self, request: Request) -> None:
        self._queue.drop(request)
        if request.granted_s is not None:
            self._last_asked_s = time.monotonic()
            request.give_back(now_s=self._last_asked_s)
        self._changed()

    def _changed(self) -> None:
        """Look at everything again: who may be granted, and when someone is next idle.

        A bug in that must end nothing that serves: it is looked at again in a moment.
        """
        self._news.tell()
        try:
            waited_for = {request.instance.key for request in self._queue}
            self._roster.forget(unless=waited_for | self._resident.keys())
            self._schedule()
        except Exception:
            logger.exception("a bug in kvsup: requests wait longer than they should")
            self._again_s = time.monotonic() + 1.0

    async def _load(self, name: str) -> None:
        try:
            async with self.lease(name, slots=0, is_for_newest=True) as instance:
                # its lease keeps it from being evicted, not from being stopped; nor after a death
                while not (instance.is_leaving or instance.failure or instance.state in AFTER_LOAD):
                    await self._news.wait()
                if error := instance.failure_error:
                    raise error
        except KvsupError as error:
            self._emit(events.GaveUp(name, f"load: {error}"))
