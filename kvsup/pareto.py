"""Which pairs are worth measuring, which measured one is best for a goal, and what was found.

Pure. Losses are mean KL divergences from f16:f16 in nats.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from kvsup.divergence import overlap
from kvsup.kvrules import violation
from kvsup.kvtypes import F16, FlashAttention, KVPair, KVType
from kvsup.measures import Goal, PairMeasurement, Speed
from kvsup.modelshape import ModelShape

ACCURATE_KLD_NATS = 0.005
"""So little that f16:f16 itself loses as much between two builds or machines."""
FLOOR_FACTOR = 2.0
"""A loss below so many times f16:f16's against itself is that floor."""
BALANCED_KLD_NATS = 0.02
"""Some 2 to 3 % of the most likely tokens are others; weights at Q6_K cost about as much."""
SMALL_KLD_NATS = 0.1
"""Some 10 % of the most likely tokens are others: text is still sound, tool calls may break."""
BALANCED_SPEED = 0.5
"""Part of f16:f16's speed that keeps pace, prompt and generation, at every depth.

Below it a pair counts as slow (``kvchoice.SLOW_RATIO``).
"""
SAME_SPEED = 0.97
"""Generation that is not further below the fastest is as fast: runs of one pair differ as much."""
SAME_WEIGHT = 1.25
"""Losses of two swapped pairs that differ by a smaller factor tell nothing of K and V."""

WIDE_TYPES = ("f32", "bf16")
"""Types that no one gains by: as large as f16 or larger, and no better."""
TWINS = ("q8_0:q4_0", "q4_0:q8_0")
"""The swapped pairs that tell whether K matters more than V."""
ALWAYS = (*TWINS, "q8_0:q8_0", "q8_0:q5_1")
"""Pairs that people ask for: measured wherever they are possible."""

GOALS: tuple[Goal, ...] = ("accurate", "balanced", "small", "fast")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """The best pair for a goal, and why; no pair where none will do."""

    pair: str | None
    reason: str


def candidates(
    kv_types: Iterable[str],
    shape: ModelShape | None,
    flash_attention: FlashAttention,
    *,
    with_wide: bool = False,
) -> tuple[tuple[KVPair, ...], Mapping[KVPair, str]]:
    """Return the pairs of ``kv_types`` that break no rule, and those that do with what they break.

    Args:
        kv_types: the names that the binary takes.
        shape: the model's; None where it cannot be read.
        flash_attention: as it is configured.
        with_wide: take f32 and bf16 too.
    """
    names = [name for name in kv_types if with_wide or name not in WIDE_TYPES]
    pairs = [KVPair(KVType(k), KVType(v)) for k, v in product(names, repeat=2)]
    refused = {
        pair: broken.message
        for pair in pairs
        if (broken := violation(pair, flash_attention, shape)) is not None
    }
    return tuple(pair for pair in pairs if pair not in refused), refused


def halves(pairs: Collection[KVPair]) -> tuple[KVPair, ...]:
    """Return the pairs with f16 in one half that tell what each type costs in the other.

    Those of ``pairs`` only: where K and V must be of one type there are none.
    """
    types = sorted({half for pair in pairs for half in (pair.k, pair.v)} - {F16.k})
    alone = [half for t in types for half in (KVPair(t, F16.v), KVPair(F16.k, t))]
    return tuple(pair for pair in alone if pair in pairs)


def predicted(pair: KVPair, losses: Mapping[KVPair, float]) -> float | None:
    """Return the loss of ``pair`` if K's and V's add up, or None where a half is not known.

    They do nearly, while both are small. f16 alone costs nothing, so a half predicts itself.
    """
    known = {**losses, F16: 0.0}
    k, v = known.get(KVPair(pair.k, F16.v)), known.get(KVPair(F16.k, pair.v))
    return None if k is None or v is None else k + v


def front(items: Iterable[T], cost: Callable[[T], Sequence[float]]) -> list[T]:
    """Return the items that no other dominates, in the order of their costs.

    One dominates another if it costs no more in any respect and less in one; of equals all stay.
    """
    costed = sorted(((tuple(cost(item)), item) for item in items), key=lambda entry: entry[0])
    return [item for own, item in costed if not any(_dominates(other, own) for other, _ in costed)]


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def pareto(measurements: Iterable[PairMeasurement]) -> list[PairMeasurement]:
    """Return what was measured and is dominated by nothing in bytes and loss, by bytes."""
    measured = [m for m in measurements if m.quality is not None]
    return front(measured, lambda m: (size_bytes(m), loss_nats(m)))


