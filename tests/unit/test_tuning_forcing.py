"""The divergence that is found from the likeliest tokens alone."""

import math

from hypothesis import given
from hypothesis import strategies as st

from kvsup.tuning.forcing import Reference, coarse_kld_nats

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


def test_divergence_of_an_impossible_token_is_nothing_and_not_an_error() -> None:
    """llama-server tells the logarithm of 0 as a very large negative number."""
    p = {1: 0.0, 2: -1.8e308}
    q = {1: 0.0, 2: -1.0}

    found = coarse_kld_nats(p, q)

    assert found == 0.0


def test_reference_keeps_the_ids_of_each_token_in_their_order() -> None:
    """The first id of a token is its likeliest, which same-top is judged by."""
    kept = Reference.of(
        targets=[7, 8],
        target_logprobs=[-0.5, -1.0],
        tops=[{4: -0.25, 7: -0.5}, {8: -1.0, 3: -1.5}],
    )

    tops = [list(kept.top(0).items()), list(kept.top(1).items())]

    assert tops == [[(4, -0.25), (7, -0.5)], [(8, -1.0), (3, -1.5)]]
