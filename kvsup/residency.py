"""Decide who may be in memory: admit a model, name the victims, or say what is waited for.

Pure and deterministic: sizes, leases and times come in, a verdict goes out. A model that serves a
request is never a victim; a pinned one neither. Memory of a victim counts as free only once it is
no longer in ``residents``, that is when its process has been reaped.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvsup.units import format_bytes

TURN_S = (2.0, 60.0)
"""Shortest and longest turn of a model of weight 1: how long what was just loaded serves what waits
for it before others may claim its place.

Between the two a turn lasts as long as the load did, so that of two busy models with room for one
no more than half of the time goes to loads. Without an end to it the second would starve.
"""

LINGER_PART, MAX_LINGER_S = 0.25, 5.0
"""For which part of its load, and for how long at most, a model whose turn it is stands idle before
it goes: a client that asks again at once would have it loaded again."""

LOAD_BYTES_PER_S = 1e9
"""What a load is taken to cost that has not been measured."""

MIN_RELOAD_S = 0.05


RAM = "RAM"
"""The host's memory, beside devices by llama-server's names for them, e.g. ``CUDA0``."""

Sizes = Mapping[str, int]
"""Bytes in each memory."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One instance that holds memory, or will in a moment."""

    key: str
    sizes: Sizes
    leases: int
    last_used_s: float
    """Monotonic time of the last release, or of the grant."""
    idle_until_s: float = math.inf
    """When it is unloaded if no request comes; meaningful while it has no lease."""
    is_pinned: bool = False
    is_leaving: bool = False
    """It has been asked to stop; its memory is not free yet."""
    turn_since_s: float = math.inf
    """Monotonic time at which its turn began: when it became ready, or died in its load; infinity
    before that."""
    load_s: float = 0.0
    """What its last load took; 0: not measured."""
    weight: float = 1.0
    """Length of its turns beside those of others."""
    busy_slots: int = 0
    n_slots: int = 1

    @property
    def size_bytes(self) -> int:
        """Return what it holds in all memories together."""
        return sum(self.sizes.values())

    @property
    def reload_s(self) -> float:
        """Return what it would take to have it back: as measured, or as its size lets expect."""
        return max(self.load_s or self.size_bytes / LOAD_BYTES_PER_S, MIN_RELOAD_S)

    @property
    def turn_s(self) -> float:
        """Return how long it serves what waits for it before others may claim its place."""
        shortest_s, longest_s = TURN_S
        return min(max(shortest_s, self.reload_s), longest_s) * self.weight

    @property
    def linger_s(self) -> float:
        """Return how long it stands idle in its turn."""
        return min(self.reload_s * LINGER_PART, MAX_LINGER_S)

    def eviction_score(self, now_s: float) -> float:
        """Return idle time times bytes by the cost of reloading: the greatest is the first to go.

        The product is what its memory could have done for others, byte-seconds; the quotient is
        that for each second which its return would cost.
        """
        return max(0.0, now_s - self.last_used_s) * max(1, self.size_bytes) / self.reload_s


@dataclass(frozen=True, slots=True)
class Budget:
    """What all residents together may hold."""

    memory_bytes: int | None
    """In all memories together; None: not limited here."""
    max_loaded: int | None
    limits: Sizes = field(default_factory=dict)
    """Bytes in each memory that is limited by itself."""
    is_estimated: bool = False
    """The limits are what seemed free: a model alone may try all the same."""


