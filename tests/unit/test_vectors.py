"""Vectors that are cut keep their direction, as far as there is one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.llama.vectors import shortened

_NUMBERS = st.floats(-1, 1).map(lambda number: round(number, 6))


@given(st.lists(_NUMBERS, min_size=2, max_size=9), st.integers(1, 8))
def test_shortened_vector_points_where_its_start_did(vector: list[float], dimensions: int) -> None:
    """So the cosine of two cut vectors is their dot product."""
    start = vector[:dimensions]

    cut = shortened(vector, dimensions)

    if dimensions < len(vector):
        length = math.hypot(*start)
        assert math.hypot(*cut) == pytest.approx(1 if length else 0)
        assert [number * length for number in cut] == pytest.approx(start)
    else:
        assert cut == vector


def test_shortened_vector_of_zeros_is_zeros() -> None:
    """It has no direction that could be given a length."""
    assert shortened([0.0, 0.0], 1) == [0.0]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_shortened_vector_without_more_numbers_stays_as_it_is(dimensions: int) -> None:
    """Nothing is cut, so its length is the model's."""
    assert shortened([3.0, 4.0], dimensions) == [3.0, 4.0]
