"""The divergence that is found from the likeliest tokens alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.divergence import quality_of
from kvsup.measures import TokenScores
from kvsup.tuning.forcing import LEAST_LOGPROB_NATS, Reference, coarse_kld_nats, floored

LOGARITHM_OF_ZERO = -3.4028234663852886e38
"""As llama-server tells it: the lowest 32-bit float (b11434)."""

weights = st.lists(st.floats(0.001, 1.0), min_size=4, max_size=12)


def _distribution(parts: list[float]) -> dict[int, float]:
    total = sum(parts)
    return {id_: part / total for id_, part in enumerate(parts)}


def _logs(distribution: dict[int, float], ids: set[int]) -> dict[int, float]:
    return {id_: math.log(distribution[id_]) for id_ in ids}


def _true_kld(p: dict[int, float], q: dict[int, float]) -> float:
    return math.fsum(p[id_] * math.log(p[id_] / q[id_]) for id_ in p)


@given(weights, weights, st.data())
def test_divergence_of_any_parts_is_a_lower_bound_of_the_true_one(
    p_parts: list[float], q_parts: list[float], data: st.DataObject
) -> None:
    """Whatever ids are known of either side, no more divergence is told than there is."""
    size = min(len(p_parts), len(q_parts))
    p, q = _distribution(p_parts[:size]), _distribution(q_parts[:size])
    ids = st.sets(st.integers(0, size - 1))

    found = coarse_kld_nats(_logs(p, data.draw(ids)), _logs(q, data.draw(ids)))

    assert 0.0 <= found <= _true_kld(p, q) + 1e-6


@given(weights, weights)
def test_divergence_of_the_whole_vocabulary_is_the_true_one(
    p_parts: list[float], q_parts: list[float]
) -> None:
    """With every id known on both sides nothing is lost."""
    size = min(len(p_parts), len(q_parts))
    p, q = _distribution(p_parts[:size]), _distribution(q_parts[:size])
    ids = set(p)

    found = coarse_kld_nats(_logs(p, ids), _logs(q, ids))

    assert math.isclose(found, _true_kld(p, q), abs_tol=1e-6)


def test_divergence_with_a_tiny_unknown_rest_is_still_a_lower_bound() -> None:
    """Where f16:f16 is all but sure and the pair is not, the rest counts against the sum."""
    p, q = {1: 1.0 - 5e-7, 2: 5e-7}, {1: 0.5, 2: 0.5}

    found = coarse_kld_nats(_logs(p, {1}), _logs(q, {1}))

    assert found <= _true_kld(p, q) + 1e-9


def test_divergence_of_a_token_that_f16_holds_impossible_is_nothing() -> None:
    """What f16:f16 never chooses loses nothing, whatever the pair makes of it."""
    p = {1: 0.0, 2: floored(LOGARITHM_OF_ZERO)}
    q = {1: 0.0, 2: -1.0}

    found = coarse_kld_nats(p, q)

    assert found == 0.0


def test_quality_of_a_pair_that_holds_a_token_impossible_is_finite() -> None:
    """A broken pair loses as much as 32-bit floats can tell, and does not end the study."""
    logprob = floored(LOGARITHM_OF_ZERO)
    kld = coarse_kld_nats({1: 0.0}, {1: logprob})

    quality = quality_of(
        TokenScores(
            kld_nats=(kld,) * 8,
            is_same_top=(False,) * 8,
            logprob=(logprob,) * 8,
            reference_logprob=(0.0,) * 8,
            blocks=(8,),
        )
    )

    assert quality.mean_kld_nats == pytest.approx(-LEAST_LOGPROB_NATS)
    assert quality.perplexity_ratio == pytest.approx(2.0**149)


def test_floor_of_a_log_probability_is_below_all_that_a_float_can_tell() -> None:
    """The least 32-bit number is kept, and so is what is likelier."""
    assert floored(LEAST_LOGPROB_NATS) == LEAST_LOGPROB_NATS
    assert floored(-97.5) == -97.5
    assert floored(LOGARITHM_OF_ZERO) == LEAST_LOGPROB_NATS


def test_reference_keeps_the_ids_of_each_token_in_their_order() -> None:
    """The first id of a token is its likeliest, which same-top is judged by."""
    kept = Reference.of(
        targets=[7, 8],
        target_logprobs=[-0.5, -1.0],
        tops=[{4: -0.25, 7: -0.5}, {8: -1.0, 3: -1.5}],
    )

    tops = [list(kept.top(0).items()), list(kept.top(1).items())]

    assert tops == [[(4, -0.25), (7, -0.5)], [(8, -1.0), (3, -1.5)]]
