"""What a load taught, kept on disk for later ones."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from kvsup.config import ModelConfig
from kvsup.gguf import Metadata, Value
from kvsup.kvtypes import parse_kv_pair
from kvsup.llama.binary import Binary
from kvsup.llama.logscan import (
    BufferSize,
    CompiledPairs,
    Fact,
    GraphSplits,
    KVCacheSize,
    SlotContext,
    VPadded,
)
from kvsup.measures import SizesMeasured, TypeSize
from kvsup.modelfile import ModelFile
from kvsup.modelshape import shape_of
from kvsup.plan import Plan, make_plan
from kvsup.runtime.learning import fa_quants, learn, learnt_types, remembered_sizes, type_sizes
from kvsup.runtime.measured import Measured
from kvsup.runtime.remembered import Remembered

MIB = 1 << 20
BINARY = Binary("/bin/llama-server", "0.6.0", 11434, ("f16", "turbo3"), frozenset(), ())
LLAMA: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.vocab_size": 49152,
}
GEMMA: dict[str, Value] = {
    "general.architecture": "gemma3",
    "gemma3.block_count": 18,
    "gemma3.context_length": 8192,
    "gemma3.embedding_length": 640,
    "gemma3.feed_forward_length": 2048,
    "gemma3.attention.head_count": 4,
    "gemma3.attention.head_count_kv": 1,
    "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256,
    "gemma3.attention.sliding_window": 512,
    "gemma3.vocab_size": 1000,
}


@pytest.fixture
def store(tmp_path: Path) -> Remembered:
    """Return an empty memory."""
    return Remembered(tmp_path)


def plan_of(keys: dict[str, Value] = LLAMA, *, pair: str = "turbo3", num_ctx: int = 4096) -> Plan:
    """Return a plan of a model with such a header."""
    metadata = Metadata(3, keys, ())
    model = ModelConfig(
        name="m", model="/m.gguf", num_ctx=num_ctx, kv_cache_type=parse_kv_pair(pair)
    )
    file = ModelFile(metadata, shape_of(metadata), 135_000_000, 90 << 20, 1, "stamp")
    return make_plan(model, BINARY, file, inherited={}, run_dir="/run/kvsup/0123456789ab")


def measured_of(*facts: Fact) -> Measured:
    """Return what is kept of ``facts``."""
    measured = Measured()
    for fact in facts:
        measured.note(fact)
    return measured


def cache_of(
    k_bytes: int, v_bytes: int, *, cells: int, layers: int = 30, pair: str = "turbo3:turbo3"
) -> KVCacheSize:
    """Return a cache of one stream."""
    type_k, _, type_v = pair.partition(":")
    return KVCacheSize(type_k, type_v, k_bytes, v_bytes, cells=cells, layers=layers, streams=1)


def test_sizes_of_a_load_are_remembered_for_the_same_launch(store: Remembered) -> None:
    """Another context, pair or binary is another launch."""
    plan = plan_of(pair="q8_0:q5_1")
    cache = cache_of(25 * MIB, 17 * MIB, cells=4096, pair="q8_0:q5_1")
    buffers = [
        BufferSize("CPU_Mapped", "model", 28),
        BufferSize("CUDA0", "model", 92),
        BufferSize("CUDA0", "KV", 42),
    ]

    measured = measured_of(*buffers, cache, GraphSplits(3, 2))
    measured.load_s = 7.5

    learn(store, plan, measured)

    assert remembered_sizes(store, plan) == SizesMeasured(
        num_ctx=4096,
        bytes_by_device={"RAM": 28, "CUDA0": 134},
        mapped_bytes=28,
        k_bytes=25 * MIB,
        v_bytes=17 * MIB,
        graph_splits=2,
        load_s=7.5,
    )
    other_binary = msgspec.structs.replace(BINARY, path="/bin/other")
    assert remembered_sizes(store, plan_of(pair="q8_0:q5_1", num_ctx=2048)) is None
    assert remembered_sizes(store, plan_of(pair="q8_0:q8_0")) is None
    assert remembered_sizes(store, replace(plan, binary=other_binary)) is None


def test_load_whose_log_told_no_sizes_is_not_remembered(store: Remembered) -> None:
    """Nothing is no size."""
    plan = plan_of()

    learn(store, plan, measured_of(SlotContext(4096)))

    assert remembered_sizes(store, plan) is None
    assert learnt_types(store, BINARY) == {}
    assert fa_quants(store, BINARY) is None


@pytest.mark.parametrize("sizes", [(4096, 256), (256, 4096)])
def test_learnt_type_is_that_of_the_largest_cache(
    store: Remembered, sizes: tuple[int, int]
) -> None:
    """The log is rounded to 0.01 MiB: a larger cache tells the size more exactly, come when may."""
    exact_bytes = 3.25 / 8

    for cells in sizes:
        logged = round(30 * 192 * cells * exact_bytes / MIB, 2)
        cache = cache_of(round(logged * MIB), round(logged * MIB), cells=cells)
        learn(store, plan_of(num_ctx=cells), measured_of(cache))

    learnt = learnt_types(store, BINARY)
    assert list(learnt) == ["turbo3"]
    assert abs(learnt["turbo3"] - exact_bytes) < exact_bytes / 1000


def test_learnt_types_of_one_binary_are_kept_beside_each_other(store: Remembered) -> None:
    """Names mean what each fork makes of them, so another binary knows none of them."""
    elements = 30 * 192 * 4096
    learn(store, plan_of(), measured_of(cache_of(elements, elements, cells=4096)))
    other = cache_of(elements * 2, elements // 2, cells=4096, pair="f16:q2_x")

    learn(store, plan_of(pair="f16:q2_x"), measured_of(other))

    assert learnt_types(store, BINARY) == {"turbo3": 1.0, "q2_x": 0.5}
    assert learnt_types(store, msgspec.structs.replace(BINARY, path="/bin/other")) == {}


def test_type_sizes_of_a_model_with_windows_are_those_of_the_larger_cache() -> None:
    """3 layers see all, 15 a window; the order is that of the log."""
    full, window = 3 * 8192 * 256, 15 * 1024 * 256
    caches = (
        cache_of(full // 2, full // 2, cells=8192, layers=3),
        cache_of(window, window, cells=1024, layers=15),
    )

    found = type_sizes(plan_of(GEMMA), measured_of(*caches))

    assert full // 2 < window
    assert found == {"turbo3": TypeSize(bytes_per_element=1.0, seen_bytes=window)}


def test_type_sizes_of_padded_v_rows_count_what_is_stored() -> None:
    """Without flash attention each row is as wide as the widest."""
    cache = cache_of(1, 30 * 256 * 4096, cells=4096, pair="f16:turbo3")

    found = type_sizes(plan_of(), measured_of(VPadded(256), cache))

    assert found["turbo3"].bytes_per_element == 1.0


def test_type_sizes_of_a_draft_model_are_left_out() -> None:
    """Its cache is logged last, and its shape is another."""
    elements = 30 * 192 * 4096
    own = cache_of(elements, elements, cells=4096)
    draft = cache_of(7 * elements, 7 * elements, cells=4096, layers=4)

    assert type_sizes(plan_of(), measured_of(own, draft))["turbo3"].bytes_per_element == 1.0


@pytest.mark.parametrize(
    "caches",
    [
        [cache_of(5, 5, cells=4096, layers=29)],
        [cache_of(5, 5, cells=4096, pair="q8_0:q4_0")],
        [cache_of(0, 0, cells=4096)],
        [],
    ],
    ids=["other layers", "known types", "nothing stored", "no cache"],
)
def test_type_sizes_of_what_tells_none_are_empty(caches: list[KVCacheSize]) -> None:
    """Where the shape does not fit the log, no size is guessed."""
    assert type_sizes(plan_of(), measured_of(*caches)) == {}


def test_compiled_pairs_are_remembered_for_the_binary(store: Remembered) -> None:
    """It tells them in each load, and the next start wants to know them before."""
    learn(store, plan_of(), measured_of(CompiledPairs(("f16-f16", "q8_0-q8_0"))))

    assert fa_quants(store, BINARY) == ("f16-f16", "q8_0-q8_0")
    assert fa_quants(store, msgspec.structs.replace(BINARY, stamp="another file")) is None
