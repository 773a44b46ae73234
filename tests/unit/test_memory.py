"""The bytes of one model's caches and buffers, under every launch."""

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.gguf import Value
from kvsup.kvtypes import F16, STOCK_TYPES, KVPair, KVType, parse_kv_pair
from kvsup.memory import Draft, Estimate, Launch, as_table, estimate
from kvsup.modelshape import ModelShape
from kvsup.slowpaths import Backend
from tests.headers import GEMMA3, SMOLLM2, SSM, shape_from

MIB = 1 << 20


def _estimate(shape: ModelShape, pair: str = "f16", launch: Launch | None = None) -> Estimate:
    return estimate(shape, parse_kv_pair(pair), launch or Launch(256, 1), weights_bytes=0)


def _logged(result: Estimate) -> tuple[str, str]:
    """MiB of K and of V, added up from the two decimals that the log gives of each cache."""
    k_mib = sum(round(cache.k_bytes / MIB, 2) for cache in result.caches)
    v_mib = sum(round(cache.v_bytes / MIB, 2) for cache in result.caches)
    return f"{k_mib:.2f}", f"{v_mib:.2f}"


@pytest.mark.parametrize(
    ("pair", "launch", "k_mib", "v_mib", "cells"),
    [
        ("q8_0:q4_0", Launch(4096), "23.91", "12.66", 4096),
        ("q8_0:q4_0", Launch(256), "1.49", "0.79", 256),
        ("q8_0:q4_0", Launch(4096, 3, unified=False), "26.89", "14.24", 1536),
        ("bf16:q5_0", Launch(4096, 2, unified=False), "45.00", "15.47", 2048),
        ("f16:f16", Launch(1000, 1), "11.25", "11.25", 1024),
        ("f16:f16", Launch(0, 1), "90.00", "90.00", 8192),
    ],
)
def test_estimate_of_smollm2_is_what_llama_server_logged(
    pair: str, launch: Launch, k_mib: str, v_mib: str, cells: int
) -> None:
    """The numbers are from the log of llama-server b11434."""
    result = _estimate(shape_from("llama", SMOLLM2), pair, launch)

    assert _logged(result) == (k_mib, v_mib)
    assert [(cache.kind, cache.cells, cache.layers) for cache in result.caches] == [
        ("plain", cells, 30)
    ]
    assert result.is_exact


@pytest.mark.parametrize(
    ("pair", "launch", "k_mib", "v_mib", "cells", "window_cells"),
    [
        ("f16:f16", Launch(8192), "30.75", "30.75", 8192, 2560),
        ("q8_0:q4_0", Launch(8192, 1), "10.36", "5.49", 8192, 1024),
        ("q8_0:q4_0", Launch(8192, 4, unified=False), "22.32", "11.82", 2048, 1024),
        ("q8_0:q4_0", Launch(8192, 4), "16.34", "8.65", 8192, 2560),
        ("q8_0:q8_0", Launch(8192, 1, swa_full=True), "38.26", "38.26", 8192, 8192),
        ("q8_0:q8_0", Launch(8192, 1, n_ubatch=128), "9.37", "9.37", 8192, 768),
    ],
)
def test_estimate_of_gemma3_is_what_llama_server_logged(
    *, pair: str, launch: Launch, k_mib: str, v_mib: str, cells: int, window_cells: int
) -> None:
    """Fifteen of 18 layers see a window; the numbers are from the log of b11434."""
    result = _estimate(shape_from("gemma3", GEMMA3), pair, launch)

    assert _logged(result) == (k_mib, v_mib)
    assert [(cache.kind, cache.cells, cache.layers) for cache in result.caches] == [
        ("full", cells, 3),
        ("swa", window_cells, 15),
    ]
    assert result.is_exact


def test_estimate_without_flash_attention_pads_v_to_its_widest_row() -> None:
    """V is stored transposed then, in rows of one width; K is not."""
    keys = SMOLLM2 | {"block_count": 2, "attention.head_count_kv": (3, 1)}
    shape = shape_from("deci", keys)

    on = _estimate(shape)
    off = _estimate(shape, launch=Launch(256, 1, flash_attention="off"))

    assert on.k_bytes == off.k_bytes == on.v_bytes == 256 * 2 * 64 * 4
    assert off.v_bytes == 256 * 2 * 64 * 6


@pytest.mark.parametrize("pair", ["q6_0:f16", "f16:q6_0"])
def test_estimate_of_a_type_of_unknown_size_counts_it_as_f16(pair: str) -> None:
    """A fork's type has a size only after a load."""
    shape = shape_from("llama", SMOLLM2)

    result = _estimate(shape, pair)

    assert result.kv_bytes == _estimate(shape, "f16").kv_bytes
    assert not result.is_exact
    assert pair == f"{result.caches[0].type_k}:{result.caches[0].type_v}"