def size_bytes(measurement: PairMeasurement) -> int:
    """Return the bytes of a pair's cache, with the scratch that f16:f16 does not need."""
    return measurement.k_bytes + measurement.v_bytes + measurement.scratch_bytes


def loss_nats(measurement: PairMeasurement) -> float:
    """Return the measured loss of a pair; infinity where it was not measured."""
    return measurement.quality.mean_kld_nats if measurement.quality else float("inf")


def deep_speed(measurement: PairMeasurement) -> Speed | None:
    """Return the speeds at the greatest depth that was measured."""
    return max(measurement.speeds, key=lambda speed: speed.depth_tokens, default=None)


def pick(
    measurements: Collection[PairMeasurement],
    goal: Goal,
    *,
    max_kld: float | None = None,
    memory_bytes: int | None = None,
) -> Choice:
    """Return the best of the measured pairs for ``goal``, with the reason in a sentence.

    Args:
        measurements: f16:f16 among them, as the floor and the measure of speeds.
        goal: ``accurate``, ``balanced`` and ``small`` are the least bytes under their limits, the
            first two among pairs that keep pace with f16:f16, where there are any; ``fast`` is the
            fastest generation at depth. No goal is served by a pair whose tool calls differ.
        max_kld: a limit on the mean loss instead of the goal's own.
        memory_bytes: what the cache may take, with its scratch.
    """
    sound = [m for m in measurements if m.quality is not None and m.failure is None]
    if not sound:
        return Choice(None, "nothing was measured")
    limit = _limit(sound, goal) if max_kld is None else max_kld
    fitting = [m for m in sound if memory_bytes is None or size_bytes(m) <= memory_bytes]
    if not fitting:
        return Choice(None, f"no pair fits: {min(sound, key=size_bytes).pair} is the smallest")
    near = [m for m in fitting if loss_nats(m) <= limit]
    if not near:
        best = min(fitting, key=loss_nats)
        return Choice(
            None,
            f"no pair that fits loses at most {limit:.3g} nats; "
            f"{best.pair} loses least, {loss_nats(best):.3g}",
        )
    enough = [m for m in near if _calls_alike(m)]
    if not enough:
        names = ", ".join(m.pair for m in near)
        return Choice(None, f"tool calls differ from f16:f16's with every pair that fits: {names}")
    parted = "" if len(enough) == len(near) else "calls tools as f16:f16 does and "
    if goal == "fast":
        return _fastest(enough, f"{parted}loses at most {limit:.3g} nats")
    steady = [m for m in enough if _keeps_pace(m, sound)]
    if goal != "small" and steady and len(steady) < len(enough):
        parted += f"keeps {BALANCED_SPEED:.0%} of f16:f16's speeds and "
        enough = steady
    best = min(enough, key=lambda m: (size_bytes(m), loss_nats(m)))
    slow = "" if best in steady else "; that is slow"
    return Choice(
        best.pair,
        f"it is the smallest that {parted}loses at most {limit:.3g} nats: {loss_nats(best):.2g}"
        + _part(best, sound)
        + slow,
    )


def _calls_alike(measurement: PairMeasurement) -> bool:
    """Say whether all tool calls are f16:f16's, where there were any to compare."""
    return measurement.trajectory is None or all(measurement.trajectory.same_tool_calls)


def _limit(measurements: Iterable[PairMeasurement], goal: Goal) -> float:
    if goal == "accurate":
        floor = [loss_nats(m) for m in measurements if m.pair == str(F16)]
        return max(ACCURATE_KLD_NATS, FLOOR_FACTOR * max(floor, default=0.0))
    return SMALL_KLD_NATS if goal == "small" else BALANCED_KLD_NATS


