"""Greedy answers beside those of f16:f16."""

import pytest

from kvsup.tuning.greedy import first_differences


def test_first_difference_of_equal_answers_is_none() -> None:
    """An answer that never parts has no first difference."""
    found = first_differences([(1, 2, 3)], [(1, 2, 3)])

    assert found.first_difference == (None,)
    assert found.lengths == (3,)


def test_first_difference_is_the_index_of_the_first_token_that_differs() -> None:
    """What comes after it does not count, even where it is equal again."""
    found = first_differences([(1, 2, 3, 4), (5, 6)], [(1, 9, 3, 4), (7, 6)])

    assert found.first_difference == (1, 0)


def test_answer_that_ends_earlier_or_later_differs_at_its_end() -> None:
    """The end of an answer is a token that was not chosen."""
    found = first_differences([(1, 2, 3), (1,)], [(1, 2), (1, 2)])

    assert found.first_difference == (2, 1)


def test_answers_to_other_prompts_are_an_error() -> None:
    """As many answers must be compared as there were prompts."""
    with pytest.raises(ValueError, match="longer"):
        first_differences([(1,)], [(1,), (2,)])