def test_estimate_of_a_type_learnt_at_a_load_counts_its_size() -> None:
    """Bytes an element, as an earlier load has told them, are as good as known."""
    shape, learnt = shape_from("llama", SMOLLM2), {"turbo3": 3.125 / 8}

    result = estimate(
        shape,
        parse_kv_pair("turbo3:q8_0"),
        Launch(256, 1),
        weights_bytes=0,
        bytes_per_element=learnt,
    )

    assert result.k_bytes == 30 * 256 * 192 * 3.125 / 8
    assert result.v_bytes == 30 * 256 * 192 // 32 * 34
    assert result.is_exact


def test_estimate_of_a_stock_type_does_not_take_what_was_learnt() -> None:
    """Its size is known to the byte, which a rounded log cannot better."""
    result = estimate(
        shape_from("llama", SMOLLM2),
        F16,
        Launch(256, 1),
        weights_bytes=0,
        bytes_per_element={"f16": 1.99},
    )

    assert result.k_bytes == 30 * 256 * 192 * 2


def test_estimate_of_a_draft_adds_a_whole_model() -> None:
    """Its context is what the model's became by rounding up; it has types of its own."""
    shape, launch = shape_from("llama", SMOLLM2), Launch(1000, 3, unified=False)
    pair = parse_kv_pair("q8_0:q5_1")

    result = estimate(shape, F16, launch, weights_bytes=5, draft=Draft(shape, 7, pair))

    alone = estimate(shape, F16, launch, weights_bytes=5)
    assert result.draft is not None
    (cache,) = result.draft.caches
    assert (cache.cells, cache.streams, cache.type_k, cache.type_v) == (512, 3, pair.k, pair.v)
    assert result.kv_bytes == alone.kv_bytes
    assert result.total_bytes == alone.total_bytes + result.draft.total_bytes
    assert result.draft.weights_bytes == 7


@pytest.mark.parametrize(
    ("architecture", "keys", "launch", "checkpoint_bytes", "n_most"),
    [
        ("gemma3", GEMMA3, Launch(8192, 2), 15 * 512 * 2 * 256 * 2 + 512 * 12, 64),
        ("gemma3", GEMMA3, Launch(8192, 2, swa_full=True), 0, 0),
        ("mamba2", SMOLLM2 | SSM, Launch(256, 1, n_checkpoints=3), 4 * 30 * 2624, 3),
        ("llama", SMOLLM2, Launch(8192, 2), 0, 0),
    ],
)
def test_estimate_of_checkpoints_is_what_a_slot_cannot_roll_back(
    *,
    architecture: str,
    keys: Mapping[str, Value],
    launch: Launch,
    checkpoint_bytes: int,
    n_most: int,
) -> None:
    """Gemma 3's is 7.506 MiB in the log of b11434; plain models need none."""
    result = _estimate(shape_from(architecture, keys), launch=launch)

    assert (result.checkpoint_bytes, result.max_checkpoints) == (checkpoint_bytes, n_most)


@pytest.mark.parametrize(("embeds", "n_floats"), [(False, 49152), (True, 49152 + 576)])
def test_estimate_of_the_output_is_logits_and_a_vector_for_each_slot(
    *, embeds: bool, n_floats: int
) -> None:
    """SmolLM2's four slots have 0.75 MiB of logits in the log of b11434."""
    result = _estimate(shape_from("llama", SMOLLM2), launch=Launch(256, 4, embeds=embeds))

    assert result.output_bytes == 4 * 4 * n_floats


def test_as_table_of_an_estimate_is_plain_and_complete() -> None:
    """JSON can hold it: each cache with its kind and types, and all sums."""
    shape = shape_from("gemma3", GEMMA3)
    result = estimate(
        shape,
        parse_kv_pair("q8_0:q4_0"),
        Launch(8192, 1, prompt_cache_bytes=1000),
        weights_bytes=5,
        draft=Draft(shape, 7),
    )

    table = as_table(result)

    assert json.loads(json.dumps(table)) == table
    assert table["caches"] == [
        {
            "kind": cache.kind,
            "type_k": "q8_0",
            "type_v": "q4_0",
            "k_bytes": cache.k_bytes,
            "v_bytes": cache.v_bytes,
            "cells": cache.cells,
            "layers": cache.layers,
            "streams": 1,
        }
        for cache in result.caches
    ]
    assert result.draft is not None
    assert table["draft"] == as_table(result.draft)
    assert (table["total_bytes"], table["prompt_cache_bytes"]) == (result.total_bytes, 1000)


def test_estimate_of_a_row_that_blocks_do_not_divide_is_no_error() -> None:
    """Such a pair is refused elsewhere; here it counts as f16."""
    keys = SMOLLM2 | {"attention.head_count_kv": 1, "attention.key_length": 80}

    result = _estimate(shape_from("llama", keys), "q8_0:f16")

    assert result.k_bytes == 30 * 256 * 80 * 2
    assert not result.is_exact


