"""A fleet without processes: it carries out the scheduler's decisions as ``runtime/fleet.py`` does.

Immutable, so that a test can go on from one state in many ways. Every state that ``step`` returns
has been checked: never over the budget, never a leased or pinned victim, never a slot too many.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvsup.residency import Budget, Resident, Sizes, together
from kvsup.scheduling import Deny, Evict, Grant, Start, Ticket, Wanted, decide

PATIENCE_S = 300.0
"""How long a request waits for its model, as ``restart_wait`` has it."""


@dataclass(frozen=True)
class Model:
    """What is configured of a model."""

    sizes: Sizes
    n_slots: int = 1
    load_s: float = 1.0
    weight: float = 1.0
    priority: int = 0
    is_pinned: bool = False


@dataclass(frozen=True)
class World:
    """A fleet at one moment."""

    models: Mapping[str, Model]
    budget: Budget
    now_s: float = 1000.0
    n_arrived: int = 0
    waiting: tuple[Ticket, ...] = ()
    running: tuple[Ticket, ...] = ()
    loaded: tuple[Resident, ...] = ()
    ready: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    n_denied: int = 0
    again_s: float = field(default=math.inf, compare=False)

    def resident(self, key: str) -> Resident | None:
        """Return what is loaded of a model."""
        return next((r for r in self.loaded if r.key == key), None)

    def after(self, seconds: float) -> "World":
        """Return the same at a later time, with what that changes."""
        return replace(self, now_s=self.now_s + seconds).settled()

    # What may happen, each as an event of its own. None where it cannot.

    def arrive(self, key: str, *, slots: int = 1, priority: int = 0) -> "World | None":
        """A request comes; one for a model that has given up is told so at once."""
        if key in self.failed:
            return None
        ticket = Ticket(
            self.n_arrived + 1, key, self.now_s, slots, self.models[key].priority + priority
        )
        return replace(
            self, waiting=(*self.waiting, ticket), n_arrived=self.n_arrived + 1
        ).settled()

    def leave(self, key: str) -> "World | None":
        """The oldest request that runs ends, or its client leaves, in the load too."""
        for ticket in self.running:
            if ticket.key == key:
                return self._released(ticket).settled()
        return None

    def give_up(self, key: str) -> "World | None":
        """The client of the last request that waits leaves."""
        for ticket in reversed(self.waiting):
            if ticket.key == key:
                left = tuple(t for t in self.waiting if t is not ticket)
                return replace(self, waiting=left).settled()
        return None

    def become_ready(self, key: str) -> "World | None":
        """A load, or the restart after a crash, is done."""
        one = self.resident(key)
        if one is None or key in self.ready:
            return None
        since_s = one.turn_since_s if one.load_s else self.now_s
        world = self._with(replace(one, turn_since_s=since_s, load_s=self.models[key].load_s))
        return replace(world, ready=self.ready | {key}).settled()

    def fail(self, key: str) -> "World | None":
        """It gives up: everyone who has or wants it is told, and its memory is free."""
        if self.resident(key) is None:
            return None
        return replace(
            self,
            loaded=tuple(r for r in self.loaded if r.key != key),
            ready=self.ready - {key},
            failed=self.failed | {key},
            running=tuple(t for t in self.running if t.key != key),
            waiting=tuple(t for t in self.waiting if t.key != key),
        ).settled()

    def crash(self, key: str) -> "World | None":
        """Its process dies, in its load or later, and is started again; leases are kept."""
        one = self.resident(key)
        if one is None:
            return None
        dead = replace(one, turn_since_s=min(one.turn_since_s, self.now_s))
        return replace(self._with(dead), ready=self.ready - {key}).settled()

    def unload(self, key: str) -> "World | None":
        """Someone asks it to stop once it is idle."""
        one = self.resident(key)
        if one is None or one.is_leaving:
            return None
        return self._with(replace(one, is_leaving=True)).settled()

    def reload(self, key: str) -> "World | None":
        """Its file was edited: what runs drains, a failure ends."""
        if key in self.failed:
            return replace(self, failed=self.failed - {key}).settled()
        return self.unload(key)

    def reap(self, key: str) -> "World | None":
        """What was asked to stop, and is idle, is gone."""
        one = self.resident(key)
        if one is None or not one.is_leaving or one.leases:
            return None
        loaded = tuple(r for r in self.loaded if r.key != key)
        return replace(self, loaded=loaded, ready=self.ready - {key}).settled()

    # How the fleet answers.

    def settled(self) -> "World":
        """Return the world with every decision carried out, as ``Fleet._schedule`` does."""
        world, is_settled = self, False
        for _ in range(2 * len(self.models) + 2):
            world, is_settled = world._one_schedule()
            if is_settled:
                return world
        raise AssertionError("the scheduler starts without end")

    def _one_schedule(self) -> "tuple[World, bool]":
        here = {r.key for r in self.loaded}
        wanted = {
            t.key: Wanted(self.models[t.key].sizes) for t in self.waiting if t.key not in here
        }
        schedule = decide(self.waiting, wanted, self.loaded, self.budget, now_s=self.now_s)
        assert schedule.again_s >= self.now_s
        world = replace(self, again_s=schedule.again_s)
        for decision in schedule.decisions:
            world = world._carried_out(decision)
        started = [d for d in schedule.decisions if isinstance(d, Start)]
        assert len(started) <= 1
        assert not schedule.decisions or schedule.decisions[-1] not in started
        return world, not started

    def _carried_out(self, decision: Grant | Deny | Start | Evict) -> "World":
        match decision:
            case Grant(number=number):
                return self._granted(self._ticket(number))
            case Deny(number=number):
                left = tuple(t for t in self.waiting if t.number != number)
                return replace(self, waiting=left, n_denied=self.n_denied + 1)
            case Start(key=key):
                return self._started(key)
            case Evict(key=key):
                one = self.resident(key)
                assert one is not None
                assert not one.leases, "a leased victim"
                assert not one.is_pinned, "a pinned victim"
                assert not one.is_leaving, "a victim that goes anyway"
                return self._with(replace(one, is_leaving=True))

    def _started(self, key: str) -> "World":
        model = self.models[key]
        assert self.resident(key) is None, "two of one model"
        new = Resident(
            key,
            model.sizes,
            0,
            self.now_s,
            is_pinned=model.is_pinned,
            weight=model.weight,
            n_slots=model.n_slots,
        )
        loaded = (*self.loaded, new)
        total = together(r.sizes for r in loaded)
        limit, at_most = self.budget.memory_bytes, self.budget.max_loaded
        assert limit is None or sum(total.values()) <= limit, "over the budget"
        assert at_most is None or len(loaded) <= at_most, "too many models"
        assert all(total.get(m, 0) <= n for m, n in self.budget.limits.items()), "over a limit"
        return replace(self, loaded=loaded)

    def _granted(self, ticket: Ticket) -> "World":
        one = self.resident(ticket.key)
        assert one is not None, "granted without a process"
        assert not one.is_leaving, "granted what goes"
        busy = one.busy_slots + ticket.slots
        assert busy <= one.n_slots or not ticket.slots, "more than there are slots"
        world = self._with(
            replace(one, leases=one.leases + 1, busy_slots=busy, last_used_s=self.now_s)
        )
        left = tuple(t for t in self.waiting if t.number != ticket.number)
        return replace(world, waiting=left, running=(*self.running, ticket))

    def _released(self, ticket: Ticket) -> "World":
        one = self.resident(ticket.key)
        assert one is not None
        world = self._with(
            replace(
                one,
                leases=one.leases - 1,
                busy_slots=one.busy_slots - ticket.slots,
                last_used_s=self.now_s,
            )
        )
        return replace(world, running=tuple(t for t in self.running if t is not ticket))

    def _ticket(self, number: int) -> Ticket:
        return next(t for t in self.waiting if t.number == number)

    def _with(self, one: Resident) -> "World":
        loaded = tuple(one if r.key == one.key else r for r in self.loaded)
        return replace(self, loaded=loaded)

    # That nobody waits for ever.

    def served_in_the_end(self, *, n_steps: int) -> "World":
        """Let loads end, requests leave and the idle go, until nobody waits; return what is left.

        Time goes on by what the scheduler asked for, at least a second.
        """
        world = self
        for _ in range(n_steps):
            if not world.waiting:
                return world
            world = world.gone_on()
            step_s = world.again_s - world.now_s
            world = world.after(max(1.0, step_s) if step_s < math.inf else 1.0)
        raise AssertionError(f"still waiting: {world.waiting}, loaded: {world.loaded}")

    def first_served_though_others_come(self, *, n_steps: int, seconds: float) -> None:
        """Do the same while every model has new requests all the time, until the last has its turn.

        Of the requests that run, one of each model goes on until the next step.
        """
        world, last = self, max((t.number for t in self.waiting), default=0)
        for _ in range(n_steps):
            if all(t.number > last for t in world.waiting):
                return
            for key in world.models:
                if sum(t.key == key for t in world.waiting) < 2 + (self.n_arrived - last):
                    world = world.arrive(key) or world
            world = world.gone_on(but_one=True).after(seconds)
        raise AssertionError(f"still waiting: {world.waiting}, loaded: {world.loaded}")

    def others_served_though_it_dies(self, key: str, *, n_steps: int, seconds: float) -> None:
        """Do the same for all others while each load of ``key`` ends in a death.

        New requests for it come all the time, and each is given up after ``PATIENCE_S``.
        """
        world, last = self, self.n_arrived
        for _ in range(n_steps):
            if all(t.number > last or t.key == key for t in world.waiting):
                return
            world = world.arrive(key) or world
            world = world.gone_on(dying=key).after(seconds)
        raise AssertionError(f"still waiting: {world.waiting}, loaded: {world.loaded}")

    def gone_on(self, *, but_one: bool = False, dying: str | None = None) -> "World":
        """Return the world after every load has ended, every request, and every stop.

        Args:
            but_one: of several that run on one model the newest stays.
            dying: this one dies instead, and its requests stay until they are given up.
        """
        world = self
        for key in world.models:
            world = (world.crash(key) if key == dying else world.become_ready(key)) or world
        for ticket in world.running:
            if ticket.key == dying and world.now_s >= ticket.arrived_s + PATIENCE_S:
                world = world._released(ticket)
        newest = {ticket.key: ticket for ticket in world.running} if but_one else {}
        for ticket in world.running:
            is_alone = sum(t.key == ticket.key for t in self.running) < 2
            if ticket.key in world.ready and (is_alone or newest.get(ticket.key) is not ticket):
                world = world._released(ticket)
        world = world.settled()
        for key in world.models:
            world = world.reap(key) or world
        return world


EVENTS: Sequence[str] = (
    "arrive", "leave", "give_up", "become_ready", "fail", "crash", "unload", "reload", "reap",
)  # fmt: skip
"""Names of the methods that are events."""
