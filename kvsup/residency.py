"""Decide who may be in memory: admit a model, name the victims, or say what is waited for.

Pure and deterministic: sizes, leases and times come in, a verdict goes out. A model that serves a
request is never a victim; a pinned one neither. Memory of a victim counts as free only once it is
no longer in ``residents``, that is when its process has been reaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvsup.units import format_bytes

MIN_RESIDENCE_S = 2.0
"""How long a model that was just loaded serves what waits for it before others may claim its place.

Without it two busy models with room for one would be swapped at every request; without an end to
it the second would starve.
"""


@dataclass(frozen=True, slots=True)
class Resident:
    """One instance that holds memory, or will in a moment."""

    key: str
    size_bytes: int
    leases: int
    last_used_s: float
    """Monotonic time of the last release, or of the grant."""
    idle_until_s: float = math.inf
    """When it is unloaded if no request comes; meaningful while it has no lease."""
    is_pinned: bool = False
    is_leaving: bool = False
    """It has been asked to stop; its memory is not free yet."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What all residents together may hold."""

    memory_bytes: int | None
    """None: memory is not limited here."""
    max_loaded: int | None
    is_estimated: bool = False
    """The limit is what seemed free: a model alone may try all the same."""


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
    key: str, size_bytes: int, residents: Sequence[Resident], budget: Budget
) -> Go | Wait | Refuse:
    """Return whether an instance of ``size_bytes`` may be loaded beside ``residents``.

    Victims are idle, unpinned, least recently used first, and no more of them than needed.
    """
    others = [resident for resident in residents if resident.key != key]
    if not _fits(size_bytes, [r for r in others if r.is_pinned], budget):
        return Refuse(_explain(size_bytes, others, budget))
    staying = [resident for resident in others if not resident.is_leaving]
    idle = sorted(
        (r for r in staying if not r.leases and not r.is_pinned),
        key=lambda r: (r.last_used_s, r.key),
    )
    evict: list[str] = []
    for victim in [None, *idle]:
        if victim is not None:
            staying.remove(victim)
            evict.append(victim.key)
        if _fits(size_bytes, staying, budget):
            leaving = tuple(r.key for r in others if r.is_leaving)
            if not evict and leaving and not _fits(size_bytes, others, budget):
                return Wait(leaving)
            return Go(tuple(evict))
    return Wait(tuple(r.key for r in others if r.leases))


def idle_due(residents: Sequence[Resident], *, now_s: float) -> tuple[str, ...]:
    """Return the keys of those whose keep_alive has run out."""
    return tuple(
        r.key for r in residents if not r.leases and not r.is_leaving and r.idle_until_s <= now_s
    )


def next_due_s(residents: Sequence[Resident]) -> float:
    """Return the monotonic time at which ``idle_due`` next names someone, or infinity."""
    times = (r.idle_until_s for r in residents if not r.leases and not r.is_leaving)
    return min(times, default=math.inf)


def _fits(size_bytes: int, staying: Sequence[Resident], budget: Budget) -> bool:
    if budget.max_loaded is not None and len(staying) >= budget.max_loaded:
        return False
    if budget.memory_bytes is None or (budget.is_estimated and not staying):
        return True
    return size_bytes + sum(r.size_bytes for r in staying) <= budget.memory_bytes


def _explain(size_bytes: int, others: Sequence[Resident], budget: Budget) -> str:
    pinned_bytes = sum(r.size_bytes for r in others if r.is_pinned)
    limit = "no limit" if budget.memory_bytes is None else format_bytes(budget.memory_bytes)
    models = "" if budget.max_loaded is None else f" for at most {budget.max_loaded} models"
    return (
        f"needs {format_bytes(size_bytes)} beside {format_bytes(pinned_bytes)} of pinned models,"
        f" the memory budget is {limit}{models};"
        " raise memory or max_loaded_models, unpin a model, or choose smaller KV types or num_ctx"
    )