@pytest.mark.parametrize(
    ("architecture", "keys", "launch", "compute_mib"),
    [
        ("llama", SMOLLM2, Launch(4096, 4), 18.64),
        ("llama", SMOLLM2, Launch(4096, 4, unified=False), 15.64),
        ("llama", SMOLLM2, Launch(4096, 16, n_ubatch=64), 4.21),
        ("llama", SMOLLM2, Launch(4096, 1, n_ubatch=1024), 37.29),
        ("llama", SMOLLM2, Launch(4096, 1, flash_attention="off"), 87.51),
        ("gemma3", GEMMA3, Launch(4096, 4), 24.78),
        ("gemma3", GEMMA3, Launch(4096, 16, n_ubatch=64), 17.78),
        ("gemma3", GEMMA3, Launch(8192, 4, unified=False, flash_attention="off"), 34.27),
    ],
)
def test_estimate_of_compute_buffers_is_near_what_was_measured(
    architecture: str, keys: dict[str, Value], launch: Launch, compute_mib: float
) -> None:
    """The allowance is fitted to SmolLM2 and Gemma 3 270M at b11434, with f16."""
    sizes: dict[str, Value] = {"feed_forward_length": 2048, "vocab_size": 262144}

    result = _estimate(shape_from(architecture, sizes | keys), launch=launch)

    assert result.compute_bytes / MIB == pytest.approx(compute_mib, rel=0.01)


def test_estimate_of_an_encoder_counts_a_mask_of_its_micro_batch() -> None:
    """It has no cache, and attends to all that it reads at once."""
    small, large = (
        _estimate(shape_from("bert", SMOLLM2), launch=Launch(8192, 1, n_batch=n, n_ubatch=n))
        for n in (512, 4096)
    )

    assert large.compute_bytes - 8 * small.compute_bytes == pytest.approx(
        2 * (4096**2 - 8 * 512**2), rel=0.05
    )


def test_estimate_total_is_the_sum_of_its_parts() -> None:
    """Weights, caches, states and buffers add up."""
    shape = shape_from("falcon-h1", SMOLLM2 | SSM)

    result = estimate(shape, F16, Launch(4096), weights_bytes=1000)

    assert result.total_bytes == (
        1000
        + result.k_bytes
        + result.v_bytes
        + result.recurrent_bytes
        + result.compute_bytes
        + result.output_bytes
    )
    assert min(result.k_bytes, result.recurrent_bytes, result.output_bytes) > 0


@settings(deadline=None)
@given(
    names=st.tuples(st.sampled_from(STOCK_TYPES), st.sampled_from(STOCK_TYPES)),
    n_ctx_tokens=st.integers(1, 1 << 20),
    n_parallel=st.integers(1, 256),
    unified=st.booleans(),
    swa_full=st.booleans(),
)
def test_estimate_of_any_launch_grows_with_the_context(
    *, names: tuple[str, str], n_ctx_tokens: int, n_parallel: int, unified: bool, swa_full: bool
) -> None:
    """More context never takes less, and every slot's cells hold at least its share."""
    shape = shape_from("gemma3", GEMMA3)
    pair = KVPair(KVType(names[0]), KVType(names[1]))
    launch = Launch(n_ctx_tokens, n_parallel, unified=unified, swa_full=swa_full)

    small = estimate(shape, pair, launch, weights_bytes=0)
    large = estimate(shape, pair, replace(launch, n_ctx_tokens=2 * n_ctx_tokens), weights_bytes=0)

    assert small.kv_bytes <= large.kv_bytes
    for cache in small.caches:
        assert cache.cells % 256 == 0
    assert small.caches[0].cells * small.caches[0].streams >= n_ctx_tokens


@pytest.mark.parametrize(
    ("backend", "pair", "elements"),
    [
        ("cuda", "q8_0:q4_0", 384),
        ("cuda", "q8_0:f16", 192),
        ("cuda", "f16:f16", 0),
        ("cpu", "q8_0", 0),
    ],
)
def test_estimate_counts_room_to_convert_one_layer_in_where_a_device_needs_it(
    backend: Backend, pair: str, elements: int
) -> None:
    """CUDA reads prompts in f16: a copy of K and V of the widest layer, over all cells."""
    launch = replace(Launch(4096, 1), backend=backend)

    result = _estimate(shape_from("llama", SMOLLM2), pair, launch)

    assert result.scratch_bytes == 2 * 4096 * elements
    assert as_table(result)["scratch_bytes"] == result.scratch_bytes
    without = replace(result, scratch_bytes=0)
    assert result.total_bytes - without.total_bytes == result.scratch_bytes
