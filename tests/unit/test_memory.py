"""The bytes of caches and states, from headers of many architectures."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.gguf import Metadata, Value
from kvsup.kvtypes import F16, STOCK_TYPES, KVPair, KVType, parse_kv_pair
from kvsup.memory import Estimate, Launch, estimate
from kvsup.modelshape import ModelShape, shape_of

MIB = 1 << 20
SMOLLM2: dict[str, Value] = {
    "block_count": 30,
    "context_length": 8192,
    "embedding_length": 576,
    "feed_forward_length": 1536,
    "attention.head_count": 9,
    "attention.head_count_kv": 3,
    "vocab_size": 49152,
}
GEMMA3: dict[str, Value] = {
    "block_count": 18,
    "context_length": 32768,
    "embedding_length": 640,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.key_length": 256,
    "attention.value_length": 256,
    "attention.sliding_window": 512,
}

SSM: dict[str, Value] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
}
KV_IN_TWO_OF_SIX: dict[str, Value] = {"attention.head_count_kv": (0, 0, 3, 0, 0, 3)}


def _shape(architecture: str, keys: Mapping[str, Value]) -> ModelShape:
    values: dict[str, Value] = {"general.architecture": architecture}
    values |= {f"{architecture}.{name}": value for name, value in keys.items()}
    return shape_of(Metadata(3, values, ()))


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
    result = _estimate(_shape("llama", SMOLLM2), pair, launch)

    assert _logged(result) == (k_mib, v_mib)
    assert [(cache.kind, cache.cells, cache.layers) for cache in result.caches] == [
        ("full", cells, 30)
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
    result = _estimate(_shape("gemma3", GEMMA3), pair, launch)

    assert _logged(result) == (k_mib, v_mib)
    assert [(cache.kind, cache.cells, cache.layers) for cache in result.caches] == [
        ("full", cells, 3),
        ("window", window_cells, 15),
    ]
    assert result.is_exact


def test_estimate_of_layers_with_other_heads_sums_each() -> None:
    """Head counts may be an array with zeros, and window layers may have their own head size."""
    keys: dict[str, Value] = {
        "block_count": 4,
        "embedding_length": 256,
        "attention.head_count": (4, 4, 4, 4),
        "attention.head_count_kv": (4, 2, 0, 1),
        "attention.key_length": 64,
        "attention.value_length": 32,
        "attention.key_length_swa": 128,
        "attention.value_length_swa": 96,
        "attention.sliding_window": 128,
        "attention.sliding_window_pattern": (False, True, True, False),
    }

    result = _estimate(_shape("gemma4", keys))

    full, window = result.caches
    assert (full.k_bytes, full.v_bytes) == (256 * 2 * 64 * (4 + 1), 256 * 2 * 32 * (4 + 1))
    assert (window.k_bytes, window.v_bytes) == (256 * 2 * 128 * 2, 256 * 2 * 96 * 2)


def test_estimate_of_windows_in_every_layer_has_an_empty_full_cache() -> None:
    """With a window llama-server always makes two caches, and logs both."""
    keys = KV_IN_TWO_OF_SIX | {"attention.sliding_window": 128, "shortconv.l_cache": 3}

    full, window = _estimate(_shape("lfm2", SMOLLM2 | {"block_count": 6} | keys)).caches

    assert (full.layers, full.k_bytes, full.v_bytes) == (0, 0, 0)
    assert (window.layers, window.k_bytes) == (2, 2 * 256 * 192 * 2)


def test_estimate_without_flash_attention_pads_v_to_its_widest_row() -> None:
    """V is stored transposed then, in rows of one width; K is not."""
    keys = SMOLLM2 | {"block_count": 2, "attention.head_count_kv": (3, 1)}
    shape = _shape("deci", keys)

    on = _estimate(shape)
    off = _estimate(shape, launch=Launch(256, 1, flash_attention="off"))

    assert on.k_bytes == off.k_bytes == on.v_bytes == 256 * 2 * 64 * 4
    assert off.v_bytes == 256 * 2 * 64 * 6


@pytest.mark.parametrize("architecture", ["deepseek2", "mistral4"])
def test_estimate_of_latent_attention_has_no_v(architecture: str) -> None:
    """MLA keeps one latent of 576 elements for K and V alike."""
    keys: dict[str, Value] = {
        "block_count": 27,
        "embedding_length": 2048,
        "attention.head_count": 16,
        "attention.head_count_kv": 1,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
    }

    result = _estimate(_shape(architecture, keys), "q8_0")

    assert result.k_bytes == 27 * 256 * 576 // 32 * 34
    assert result.v_bytes == 0
    assert result.is_exact


def test_estimate_of_an_old_deepseek2_file_is_plain() -> None:
    """Files without the MLA keys have V, and big heads."""
    keys = SMOLLM2 | {"attention.key_length": 192, "attention.value_length": 128}

    result = _estimate(_shape("deepseek2", keys))

    assert (result.k_bytes, result.v_bytes) == (30 * 256 * 2 * 576, 30 * 256 * 2 * 384)


@pytest.mark.parametrize(
    ("architecture", "keys", "n_layers"),
    [
        ("gemma3n", {"attention.sliding_window": 512}, 20),
        (
            "gemma4",
            {
                "attention.sliding_window": 512,
                "attention.shared_kv_layers": 18,
                "attention.sliding_window_pattern": (True, False) * 15,
            },
            12,
        ),
        ("llama", {"nextn_predict_layers": 2}, 28),
        ("bert", {}, 0),
        ("gemma-embedding", {"attention.sliding_window": 512}, 0),
        ("mamba2", {"ssm.conv_kernel": 4, "ssm.inner_size": 8, "ssm.state_size": 2}, 0),
    ],
)
def test_estimate_of_layers_without_own_cache_leaves_them_out(
    architecture: str, keys: dict[str, Value], n_layers: int
) -> None:
    """Layers that reuse a cache, predict further tokens, or keep none, cost none."""
    result = _estimate(_shape(architecture, SMOLLM2 | {"ssm.group_count": 1} | keys))

    assert sum(cache.layers for cache in result.caches) == n_layers
    assert (result.kv_bytes == 0) == (n_layers == 0)
    assert result.is_exact


@pytest.mark.parametrize(
    ("architecture", "keys", "n_cached", "n_recurrent", "state_elements"),
    [
        ("mamba", SSM, 0, 6, 3 * 128 + 16 * 128),
        ("mamba2", SSM, 0, 6, 3 * (128 + 2 * 2 * 16) + 16 * 128),
        ("jamba", SSM | KV_IN_TWO_OF_SIX, 2, 4, 3 * 128 + 16 * 128),
        ("granitehybrid", SSM | KV_IN_TWO_OF_SIX, 2, 4, 3 * (128 + 64) + 16 * 128),
        ("falcon-h1", SSM, 6, 6, 3 * (128 + 64) + 16 * 128),
        (
            "nemotron_h",
            SSM | KV_IN_TWO_OF_SIX | {"feed_forward_length": (0, 9, 0, 9, 0, 0)},
            2,
            2,
            3 * (128 + 64) + 16 * 128,
        ),
        ("qwen35", SSM | {"full_attention_interval": 3}, 2, 4, 3 * (128 + 64) + 16 * 128),
        ("qwen3next", SSM, 1, 5, 3 * (128 + 64) + 16 * 128),
        (
            "qwen35moe",
            SSM | {"attention.recurrent_layers": (1, 1, 0, 0, 0, 0)},
            4,
            2,
            3 * (128 + 64) + 16 * 128,
        ),
        ("lfm2", KV_IN_TWO_OF_SIX | {"shortconv.l_cache": 3}, 2, 4, 576 * 2),
        ("rwkv7", {"wkv.head_size": 64}, 0, 6, 576 * (2 + 64)),
        (
            "kimi-linear",
            KV_IN_TWO_OF_SIX | {"ssm.conv_kernel": 4, "kda.head_dim": 32},
            2,
            4,
            3 * 3 * 9 * 32 + 32 * 32 * 9,
        ),
        ("minimax-01", {"full_attention_interval": 3}, 2, 4, 64 * 64 * 9),
    ],
)
def test_estimate_of_recurrent_layers_adds_a_state_for_each_slot(
    architecture: str,
    keys: dict[str, Value],
    n_cached: int,
    n_recurrent: int,
    state_elements: int,
) -> None:
    """States are float32, whatever the context and the types."""
    shape = _shape(architecture, SMOLLM2 | {"block_count": 6} | keys)

    result = _estimate(shape, "q8_0", Launch(4096, 3))

    assert sum(cache.layers for cache in result.caches) == n_cached
    assert result.recurrent_bytes == 4 * 3 * n_recurrent * state_elements
    assert result.is_exact


@pytest.mark.parametrize(
    "architecture", ["deepseek4", "glm-dsa", "nanbeige", "hrm_text", "t5", "of-tomorrow"]
)
def test_estimate_of_an_architecture_with_other_caches_is_a_guess(architecture: str) -> None:
    """Indexers, loops and unknown architectures get the plain formula, marked as inexact."""
    result = _estimate(_shape(architecture, SMOLLM2))

    assert result.kv_bytes == _estimate(_shape("llama", SMOLLM2)).kv_bytes
    assert not result.is_exact


def test_estimate_of_a_hybrid_with_prediction_layers_is_a_guess() -> None:
    """Some hybrids cache their prediction layers too; which, is not modelled."""
    keys = SMOLLM2 | SSM | KV_IN_TWO_OF_SIX | {"block_count": 6, "nextn_predict_layers": 1}

    assert not _estimate(_shape("nemotron_h_moe", keys)).is_exact


@pytest.mark.parametrize("pair", ["q6_0:f16", "f16:q6_0"])
def test_estimate_of_a_type_of_unknown_size_counts_it_as_f16(pair: str) -> None:
    """A fork's type has a size only after a load."""
    shape = _shape("llama", SMOLLM2)

    result = _estimate(shape, pair)

    assert result.kv_bytes == _estimate(shape, "f16").kv_bytes
    assert not result.is_exact
    assert pair == f"{result.caches[0].type_k}:{result.caches[0].type_v}"


