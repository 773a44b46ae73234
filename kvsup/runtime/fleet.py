"""All instances: who is leased, who waits, who is loaded, evicted, unloaded or replaced.

``_schedule`` decides and records without awaiting, so no lock is needed: between two awaits asyncio
code is alone. What takes time (stop, start) is done by the instances' own tasks, whose news call
``_schedule`` again.
"""

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import anyio
from anyio.abc import TaskGroup, TaskStatus

from kvsup import events
from kvsup.config import HostConfig
from kvsup.errors import CapacityError, KvsupError, QueueFull, RequestError
from kvsup.fitting import NOTHING, Asked
from kvsup.lifecycle import State
from kvsup.plan import Plan, why_replaced
from kvsup.residency import (
    MIN_RESIDENCE_S,
    Go,
    Refuse,
    Resident,
    Wait,
    admit,
    idle_due,
    next_due_s,
    room_bytes,
)
from kvsup.runtime.instance import Instance
from kvsup.runtime.making import make_instance
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.room import budget_now, filled_memories
from kvsup.runtime.roster import Roster, is_of


@dataclass(slots=True, eq=False)
class _Ticket:
    """One request's place: in the queue until it is granted or refused."""

    name: str
    asked: Asked
    instance: Instance
    slots: int
    keep_alive_s: float | None
    settled: anyio.Event = field(default_factory=anyio.Event)
    is_granted: bool = False
    refusal: KvsupError | None = None


