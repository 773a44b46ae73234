"""Which pairs a study looks at, what it refuses before it measures, and how it ranks losses."""

from dataclasses import replace

import pytest

from kvsup.config import ModelConfig
from kvsup.errors import ConfigError
from kvsup.gguf import Metadata, Value
from kvsup.kvtypes import F16, STOCK_TYPES, KVPair, parse_kv_pair
from kvsup.llama.binary import Binary
from kvsup.modelfile import ModelFile
from kvsup.modelshape import shape_of
from kvsup.plan import Plan, make_plan
from kvsup.tuning.scope import Wishes, cache_bytes, check_room, considered
from kvsup.tuning.study import rank_agreement

BINARY = Binary("/bin/llama-server", "0.6.0", 11434, STOCK_TYPES, frozenset(), ())
KEYS: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.vocab_size": 49152,
}


def plan_of(*, head: int = 64, num_ctx: int = 4096) -> Plan:
    """Return the plan of a model whose heads have this size."""
    keys = {f"llama.attention.{half}_length": head for half in ("key", "value")}
    metadata = Metadata(3, {**KEYS, **keys}, ())
    file = ModelFile(metadata, shape_of(metadata), 135_000_000, 90 << 20, 1, "stamp")
    model = ModelConfig(name="m", model="/m.gguf", num_ctx=num_ctx)
    return make_plan(model, BINARY, file, inherited={}, run_dir="/run/kvsup/0123456789ab")


def pairs_of(*names: str) -> tuple[KVPair, ...]:
    """Return the pairs of these names."""
    return tuple(parse_kv_pair(name) for name in names)


def test_considered_are_all_mixes_beside_f16() -> None:
    """f16:f16 is what they are held against."""
    pairs, refused = considered(plan_of(), Wishes())

    assert len(pairs) == 7 * 7 - 1
    assert F16 not in pairs
    assert not refused


def test_considered_of_named_pairs_leaves_out_those_that_cannot_run() -> None:
    """With the mend; what is not named is not told of."""
    named = pairs_of("q4_0:f16", "f16:bf16", "f16:bf16", "f16:f16")

    pairs, refused = considered(plan_of(head=80), Wishes(pairs=named))

    assert pairs == pairs_of("f16:bf16")
    assert list(refused) == list(pairs_of("q4_0:f16"))
    assert "use f16:f16" in refused[named[0]]


def test_considered_of_named_pairs_that_all_cannot_run_is_refused_at_once() -> None:
    """Naming what can."""
    named = pairs_of("q4_0:f16", "f16:q8_0")

    with pytest.raises(ConfigError, match=r"--pairs: q4_0:f16: .*use .*; f16:q8_0: .*use "):
        considered(plan_of(head=80), Wishes(pairs=named))


def test_considered_of_a_model_without_a_cache_is_refused_at_once() -> None:
    """Every pair would lose nothing."""
    plan = plan_of()
    shape = replace(plan.file.shape, layers=())
    bare = replace(plan, file=replace(plan.file, shape=shape))

    with pytest.raises(ConfigError, match="has no KV cache"):
        considered(bare, Wishes())


def test_check_room_where_no_pair_fits_names_sizes_and_a_context_that_does() -> None:
    """Before minutes of measuring."""
    plan = plan_of(num_ctx=8192)
    room = plan.with_num_ctx(1024).size_bytes

    with pytest.raises(ConfigError, match=r"f16:f16, the smallest, takes .*at 8192 .*180 MiB") as e:
        check_room({F16: plan}, room)

    assert f"use --context {plan.largest_num_ctx(room)}, or give more memory" in str(e.value)


def test_check_room_where_the_weights_alone_are_too_large_names_no_context() -> None:
    """None would do."""
    with pytest.raises(ConfigError, match="no context does; give more memory"):
        check_room({F16: plan_of()}, 1 << 20)


def test_check_room_where_one_pair_fits_says_nothing() -> None:
    """The others are passed over later."""
    plan = plan_of()

    check_room({F16: plan}, plan.size_bytes)
    check_room({F16: plan}, None)


def test_cache_bytes_are_what_weights_and_buffers_leave() -> None:
    """Less than nothing where they leave nothing."""
    plan = plan_of()

    assert cache_bytes(plan, plan.size_bytes) == plan.estimate.kv_bytes
    assert (cache_bytes(plan, 0) or 0) < 0
    assert cache_bytes(plan, None) is None


def test_rank_agreement_of_losses_in_the_same_order_is_one() -> None:
    """Whatever their sizes."""
    pairs = pairs_of("q8_0:q8_0", "q8_0:q4_0", "q4_0:q8_0", "q4_0:q4_0")
    ours = dict(zip(pairs, (0.1, 0.2, 0.3, 0.4), strict=True))

    assert rank_agreement(ours, {pair: loss**3 for pair, loss in ours.items()}) == 1
    assert rank_agreement(ours, {pair: -loss for pair, loss in ours.items()}) == -1


def test_rank_agreement_of_losses_without_an_order_is_none() -> None:
    """Too few of them, or all equal on one side."""
    pairs = pairs_of("q8_0:q8_0", "q8_0:q4_0", "q4_0:q8_0", "q4_0:q4_0")
    ours = dict(zip(pairs, (0.1, 0.2, 0.3, 0.4), strict=True))

    assert rank_agreement(ours, dict.fromkeys(pairs, 0.0)) is None
    assert rank_agreement(dict.fromkeys(pairs, 0.0), ours) is None
    assert rank_agreement({pairs[0]: 0.1}, {pairs[0]: 0.1}) is None