@dataclass(frozen=True, slots=True)
class Go:
    """Load, once every one of ``evict`` is gone; at once if there is none."""

    evict: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before one of ``blockers`` is idle or gone."""

    blockers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """It can never be admitted with this budget."""

    reason: str


def admit(
    key: str, sizes: Sizes, residents: Sequence[Resident], budget: Budget, *, now_s: float
) -> Go | Wait | Refuse:
    """Return whether an instance of ``sizes`` may be loaded beside ``residents``.

    Victims are idle, unpinned, those first whose memory does least for what their return would
    cost, and no more of them than needed.
    """
    others = [resident for resident in residents if resident.key != key]
    if not fits([sizes], [r for r in others if r.is_pinned], budget):
        return Refuse(_explain(sizes, others, budget))
    staying = [resident for resident in others if not resident.is_leaving]
    idle = sorted(
        (r for r in staying if not r.leases and not r.is_pinned),
        key=lambda r: (-r.eviction_score(now_s), r.last_used_s, r.key),
    )
    victims = enough_of(idle, [sizes], staying, budget)
    if victims is None:
        return Wait(tuple(r.key for r in others if r.leases))
    leaving = tuple(r.key for r in others if r.is_leaving)
    if not victims and leaving and not fits([sizes], others, budget):
        return Wait(leaving)
    return Go(tuple(victim.key for victim in victims))


def enough_of(
    candidates: Sequence[Resident],
    wanted: Sequence[Sizes],
    staying: Sequence[Resident],
    budget: Budget,
) -> list[Resident] | None:
    """Return the first of ``candidates`` without which the others of ``staying`` leave enough room.

    None of them is needless: what lies elsewhere, or is too small to matter, may stay. None where
    all of them are not enough.
    """
    left = list(staying)
    gone: list[Resident] = []
    while not fits(wanted, left, budget):
        if len(gone) == len(candidates):
            return None
        gone.append(candidates[len(gone)])
        left.remove(gone[-1])
    for spared in gone[:-1]:
        if fits(wanted, [*left, spared], budget):
            gone.remove(spared)
            left.append(spared)
    return gone


def idle_due(residents: Sequence[Resident], *, now_s: float) -> tuple[str, ...]:
    """Return the keys of those whose keep_alive has run out."""
    return tuple(
        r.key for r in residents if not r.leases and not r.is_leaving and r.idle_until_s <= now_s
    )


def next_due_s(residents: Sequence[Resident]) -> float:
    """Return the monotonic time at which ``idle_due`` next names someone, or infinity."""
    times = (r.idle_until_s for r in residents if not r.leases and not r.is_leaving)
    return min(times, default=math.inf)


def room_bytes(memories: Collection[str], residents: Iterable[Resident], budget: Budget) -> int:
    """Return what ``residents`` leave free of ``memories`` together; 0 at least.

    Without any limit there is none to tell either: then it is 0, too.
    """
    held = together(resident.sizes for resident in residents)
    rooms = [max(0, budget.limits[m] - held.get(m, 0)) for m in memories if m in budget.limits]
    free_bytes = sum(rooms)
    if budget.memory_bytes is not None:
        left_bytes = max(0, budget.memory_bytes - sum(held.values()))
        free_bytes = min(free_bytes, left_bytes) if rooms else left_bytes
    return free_bytes


def together(sizes: Iterable[Sizes]) -> dict[str, int]:
    """Return the sum of ``sizes`` for each memory."""
    total: dict[str, int] = {}
    for each in sizes:
        for memory, size_bytes in each.items():
            total[memory] = total.get(memory, 0) + size_bytes
    return total


def fits(wanted: Sequence[Sizes], staying: Sequence[Resident], budget: Budget) -> bool:
    """Say whether instances of the sizes ``wanted`` may be loaded beside ``staying``."""
    if budget.max_loaded is not None and len(staying) + len(wanted) > budget.max_loaded:
        return False
    total = together([*wanted, *(resident.sizes for resident in staying)])
    if budget.memory_bytes is not None and sum(total.values()) > budget.memory_bytes:
        return False
    if budget.is_estimated and not staying and len(wanted) == 1:
        return True
    return all(total.get(memory, 0) <= limit for memory, limit in budget.limits.items())


def _explain(sizes: Sizes, others: Sequence[Resident], budget: Budget) -> str:
    pinned = together(r.sizes for r in others if r.is_pinned)
    limits = [format_bytes(budget.memory_bytes)] if budget.memory_bytes is not None else []
    limits += [f"{format_bytes(limit)} of {memory}" for memory, limit in budget.limits.items()]
    models = "" if budget.max_loaded is None else f" for at most {budget.max_loaded} models"
    return (
        f"needs {_worded(sizes)} beside {_worded(pinned)} of pinned models,"
        f" the memory budget is {' and '.join(limits) or 'no limit'}{models};"
        " raise memory or max_loaded_models, unpin a model, or choose smaller KV types or num_ctx"
    )


def _worded(sizes: Sizes) -> str:
    """Return the sum, and where it lies if that is not in RAM alone."""
    total = format_bytes(sum(sizes.values()))
    if set(sizes) <= {RAM}:
        return total
    parts = ", ".join(f"{format_bytes(n)} of {memory}" for memory, n in sorted(sizes.items()) if n)
    return f"{total} ({parts})"
