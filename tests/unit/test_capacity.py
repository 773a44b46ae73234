"""The largest context that fits, against trying every one."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.capacity import largest_context
from kvsup.gguf import Metadata, Value
from kvsup.kvtypes import STOCK_TYPES, KVPair, KVType, parse_kv_pair
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
)
def test_largest_context_is_what_trying_every_one_finds(
    *,
    names: tuple[str, str],
    architecture: str,
    launch: Launch,
    trained: int,
    budget_bytes: int,
) -> None:
    """Of all multiples of 256 up to the trained context, and that itself, the largest that fits."""
    shape = _shape(architecture, trained=trained)
    pair = KVPair(KVType(names[0]), KVType(names[1]))
    sizes = [*range(256, trained, 256), trained]
    fitting = [n for n in sizes if _total_bytes(shape, pair, launch, n) <= budget_bytes]

    found = largest_context(
        lambda n: _total_bytes(shape, pair, launch, n),
        trained_tokens=trained,
        budget_bytes=budget_bytes,
    )

    assert found == max(fitting, default=None)


def _largest(pair: str = "f16", *, draft: bool = False, learnt: float | None = None) -> int:
    """Return the tokens that fit in 64 MiB, of a model that was trained for more."""
    shape = _shape(trained=1 << 17)

    def total_bytes(n_tokens: int) -> int:
        return estimate(
            shape,
            parse_kv_pair(pair),
            Launch(n_tokens, 1),
            weights_bytes=WEIGHTS_BYTES,
            bytes_per_element={} if learnt is None else {"turbo3": learnt},
            draft=Draft(shape, WEIGHTS_BYTES) if draft else None,
        ).total_bytes

    found = largest_context(total_bytes, trained_tokens=1 << 17, budget_bytes=64 << 20)
    assert found is not None
    return found


def test_largest_context_follows_the_pair_the_draft_and_what_was_learnt() -> None:
    """Fewer bits leave room, a draft takes its part, a fork's type takes what a load has told."""
    assert _largest("q8_0:q4_0") > _largest("f16:f16") > _largest("f16:f16", draft=True)
    assert _largest("turbo3", learnt=0.5) > 2 * _largest("turbo3")


@pytest.mark.parametrize("trained", [0, 4096])
def test_largest_context_of_a_model_that_does_not_fit_is_none(trained: int) -> None:
    """Weights alone may be too much; and a header may not say what was trained for."""
    found = largest_context(lambda _: 1 << 30, trained_tokens=trained, budget_bytes=1 << 20)

    assert found is None
