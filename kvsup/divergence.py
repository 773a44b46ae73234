"""How much a pair loses, and whether two pairs can be told apart, from the scores of single tokens.

Tokens of one conversation (or chunk) are not independent: an interval that takes them to be so
comes out 1.5 to 2.6 times too narrow (b11434, SmolLM2). So whole blocks are drawn, with
replacement, and the mean is taken anew each time. All losses are in nats.
"""

import math
import random
from collections.abc import Sequence
from itertools import accumulate, pairwise

from kvsup.measures import Quality, TokenScores

RESAMPLES = 1000
MIN_BLOCKS = 8
"""Fewer say nothing of how they vary; long ones are cut."""
MAX_BLOCKS = 100
"""More say little else; neighbours are joined, for speed."""

_TAIL = 0.025
_SEED = 11434

Block = tuple[float, int]
"""Sum over the tokens of a block, and how many they are."""


def quality_of(scores: TokenScores, *, seed: int = _SEED) -> Quality:
    """Return what the pair with these ``scores`` loses, with the 95 % interval of the mean.

    Raises:
        ValueError: no token was scored.
    """
    n_tokens = len(scores.kld_nats)
    if not n_tokens:
        raise ValueError("no token was scored")
    low, high = interval(_blocks(scores.kld_nats, scores.blocks), seed=seed)
    worse = math.fsum(scores.reference_logprob) - math.fsum(scores.logprob)
    return Quality(
        n_tokens=n_tokens,
        mean_kld_nats=math.fsum(scores.kld_nats) / n_tokens,
        low_kld_nats=low,
        high_kld_nats=high,
        p999_kld_nats=percentile(scores.kld_nats, 0.999),
        max_kld_nats=max(scores.kld_nats),
        same_top=sum(scores.is_same_top) / n_tokens,
        perplexity_ratio=math.exp(worse / n_tokens),
    )


def is_tie(a: TokenScores, b: TokenScores, *, seed: int = _SEED) -> bool:
    """Say whether the mean losses of two pairs cannot be told apart on the tokens of both.

    They are compared token by token, so that what is hard for every pair does not hide which is
    better: five pairs came out in the right order in 99.8 % of draws of two chunks (b11434).

    Raises:
        ValueError: the two were not scored on the same tokens.
    """
    if a.blocks != b.blocks or len(a.kld_nats) != len(b.kld_nats) or not a.kld_nats:
        raise ValueError("only scores of the same tokens can be compared")
    differences = [x - y for x, y in zip(a.kld_nats, b.kld_nats, strict=True)]
    low, high = interval(_blocks(differences, a.blocks), seed=seed)
    return low <= 0 <= high


def overlap(a: Quality, b: Quality) -> bool:
    """Say whether two intervals overlap: all that can be said without scores of single tokens."""
    return a.low_kld_nats <= b.high_kld_nats and b.low_kld_nats <= a.high_kld_nats


def interval(blocks: Sequence[Block], *, seed: int = _SEED) -> tuple[float, float]:
    """Return the 95 % interval of the mean over all tokens, by drawing ``blocks`` as they are.

    One block alone has an interval without a width, which says nothing of how sure its mean is.
    """
    draw = random.Random(seed)  # noqa: S311 - statistics, and the same in every run
    means = []
    for _ in range(RESAMPLES):
        drawn = draw.choices(blocks, k=len(blocks))
        means.append(sum(block[0] for block in drawn) / sum(block[1] for block in drawn))
    return percentile(means, _TAIL), percentile(means, 1 - _TAIL)


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value that ``part`` of ``values`` do not exceed, between two by their distance."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the rank correlation of two sequences, -1 to 1; equal values share their ranks.

    Raises:
        ValueError: they differ in length, have less than two elements, or one never changes.
    """
    if len(a) != len(b) or len(set(a)) < 2 or len(set(b)) < 2:
        raise ValueError("ranks need two sequences of one length that change")
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    middle = (len(a) + 1) / 2
    covariance = sum((x - middle) * (y - middle) for x, y in zip(ranks_a, ranks_b, strict=True))
    spread = sum((x - middle) ** 2 for x in ranks_a) * sum((y - middle) ** 2 for y in ranks_b)
    return covariance / math.sqrt(spread)


def _ranks(values: Sequence[float]) -> list[float]:
    """Return each value's rank from 1; equal ones have the mean of theirs."""
    ordered = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(ordered, start=1)))}
    last = {value: place for place, value in enumerate(ordered, start=1)}
    return [(first[value] + last[value]) / 2 for value in values]


def _blocks(values: Sequence[float], lengths: Sequence[int]) -> list[Block]:
    """Return the blocks to draw from: as they are, but between MIN_BLOCKS and MAX_BLOCKS."""
    if sum(lengths) != len(values):
        raise ValueError("the blocks do not cover the tokens")
    ends = list(accumulate(length for length in lengths if length))
    if len(ends) < MIN_BLOCKS:
        parts = -(-MIN_BLOCKS // len(ends))
        starts = [0, *ends[:-1]]
        cuts = {
            start + (end - start) * part // parts
            for start, end in zip(starts, ends, strict=True)
            for part in range(1, parts + 1)
        }
        ends = sorted(cuts - {0})
    step = -(-len(ends) // MAX_BLOCKS)
    ends = sorted({*ends[step - 1 :: step], len(values)})
    return [(math.fsum(values[i:j]), j - i) for i, j in pairwise((0, *ends))]
