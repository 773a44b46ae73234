"""What is made of the scores of single tokens: means, intervals, ties and ranks."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.divergence import interval, is_tie, overlap, percentile, quality_of, spearman
from kvsup.measures import TokenScores


def scores(
    klds: Sequence[float],
    *,
    blocks: Sequence[int] | None = None,
    same_top: Sequence[bool] | None = None,
    worse_nats: float = 0.0,
) -> TokenScores:
    """Return scores with these losses, in blocks of ten tokens where none are given."""
    n_tokens = len(klds)
    return TokenScores(
        kld_nats=tuple(klds),
        is_same_top=tuple(same_top or (True,) * n_tokens),
        logprob=(-1.0 - worse_nats,) * n_tokens,
        reference_logprob=(-1.0,) * n_tokens,
        blocks=tuple(blocks or (10,) * (n_tokens // 10)),
    )


def test_quality_of_known_scores_is_what_their_definitions_say() -> None:
    """Mean, tail, top token and perplexity, each over all tokens."""
    klds = [0.01] * 99 + [1.01]

    quality = quality_of(scores(klds, same_top=[True] * 95 + [False] * 5, worse_nats=0.1))

    assert quality.n_tokens == 100
    assert quality.mean_kld_nats == pytest.approx(0.02)
    assert quality.max_kld_nats == 1.01
    assert quality.p999_kld_nats == pytest.approx(0.01 + 0.901)
    assert quality.same_top == 0.95
    assert quality.perplexity_ratio == pytest.approx(math.exp(0.1))


def test_interval_of_a_mean_contains_it_and_is_the_same_in_each_run() -> None:
    """Nothing is left to chance that a reader could not repeat."""
    draw = random.Random(1)
    sample = scores([draw.expovariate(100) for _ in range(400)])

    one, other = quality_of(sample), quality_of(sample)

    assert one == other
    assert one.low_kld_nats < one.mean_kld_nats < one.high_kld_nats


def test_interval_of_blocks_that_differ_is_wider_than_of_tokens_that_do() -> None:
    """Tokens of one conversation are alike, so as many tell less than independent ones."""
    draw = random.Random(2)
    by_block = [level for _ in range(20) for level in [draw.expovariate(100)] * 10]
    mixed = draw.sample(by_block, len(by_block))

    alike, independent = quality_of(scores(by_block)), quality_of(scores(mixed))

    width = alike.high_kld_nats - alike.low_kld_nats
    assert width > 1.5 * (independent.high_kld_nats - independent.low_kld_nats)


def test_interval_of_one_long_block_still_has_a_width() -> None:
    """It is cut: a single block would claim that its mean is certain."""
    draw = random.Random(3)
    klds = [draw.expovariate(100) for _ in range(200)]

    quality = quality_of(scores(klds, blocks=[200]))

    assert quality.low_kld_nats < quality.mean_kld_nats < quality.high_kld_nats


def test_interval_of_a_thousand_blocks_is_like_that_of_a_hundred() -> None:
    """Neighbours are joined, and no token is lost by it."""
    draw = random.Random(4)
    klds = [draw.expovariate(100) for _ in range(5005)]

    many, few = (quality_of(scores(klds, blocks=[n] * (5005 // n))) for n in (5, 55))

    assert many.mean_kld_nats == few.mean_kld_nats
    assert many.high_kld_nats == pytest.approx(few.high_kld_nats, rel=0.02)


def test_interval_of_given_blocks_draws_them_as_they_are() -> None:
    """Two blocks have three means between them, and no part of a block is one of its own."""
    low, high = interval([(1.0, 10), (3.0, 10)])

    assert (low, high) == pytest.approx((0.1, 0.3))


@pytest.mark.parametrize(("klds", "blocks"), [([], []), ([0.1] * 10, [9]), ([0.1] * 10, [9, 2])])
def test_quality_of_scores_that_fit_no_blocks_is_refused(
    klds: list[float], blocks: list[int]
) -> None:
    """Nothing is told of no tokens, nor of some of them."""
    with pytest.raises(ValueError, match="token"):
        quality_of(scores(klds, blocks=blocks))


def test_tie_of_a_pair_that_is_little_worse_on_every_token_is_none() -> None:
    """What is hard for both does not hide it, although the intervals overlap."""
    draw = random.Random(5)
    klds = [draw.expovariate(100) for _ in range(300)]
    better, worse = scores(klds), scores([kld * 1.1 for kld in klds])

    assert overlap(quality_of(better), quality_of(worse))
    assert not is_tie(better, worse)
    assert not is_tie(worse, better)


def test_tie_of_pairs_that_take_turns_in_being_worse_is_one() -> None:
    """No difference that a few more tokens would turn round is reported."""
    draw = random.Random(6)
    one = scores([draw.expovariate(100) for _ in range(300)])
    other = scores([draw.expovariate(100) for _ in range(300)])

    assert is_tie(one, other)
    assert is_tie(one, one)


@pytest.mark.parametrize("other", [scores([0.1] * 30), scores([0.1] * 20, blocks=[5, 15])])
def test_tie_of_scores_of_other_tokens_is_refused(other: TokenScores) -> None:
    """Only what was measured on the same tokens can be compared token by token."""
    with pytest.raises(ValueError, match="same tokens"):
        is_tie(scores([0.1] * 20), other)


def test_overlap_of_intervals_apart_is_none() -> None:
    """In either order."""
    low, high = quality_of(scores([0.01] * 100)), quality_of(scores([0.02] * 100))

    assert not overlap(low, high)
    assert not overlap(high, low)
    assert overlap(low, low)


@pytest.mark.parametrize(
    ("part", "expected"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (1 / 3, 2.0), (0.9, 3.7)]
)
def test_percentile_between_two_values_is_between_them(part: float, expected: float) -> None:
    """As far as its place is between theirs."""
    assert percentile([3.0, 1.0, 4.0, 2.0], part) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [10, 20, 1000], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9486833),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),
    ],
)
def test_spearman_of_known_ranks_is_the_textbook_value(
    a: list[float], b: list[float], expected: float
) -> None:
    """Only ranks count; equal values share theirs."""
    assert spearman(a, b) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=20).filter(
        lambda rows: all(len(set(column)) > 1 for column in zip(*rows, strict=True))
    )
)
def test_spearman_of_anything_is_between_minus_one_and_one(
    rows: list[tuple[float, float]],
) -> None:
    """And the same in either order."""
    a, b = ([row[i] for row in rows] for i in (0, 1))

    assert -1 - 1e-9 <= spearman(a, b) <= 1 + 1e-9
    assert spearman(a, b) == pytest.approx(spearman(b, a))


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1]), ([1], [1]), ([1, 1], [1, 2]), ([], [])])
def test_spearman_of_what_has_no_ranks_is_refused(a: list[float], b: list[float]) -> None:
    """A sequence that never changes agrees with nothing."""
    with pytest.raises(ValueError, match="ranks"):
        spearman(a, b)