def test_estimate_of_a_row_that_blocks_do_not_divide_is_no_error() -> None:
    """Such a pair is refused elsewhere; here it counts as f16."""
    keys = SMOLLM2 | {"attention.head_count_kv": 1, "attention.key_length": 80}

    result = _estimate(_shape("llama", keys), "q8_0:f16")

    assert result.k_bytes == 30 * 256 * 80 * 2
    assert not result.is_exact


def test_estimate_of_compute_buffers_is_near_what_was_measured() -> None:
    """The allowance is fitted to SmolLM2 at b11434: 18.64 MiB, and 87.51 MiB without FA."""
    shape = _shape("llama", SMOLLM2)

    on = _estimate(shape, launch=Launch(4096, 1))
    off = _estimate(shape, launch=Launch(4096, 1, flash_attention="off"))

    assert on.compute_bytes / MIB == pytest.approx(18.64, rel=0.05)
    assert off.compute_bytes / MIB == pytest.approx(87.51, rel=0.05)


def test_estimate_total_is_the_sum_of_its_parts() -> None:
    """Weights, caches, states and buffers add up."""
    shape = _shape("falcon-h1", SMOLLM2 | SSM)

    result = estimate(shape, F16, Launch(4096), weights_bytes=1000)

    assert result.total_bytes == (
        1000 + result.k_bytes + result.v_bytes + result.recurrent_bytes + result.compute_bytes
    )
    assert min(result.k_bytes, result.recurrent_bytes, result.compute_bytes) > 0


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
    shape = _shape("gemma3", GEMMA3)
    pair = KVPair(KVType(names[0]), KVType(names[1]))
    launch = Launch(n_ctx_tokens, n_parallel, unified=unified, swa_full=swa_full)

    small = estimate(shape, pair, launch, weights_bytes=0)
    large = estimate(shape, pair, replace(launch, n_ctx_tokens=2 * n_ctx_tokens), weights_bytes=0)

    assert small.kv_bytes <= large.kv_bytes
    for cache in small.caches:
        assert cache.cells % 256 == 0
    assert small.caches[0].cells * small.caches[0].streams >= n_ctx_tokens