class Fleet:
    """The instances of one configuration; every method runs on the event loop's thread."""

    def __init__(
        self,
        plans: Iterable[Plan],
        host: HostConfig,
        *,
        store: Remembered,
        emit: Callable[[events.Event], None],
        note: Callable[[Instance, events.Event], None] = lambda *_: None,
    ) -> None:
        self._host = host
        self._emit = emit
        make = partial(make_instance, store=store, emit=emit, note=note, on_change=self._changed)
        self._roster = Roster(plans, make=make)
        self._resident: dict[str, Instance] = {}
        self._queue: list[_Ticket] = []
        self._tasks: TaskGroup | None = None
        self._news = anyio.Event()
        self._is_closing = False
        self._last_asked_s = time.monotonic()

    # What the API asks.

    @property
    def n_waiting(self) -> int:
        """Return how many requests wait for a place."""
        return len(self._queue)

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
        return admit("", plan.sizes, self._residents(), budget) == Go()

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
    ) -> AsyncIterator[Instance]:
        """Yield an instance of ``name`` once it has ``slots`` free slots for the caller.

        It may still be loading: await its ``ready``. While leased it is neither evicted nor
        unloaded. Leaving is synchronous, so a cancelled request cannot keep its place.

        Args:
            name: as the client wrote it.
            asked: the load-time options of the request, which may choose another instance.
            keep_alive_s: what the request says; None leaves what the instance has.
            slots: 0 for calls that take none, such as ``/props``.

        Raises:
            ModelNotFound: nothing has this name.
            RequestError: what it asks for cannot be had.
            QueueFull: ``max_queue`` requests wait already.
            CapacityError: it cannot fit.
            InstanceFailed: it has given up.
        """
        instance = self._roster.choose(name, asked, resident=self._resident)
        ticket = _Ticket(name, asked, instance, slots, keep_alive_s)
        self._queue.append(ticket)
        try:
            self._schedule()
            if not ticket.settled.is_set():
                if len(self._queue) > self._host.max_queue:
                    raise QueueFull(
                        "server busy, please try again.  maximum pending requests exceeded"
                    )
                await ticket.settled.wait()
            if ticket.refusal is not None:
                raise ticket.refusal
            yield ticket.instance
        finally:
            self._release(ticket)

    def load(self, name: str) -> None:
        """Load ``name`` without waiting for it; a failure is told by an event.

        Raises:
            ModelNotFound: nothing has this name.
        """
        assert self._tasks is not None  # noqa: S101 - nothing is asked before run()
        self._tasks.start_soon(self._load, self.instance(name).plan.name)

    def unload(self, name: str, why: str) -> bool:
        """Ask what is loaded of ``name`` to stop once idle; return False if nothing is."""
        loaded = [i for i in self._roster.siblings(name) if self._resident.get(i.key) is i]
        for instance in loaded:
            instance.stop(why)
        return bool(loaded)

    def reset(self, name: str) -> None:
        """End the FAILED state of ``name`` and forget its deaths."""
        for instance in self._roster.siblings(name):
            instance.reset()
        self._schedule()

    def replace(self, plans: Iterable[Plan], host: HostConfig) -> None:
        """Take up a new configuration: only what changed is replaced, and only once it is idle."""
        self._host = host
        changes = self._roster.replace(plans)
        now = {plan.name: plan for plan in self.plans()}
        for old in changes.retired:
            old.is_retired = True
            if self._resident.get(old.key) is old:
                old.stop(why_replaced(old.plan, now.get(old.plan.name)))
        self._emit(events.Reloaded(changes.changed, changes.added, changes.removed))
        self._changed()

    # What the composition root runs.

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hold the instances' tasks and unload what is idle; ends when ``close`` is done."""
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            for plan in self.plans():
                if plan.model.preload:
                    self.load(plan.name)
            while not (self._is_closing and not self._resident):
                now_s = time.monotonic()
                residents = self._residents()
                idle = idle_due(residents, now_s=now_s)
                for key in idle:
                    self._resident[key].stop("idle")
                due_s = next_due_s([r for r in residents if r.key not in idle])
                with anyio.move_on_after(due_s - now_s):
                    await self._news.wait()
            self._tasks.cancel_scope.cancel()

    def close(self, *, drain_s: float) -> None:
        """Refuse whoever waits, and stop every instance, with ``drain_s`` for running requests."""
        self._is_closing = True
        for ticket in list(self._queue):
            self._refuse(ticket, CapacityError("kvsup is shutting down"))
        for instance in self._resident.values():
            instance.stop("kvsup is shutting down", drain_s=drain_s)
        self._wake()

    # Decisions: synchronous, from here to the end.

    def _schedule(self) -> None:
        """Grant, refuse, start and evict as far as the present state allows; first come first.

        A request that needs other models gone claims them: they get no new request, once they
        have served for ``MIN_RESIDENCE_S``.
        """
        self._stop_superseded()
        claimed: set[str] = set()
        waiting: set[str] = set()
        held: set[str] = set()
        for ticket in list(self._queue):
            if ticket.settled.is_set():
                continue
            if refusal := self._refusal(ticket):
                self._refuse(ticket, refusal)
            elif ticket.instance.key in self._resident:
                if ticket.instance.key not in claimed | held or not ticket.slots:
                    self._grant_if_open(ticket)
                if ticket.slots > 1 and not ticket.settled.is_set():
                    held.add(ticket.instance.key)  # who wants one slot would always be quicker
            elif ticket.instance.key not in waiting:
                claimed |= self._admit(ticket)
                if not ticket.settled.is_set():
                    waiting.add(ticket.instance.key)

    def _stop_superseded(self) -> None:
        """Let the smaller ones of a model and pair go, once the last one started serves."""
        loaded = [i for i in self._resident.values() if not i.is_leaving]
        for place, instance in enumerate(loaded):
            if any(i.state is State.READY and _supersedes(i, instance) for i in loaded[place:]):
                instance.stop("a larger one serves")

    def _refusal(self, ticket: _Ticket) -> KvsupError | None:
        """Point the ticket at what serves it now, or return why nothing will."""
        if self._is_closing:
            return CapacityError("kvsup is shutting down")
        try:
            ticket.instance = self._roster.choose(
                ticket.name, ticket.asked, resident=self._resident
            )
        except KvsupError as error:
            return error
        if refusal := ticket.instance.plan.refusal:
            return RequestError(f"{ticket.instance.plan.name}: {refusal}")
        return ticket.instance.failure_error

    def _grant_if_open(self, ticket: _Ticket) -> None:
        """Grant a slot of a resident instance, unless it leaves, is full, or is the one before."""
        holder = self._resident[ticket.instance.key]
        has_room = holder.busy_slots + ticket.slots <= holder.plan.model.num_parallel
        if holder is ticket.instance and not holder.is_leaving and has_room:
            self._grant(ticket)

    def _admit(self, ticket: _Ticket) -> set[str]:
        """Start the instance of ``ticket`` if it fits; return the keys that must become idle."""
        instance = ticket.instance
        residents = self._residents(superseded_by=instance)
        budget = budget_now(self._host, self.plans(), self.loaded())
        if instance.plan.configured.num_ctx_is_auto:
            staying = [r for r in residents if r.key != instance.key]
            memories = filled_memories(instance.plan)
            instance.plan = instance.plan.with_room(room_bytes(memories, staying, budget))
        if any(_supersedes(instance, other) for other in self._resident.values()):
            budget = replace(budget, is_estimated=False)  # alone it may try, in a place it may not
        verdict = admit(instance.key, instance.size_by_device, residents, budget)
        match verdict:
            case Go(evict=()):
                self._start(instance)
                self._grant(ticket)
            case Go(evict=victims):
                for key in victims:
                    other = instance.plan.name
                    self._resident[key].stop(f"to make room for {other}", room_for=other)
            case Wait(blockers=blockers):
                return {key for key in blockers if not self._is_protected(self._resident[key])}
            case Refuse(reason=reason):
                text = f"{instance.plan.name} {reason}"
                if any(_supersedes(instance, other) for other in self._resident.values()):
                    text += (
                        '; on_bigger_request = "clamp" serves what asks for more with what is there'
                    )
                self._refuse(ticket, CapacityError(text))
                self._roster.drop(instance)
        return set()

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
            self._changed()

    def _grant(self, ticket: _Ticket) -> None:
        self._queue.remove(ticket)
        ticket.is_granted = True
        ticket.instance.leases += 1
        ticket.instance.busy_slots += ticket.slots
        ticket.instance.last_used_s = time.monotonic()
        if ticket.keep_alive_s is not None:
            ticket.instance.keep_alive_s = ticket.keep_alive_s
        ticket.settled.set()

    def _refuse(self, ticket: _Ticket, error: KvsupError) -> None:
        self._queue.remove(ticket)
        ticket.refusal = error
        ticket.settled.set()

    def _release(self, ticket: _Ticket) -> None:
        if ticket in self._queue:
            self._queue.remove(ticket)
        elif ticket.is_granted:
            self._last_asked_s = time.monotonic()
            ticket.instance.leases -= 1
            ticket.instance.busy_slots -= ticket.slots
            ticket.instance.last_used_s = self._last_asked_s
            ticket.instance.notify()
        self._changed()

    def _is_protected(self, instance: Instance) -> bool:
        """Say whether it was loaded so lately that what waits for it comes first."""
        return time.monotonic() - instance.serving_since_s < MIN_RESIDENCE_S

    def _residents(self, *, superseded_by: Instance | None = None) -> list[Resident]:
        """Return what is loaded; what another one replaces is the first to make room for it."""
        waiting = Counter(ticket.instance.key for ticket in self._queue)
        residents = []
        for key, instance in self._resident.items():
            leases = instance.leases + (waiting[key] if self._is_protected(instance) else 0)
            is_last = superseded_by is not None and _supersedes(superseded_by, instance)
            residents.append(
                Resident(
                    key=key,
                    sizes=instance.size_by_device,
                    leases=leases,
                    last_used_s=-math.inf if is_last else instance.last_used_s,
                    idle_until_s=instance.idle_until_s,
                    is_pinned=instance.plan.model.pin and not instance.is_retired and not is_last,
                    is_leaving=instance.is_leaving,
                )
            )
        return residents

    def _changed(self) -> None:
        """Look at everything again: who may be granted, and when someone is next idle."""
        self._wake()
        waited_for = {ticket.instance.key for ticket in self._queue}
        self._roster.forget(unless=waited_for | self._resident.keys())
        self._schedule()

    def _wake(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    async def _load(self, name: str) -> None:
        try:
            async with self.lease(name, slots=0) as instance:
                await instance.ready()
        except KvsupError as error:
            self._emit(events.GaveUp(name, f"load: {error}"))


def _supersedes(new: Instance, old: Instance) -> bool:
    """Say whether ``new`` is the larger one of the same model and pair, as requests made it."""
    return new is not old and is_of(old, new.plan.name, new.plan.model)
