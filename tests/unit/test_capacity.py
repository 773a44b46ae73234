"""The largest context that fits, against trying every one."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.capacity import largest_context
from kvsup.gguf import Metadata, Value
from kvsup.kvtypes import F16, STOCK_TYPES, KVPair, KVType, parse_kv_pair
from kvsup.memory import Draft, Launch, estimate
from kvsup.modelshape import ModelShape, shape_of

WEIGHTS_BYTES = 1 << 20
KEYS: Mapping[str, Value] = {
    "block_count": 8,
    "embedding_length": 128,
    "feed_forward_length": 256,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "vocab_size": 1000,
}


def _shape(architecture: str = "llama", *, trained: int, **keys: Value) -> ModelShape:
    merged = {**KEYS, "context_length": trained, **keys}
    values: dict[str, Value] = {"general.architecture": architecture}
    values |= {f"{architecture}.{name}": value for name, value in merged.items()}
    return shape_of(Metadata(3, values, ()))


def _total_bytes(shape: ModelShape, pair: KVPair, launch: Launch, slot_tokens: int) -> int:
    launch = replace(launch, n_ctx_tokens=slot_tokens * launch.n_parallel)
    return estimate(shape, pair, launch, weights_bytes=WEIGHTS_BYTES).total_bytes


@settings(deadline=None)
@given(
    names=st.tuples(st.sampled_from(STOCK_TYPES), st.sampled_from(STOCK_TYPES)),
    architecture=st.sampled_from(["llama", "gemma2"]),
    launch=st.builds(
        Launch,
        n_ctx_tokens=st.just(0),
        n_parallel=st.integers(1, 5),
        unified=st.booleans(),
        n_ubatch=st.sampled_from([64, 512]),
        swa_full=st.booleans(),
        flash_attention=st.sampled_from(["auto", "off"]),
    ),
    trained=st.integers(1, 6000),
    budget_bytes=st.integers(0, 64 << 20),
    allowance_bytes=st.integers(0, 8 << 20),
)
def test_largest_context_is_what_trying_every_one_finds(
    *,
    names: tuple[str, str],
    architecture: str,
    launch: Launch,
    trained: int,
    budget_bytes: int,
    allowance_bytes: int,
) -> None:
    """Of all multiples of 256 up to the trained context, and that itself, the largest that fits."""
    shape = _shape(architecture, trained=trained)
    pair = KVPair(KVType(names[0]), KVType(names[1]))
    sizes = [*range(256, trained, 256), trained]
    room_bytes = budget_bytes - allowance_bytes
    fitting = [n for n in sizes if _total_bytes(shape, pair, launch, n) <= room_bytes]

    found = largest_context(
        shape,
        pair,
        launch,
        weights_bytes=WEIGHTS_BYTES,
        budget_bytes=budget_bytes,
        allowance_bytes=allowance_bytes,
    )

    assert found == max(fitting, default=None)


def test_largest_context_of_a_smaller_pair_is_larger() -> None:
    """Fewer bits of K and V leave room for more tokens."""
    shape = _shape(trained=1 << 17)

    found = {
        text: largest_context(
            shape,
            parse_kv_pair(text),
            Launch(0, 1),
            weights_bytes=WEIGHTS_BYTES,
            budget_bytes=64 << 20,
        )
        for text in ("f16:f16", "q8_0:q4_0")
    }

    assert (found["q8_0:q4_0"] or 0) > (found["f16:f16"] or 0) > 0


def test_largest_context_beside_a_draft_is_smaller() -> None:
    """The draft's weights and its cache take their part."""
    shape = _shape(trained=1 << 17)

    alone, beside = (
        largest_context(
            shape,
            F16,
            Launch(0, 1),
            weights_bytes=WEIGHTS_BYTES,
            budget_bytes=64 << 20,
            draft=draft,
        )
        for draft in (None, Draft(shape, WEIGHTS_BYTES))
    )

    assert 0 < (beside or 0) < (alone or 0)


def test_largest_context_of_a_type_learnt_at_a_load_counts_its_size() -> None:
    """A type of a fork takes what an earlier load has told, not what f16 takes."""
    shape, pair = _shape(trained=1 << 17), parse_kv_pair("turbo3")

    known, unknown = (
        largest_context(
            shape,
            pair,
            Launch(0, 1),
            weights_bytes=WEIGHTS_BYTES,
            budget_bytes=64 << 20,
            bytes_per_element=learnt,
        )
        for learnt in ({"turbo3": 0.5}, {})
    )

    assert (known or 0) > 2 * (unknown or 0) > 0


@pytest.mark.parametrize("trained", [0, 4096])
def test_largest_context_of_a_model_that_does_not_fit_is_none(trained: int) -> None:
    """Weights alone may be too much; and a header may not say what was trained for."""
    found = largest_context(
        _shape(trained=trained), F16, Launch(0), weights_bytes=1 << 30, budget_bytes=1 << 20
    )

    assert found is None
