"""The largest context that fits in a given memory."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from kvsup.kvtypes import KVPair
from kvsup.memory import CELL_TOKENS, Draft, Launch, estimate
from kvsup.modelshape import ModelShape

_NONE_LEARNT: Mapping[str, float] = MappingProxyType({})


def largest_context(
    shape: ModelShape,
    pair: KVPair,
    launch: Launch,
    *,
    weights_bytes: int,
    budget_bytes: int,
    bytes_per_element: Mapping[str, float] = _NONE_LEARNT,
    draft: Draft | None = None,
    allowance_bytes: int = 0,
) -> int | None:
    """Return the tokens of each slot that fit in ``budget_bytes``; None if not even one cell does.

    A multiple of the 256 tokens that llama.cpp allocates at once, or what the model was trained
    for, where that is less. All memory of an estimate grows with the context, so halving finds it.

    Args:
        shape: what its header says.
        pair: types of K and V.
        launch: the flags that decide memory; its context does not matter.
        weights_bytes: size of its files.
        budget_bytes: for all of it.
        bytes_per_element: of types that only earlier loads have told.
        draft: the model that drafts for it.
        allowance_bytes: for what is no buffer of llama.cpp.
    """
    trained = shape.n_ctx_train_tokens

    def total_bytes(n_cells: int) -> int:
        n_slot_tokens = min(n_cells * CELL_TOKENS, trained)
        result = estimate(
            shape,
            pair,
            replace(launch, n_ctx_tokens=n_slot_tokens * launch.n_parallel),
            weights_bytes=weights_bytes,
            bytes_per_element=bytes_per_element,
            draft=draft,
        )
        return result.total_bytes + allowance_bytes

    steps = range(1, -(-trained // CELL_TOKENS) + 1)
    n_fitting = bisect_right(steps, budget_bytes, key=total_bytes)
    return min(n_fitting * CELL_TOKENS, trained) or None
