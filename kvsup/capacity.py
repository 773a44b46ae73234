"""The largest context that fits in a given memory."""

from bisect import bisect_right
from collections.abc import Callable

from kvsup.memory import CELL_TOKENS


def largest_context(
    total_bytes: Callable[[int], int], *, trained_tokens: int, budget_bytes: int
) -> int | None:
    """Return the tokens of each slot that fit in ``budget_bytes``; None if not even one cell does.

    A multiple of the 256 tokens that llama.cpp allocates at once, or what the model was trained
    for, where that is less or no such multiple.

    Args:
        total_bytes: all memory of a context of so many tokens a slot; it never shrinks with it.
        trained_tokens: the most that there may be.
        budget_bytes: for all of it.
    """
    steps = range(1, -(-trained_tokens // CELL_TOKENS) + 1)
    n_fitting = bisect_right(
        steps, budget_bytes, key=lambda n: total_bytes(min(n * CELL_TOKENS, trained_tokens))
    )
    return min(n_fitting * CELL_TOKENS, trained_tokens) or None
