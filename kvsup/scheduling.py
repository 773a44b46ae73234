"""Decide what is done next with the queue: grant, refuse, start, evict; what is not named waits.

Pure and without a clock: tickets, residents, sizes and the time come in, decisions go out, in the
order in which they are to be carried out. Four rules, and what bounds each:

- Tickets are looked at by *rank*: the order of arrival, in which one step of priority counts as
  ``PRIORITY_S`` seconds. Ranks never change, so whoever waits is overtaken only by those who come
  within the difference of two priorities.
- A ready model with a free slot serves whoever comes, whatever waits for another model, unless it
  is *claimed*.
- A model that was loaded, or died in its load, has its *turn*: until its end it serves what waits
  for it, and is neither evicted nor claimed (``residency.TURN_S``). Then the first ticket that
  needs its place claims it: it gets no request ranked behind that ticket, so it becomes idle, and
  is evicted.
- A ticket that has waited for ``STARVING_S`` claims every model whose turn is over, and nothing is
  loaded any more that would take its room.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kvsup.residency import Budget, Go, Refuse, Resident, Sizes, Wait, admit, enough_of, fits

PRIORITY_S = 10.0
"""One step of priority is worth so many seconds in the queue."""

STARVING_S = 30.0
"""After this a ticket whose model is not loaded takes what it needs as it becomes free."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request in the queue."""

    number: int
    """In the order of arrival; no two have the same."""
    key: str
    """The instance that is to serve it."""
    arrived_s: float
    slots: int = 1
    """0 for calls that take none."""
    priority: int = 0

    @property
    def rank(self) -> tuple[float, int]:
        """Return what tickets are ordered by, the first to be served first."""
        return self.arrived_s - self.priority * PRIORITY_S, self.number


@dataclass(frozen=True, slots=True)
class Wanted:
    """An instance that is not loaded."""

    sizes: Sizes
    supersedes: frozenset[str] = frozenset()
    """Residents whose place it takes: they are the first to make room, a pin or not."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The ticket has its slots now."""

    number: int


@dataclass(frozen=True, slots=True)
class Deny:
    """The ticket's model can never be admitted."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Start:
    """Load this instance; there is room now."""

    key: str


@dataclass(frozen=True, slots=True)
class Evict:
    """Ask this idle instance to stop, to make room for another."""

    key: str
    wanted: str


Decision = Grant | Deny | Start | Evict


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is to be done now, and when to look again though nothing has happened."""

    decisions: tuple[Decision, ...] = ()
    again_s: float = math.inf
    """Monotonic time at which the end of a turn, or of patience, changes what may be done."""


def decide(
    tickets: Iterable[Ticket],
    wanted: Mapping[str, Wanted],
    residents: Iterable[Resident],
    budget: Budget,
    *,
    now_s: float,
) -> Schedule:
    """Return what is to be done now.

    A start ends the schedule: only once it has been carried out is it known what is left of the
    memory, so decide again then.

    Args:
        tickets: all that wait, in any order.
        wanted: what each instance takes that is waited for and not loaded, by key.
        residents: all that hold memory. One that is of an older configuration than the ticket of
            the same key ``is_leaving``.
        budget: what all of them may hold.
        now_s: monotonic time.
    """
    pass_ = _Pass(sorted(tickets, key=lambda t: t.rank), wanted, residents, budget, now_s)
    return pass_.run()