def _fastest(measurements: Sequence[PairMeasurement], condition: str) -> Choice:
    timed = [(speed, m) for m in measurements if (speed := deep_speed(m)) is not None]
    if not timed:
        return Choice(None, "no speed was measured")
    top = max(speed.generation_tokens_per_s for speed, _ in timed)
    as_fast = [x for x in timed if x[0].generation_tokens_per_s >= SAME_SPEED * top]
    speed, best = min(as_fast, key=lambda x: (size_bytes(x[1]), loss_nats(x[1])))
    return Choice(
        best.pair,
        f"it is the fastest at depth that {condition}: "
        f"{speed.generation_tokens_per_s:.3g} tokens/s behind {speed.depth_tokens} tokens"
        + (", the smallest of those as fast" if len(as_fast) > 1 else ""),
    )


def _keeps_pace(measurement: PairMeasurement, measurements: Iterable[PairMeasurement]) -> bool:
    """Say whether a pair is fast enough beside f16:f16, wherever both were measured."""
    baseline = {s.depth_tokens: s for m in measurements if m.pair == str(F16) for s in m.speeds}
    return all(
        s.prompt_tokens_per_s >= BALANCED_SPEED * b.prompt_tokens_per_s
        and s.generation_tokens_per_s >= BALANCED_SPEED * b.generation_tokens_per_s
        for s in measurement.speeds
        if (b := baseline.get(s.depth_tokens)) is not None
    )


def _part(best: PairMeasurement, measurements: Iterable[PairMeasurement]) -> str:
    """Word what the best pair keeps of f16:f16's bytes and speeds."""
    baseline = next((m for m in measurements if m.pair == str(F16)), None)
    if baseline is None or baseline is best or not size_bytes(baseline):
        return ""
    size = f", with {size_bytes(best) / size_bytes(baseline):.0%} of f16:f16's bytes"
    speed, was = deep_speed(best), deep_speed(baseline)
    if speed is None or was is None or speed.depth_tokens != was.depth_tokens:
        return size
    prompt = speed.prompt_tokens_per_s / was.prompt_tokens_per_s
    generation = speed.generation_tokens_per_s / was.generation_tokens_per_s
    depth = f" behind {speed.depth_tokens} tokens" if speed.depth_tokens else ""
    return f"{size}, {generation:.0%} of its generation and {prompt:.0%} of its prompt speed{depth}"


def overlaps(a: PairMeasurement, b: PairMeasurement) -> bool:
    """Say whether the losses of two pairs cannot be told apart by their intervals alone."""
    return a.quality is None or b.quality is None or overlap(a.quality, b.quality)


def finding(
    measurements: Iterable[PairMeasurement],
    are_equal: Callable[[PairMeasurement, PairMeasurement], bool] = overlaps,
) -> str:
    """Return in a sentence whether K or V matters more, from two measured swapped pairs.

    The usual twins are taken before others; an empty text where no two were measured.
    ``are_equal`` says whether two pairs cannot be told apart.
    """
    measured = {m.pair: m for m in measurements if m.quality is not None}
    for pair in sorted(measured, key=lambda pair: (pair not in TWINS, pair)):
        k, v = pair.split(":")
        twin = measured.get(f"{v}:{k}")
        if twin is not None and _bytes_of(k) > _bytes_of(v):
            return _compared(measured[pair], twin, is_tie=are_equal(measured[pair], twin))
    return ""


def _compared(rich_k: PairMeasurement, rich_v: PairMeasurement, *, is_tie: bool) -> str:
    """Word what two swapped pairs tell, the one with more bits in K first."""
    better, worse = sorted((rich_k, rich_v), key=loss_nats)
    is_same_size = better.k_bytes + better.v_bytes == worse.k_bytes + worse.v_bytes
    numbers = (
        f"{better.pair} loses {loss_nats(better):.2g} nats, {worse.pair} {loss_nats(worse):.2g}"
        + (", at the same size." if is_same_size else ".")
    )
    if is_tie:
        return f"K and V cannot be told apart at this sample: {numbers}"
    ratio = loss_nats(worse) / loss_nats(better) if loss_nats(better) > 0 else float("inf")
    if ratio < SAME_WEIGHT:
        return f"K and V matter about the same here: {numbers}"
    strong, weak = ("K", "V") if better is rich_k else ("V", "K")
    return f"{strong} matters {ratio:.1f} times more than {weak} here: {numbers}"


def _bytes_of(name: str) -> int:
    """Return the bytes of 32 elements; 0 for a type of unknown size."""
    return KVType(name).row_bytes(32) or 0