class _Pass:
    """One look at the whole queue, and what was decided in it so far."""

    def __init__(
        self,
        queue: Sequence[Ticket],
        wanted: Mapping[str, Wanted],
        residents: Iterable[Resident],
        budget: Budget,
        now_s: float,
    ) -> None:
        self._queue, self._wanted, self._budget, self._now_s = queue, wanted, budget, now_s
        self._here = {resident.key: resident for resident in residents}
        self._n_waiting = Counter(ticket.key for ticket in queue)
        self._oldest_s: dict[str, float] = {}
        for ticket in queue:
            known_s = self._oldest_s.get(ticket.key, ticket.arrived_s)
            self._oldest_s[ticket.key] = min(known_s, ticket.arrived_s)
        self._claimed: set[str] = set()
        self._taken: set[str] = set()
        """Claimed by one that starves: not even calls without a slot are served."""
        self._reserved: list[tuple[Sizes, frozenset[str]]] = []
        """What starves, and the residents that it will have out of its way."""
        self._decisions: list[Decision] = []

    def run(self) -> Schedule:
        """Return the schedule."""
        held: set[str] = set()
        refused: dict[str, str] = {}
        looked_at: set[str] = set()
        for ticket in self._queue:
            if ticket.key in self._here:
                may_pass = ticket.key not in held or not ticket.slots
                if not (may_pass and self._serve(ticket)) and ticket.slots > 1:
                    held.add(ticket.key)  # who wants one slot would always be quicker
            elif ticket.key in refused:
                self._decisions.append(Deny(ticket.number, refused[ticket.key]))
            elif ticket.key not in looked_at:
                looked_at.add(ticket.key)
                verdict = self._admit(ticket)
                if verdict == Go():
                    self._decisions += [Start(ticket.key), Grant(ticket.number)]
                    return Schedule(tuple(self._decisions), self._now_s)
                if isinstance(verdict, Refuse):
                    refused[ticket.key] = verdict.reason
                    self._decisions.append(Deny(ticket.number, verdict.reason))
        again_s = self._again_s(looked_at - refused.keys())
        return Schedule(tuple(self._decisions), again_s)

    def _serve(self, ticket: Ticket) -> bool:
        """Grant the ticket if its model is not leaving, not claimed, and has the slots."""
        holder = self._here[ticket.key]
        closed = self._claimed if ticket.slots else self._taken
        has_room = holder.busy_slots + min(ticket.slots, holder.n_slots) <= holder.n_slots
        if holder.is_leaving or ticket.key in closed or not has_room:
            return False
        self._here[ticket.key] = replace(
            holder, leases=holder.leases + 1, busy_slots=holder.busy_slots + ticket.slots
        )
        self._n_waiting[ticket.key] -= 1
        self._decisions.append(Grant(ticket.number))
        return True

    def _admit(self, ticket: Ticket) -> Go | Wait | Refuse:
        """Return whether the ticket's model may be loaded; name victims or claim their places."""
        want = self._wanted[ticket.key]
        residents = [self._as_seen_by(want, resident) for resident in self._here.values()]
        budget = self._budget
        if want.supersedes & self._here.keys():
            budget = replace(budget, is_estimated=False)  # alone it may try, in a place it may not
        verdict = admit(ticket.key, want.sizes, residents, budget, now_s=self._now_s)
        if isinstance(verdict, Refuse):
            return verdict
        if not self._leaves_reserved_room(want, verdict):
            return Wait(())
        out: Iterable[str] = ()
        if isinstance(verdict, Go):
            out = verdict.evict
            for key in verdict.evict:
                self._here[key] = replace(self._here[key], is_leaving=True)
                self._decisions.append(Evict(key, ticket.key))
        elif not fits([want.sizes], [r for r in residents if not r.is_leaving], budget):
            out = self._claim(ticket.key, want, residents, budget)
        if self._is_starving(ticket.key):
            self._reserved.append((want.sizes, frozenset(out)))
        return verdict

    def _as_seen_by(self, want: Wanted, resident: Resident) -> Resident:
        """Return a resident as admission counts it: whose turn it is counts as leased."""
        if resident.key in want.supersedes:
            resident = replace(resident, last_used_s=-math.inf, is_pinned=False)
        if self._has_turn(resident) and not resident.leases:
            return replace(resident, leases=1)
        return resident

    def _has_turn(self, resident: Resident) -> bool:
        """Say whether its turn is not over, and someone uses it, waits for it, or did just now."""
        if self._now_s >= resident.turn_since_s + resident.turn_s:
            return False
        is_wanted = resident.leases or self._n_waiting[resident.key] > 0
        return bool(is_wanted or self._now_s < resident.last_used_s + resident.linger_s)

    def _is_starving(self, key: str) -> bool:
        return self._now_s >= self._oldest_s[key] + STARVING_S

    def _claim(
        self, key: str, want: Wanted, residents: Sequence[Resident], budget: Budget
    ) -> set[str]:
        """Keep requests ranked behind from what must become idle for ``key``; return its keys.

        That is as few as make room, those that were loaded first; for one that starves all,
        whichever is idle first.
        """
        staying = [r for r in residents if not r.is_leaving]
        free = [r for r in staying if not r.is_pinned and not self._has_turn(r)]
        if self._is_starving(key):
            claimed = {r.key for r in free}
            self._taken |= claimed
        else:
            idle = [r for r in free if not r.leases]
            idle.sort(key=lambda r: (-r.eviction_score(self._now_s), r.key))
            busy = sorted((r for r in free if r.leases), key=lambda r: (r.turn_since_s, r.key))
            chosen = enough_of([*idle, *busy], [want.sizes], staying, budget) or ()
            claimed = {r.key for r in chosen if r.leases}
        self._claimed |= claimed
        return claimed

    def _leaves_reserved_room(self, want: Wanted, verdict: Go | Wait) -> bool:
        """Say whether what starves and is ranked before would still find its room."""
        if not self._reserved:
            return True
        out = frozenset().union(*(keys for _, keys in self._reserved))
        victims = verdict.evict if isinstance(verdict, Go) else ()
        staying = [
            r
            for r in self._here.values()
            if not r.is_leaving and r.key not in out and r.key not in victims
        ]
        return fits([want.sizes, *(sizes for sizes, _ in self._reserved)], staying, self._budget)

    def _again_s(self, waited_for: set[str]) -> float:
        """Return when a turn or someone's patience ends, of those that matter; infinity if none."""
        if not waited_for:
            return math.inf
        times = [self._oldest_s[key] + STARVING_S for key in waited_for]
        for resident in self._here.values():
            if not resident.is_leaving:
                times.append(resident.turn_since_s + resident.turn_s)
                times.append(resident.last_used_s + resident.linger_s)
        return min((at_s for at_s in times if at_s > self._now_s), default=math.inf)
