"""The caches and states of many architectures, from their headers."""

import pytest

from kvsup.gguf import Value
from kvsup.kvtypes import parse_kv_pair
from kvsup.memory import Estimate, Launch, estimate
from kvsup.modelshape import ModelShape
from tests.headers import KV_IN_TWO_OF_SIX, MLA, SMOLLM2, SSM, shape_from

INDEXER: dict[str, Value] = {"attention.indexer.key_length": 128}
OWN_INDEXERS: dict[str, Value] = {"attention.indexer.types": (1, 0, 1, 0)}


def _estimate(shape: ModelShape, pair: str = "f16", launch: Launch | None = None) -> Estimate:
    return estimate(shape, parse_kv_pair(pair), launch or Launch(256, 1), weights_bytes=0)


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

    result = _estimate(shape_from("gemma4", keys))

    full, window = result.caches
    assert (full.k_bytes, full.v_bytes) == (256 * 2 * 64 * (4 + 1), 256 * 2 * 32 * (4 + 1))
    assert (window.k_bytes, window.v_bytes) == (256 * 2 * 128 * 2, 256 * 2 * 96 * 2)


def test_estimate_of_windows_in_every_layer_has_an_empty_full_cache() -> None:
    """With a window llama-server always makes two caches, and logs both."""
    keys = KV_IN_TWO_OF_SIX | {"attention.sliding_window": 128, "shortconv.l_cache": 3}

    full, window = _estimate(shape_from("lfm2", SMOLLM2 | {"block_count": 6} | keys)).caches

    assert (full.layers, full.k_bytes, full.v_bytes) == (0, 0, 0)
    assert (window.layers, window.k_bytes) == (2, 2 * 256 * 192 * 2)


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

    result = _estimate(shape_from(architecture, keys), "q8_0")

    assert result.k_bytes == 27 * 256 * 576 // 32 * 34
    assert result.v_bytes == 0
    assert result.is_exact


def test_estimate_of_an_old_deepseek2_file_is_plain() -> None:
    """Files without the MLA keys have V, and big heads."""
    keys = SMOLLM2 | {"attention.key_length": 192, "attention.value_length": 128}

    result = _estimate(shape_from("deepseek2", keys))

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
    result = _estimate(shape_from(architecture, SMOLLM2 | {"ssm.group_count": 1} | keys))

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
    shape = shape_from(architecture, SMOLLM2 | {"block_count": 6} | keys)

    result = _estimate(shape, "q8_0", Launch(4096, 3))

    assert sum(cache.layers for cache in result.caches) == n_cached
    assert result.recurrent_bytes == 4 * 3 * n_recurrent * state_elements
    assert result.is_exact


@pytest.mark.parametrize(
    "architecture", ["eagle3", "dflash", "gemma4-assistant", "gptj", "of-tomorrow"]
)
def test_estimate_of_an_unknown_architecture_is_a_guess(architecture: str) -> None:
    """What only drafts for another, or is not known, gets the plain formula, marked as inexact."""
    result = _estimate(shape_from(architecture, SMOLLM2))

    assert result.kv_bytes == _estimate(shape_from("llama", SMOLLM2)).kv_bytes
    assert not result.is_exact


@pytest.mark.parametrize(
    ("architecture", "keys", "n_cached"),
    [
        ("granitehybrid", {"attention.head_count_kv": (0, 0, 3, 0, 0, 3)}, 2),
        ("falcon-h1", {}, 6),
        ("qwen35", {"full_attention_interval": 2}, 2),
        ("minimax-01", {"full_attention_interval": 2}, 2),
    ],
)
def test_estimate_of_a_hybrid_with_prediction_layers_caches_them_where_llama_server_does(
    architecture: str, keys: dict[str, Value], n_cached: int
) -> None:
    """Of the last layer, for prediction, some keep a cache beside the trunk's; none a state."""
    merged = SMOLLM2 | SSM | keys | {"block_count": 6, "nextn_predict_layers": 1}
    shape = shape_from(architecture, merged)

    result = _estimate(shape)

    n_recurrent = sum(layer.is_recurrent for layer in shape.layers)
    assert sum(cache.layers for cache in result.caches) == n_cached
    assert len(shape.layers) == 5
    assert result.recurrent_bytes == 4 * n_recurrent * shape.state_elements
    assert result.is_exact


@pytest.mark.parametrize(
    ("architecture", "keys", "main", "indexer"),
    [
        ("deepseek32", MLA, (4 * 576, 0, 4), (4 * 128, 0, 4)),
        ("deepseek32", MLA | {"nextn_predict_layers": 1}, (3 * 576, 0, 3), (3 * 128, 0, 3)),
        ("glm-dsa", MLA, (4 * 576, 0, 4), (4 * 128, 0, 4)),
        ("glm-dsa", MLA | OWN_INDEXERS, (4 * 576, 0, 4), (2 * 128, 0, 2)),
        ("glm-dsa", MLA | {"context_length": 1 << 20}, (4 * 576, 0, 4), (3 * 128, 0, 3)),
        (
            "hy_v4",
            MLA | OWN_INDEXERS | {"attention.indexer.top_k": 8},
            (4 * 576, 0, 4),
            (256, 0, 2),
        ),
        (
            "minimax-m3",
            {"leading_dense_block_count": 1},
            (4 * 192, 4 * 192, 4),
            (3 * 128, 3 * 64, 3),
        ),
        (
            "qwen4exp",
            SSM
            | {
                "full_attention_interval": 2,
                "attention.compress_ratios": (4, 4, 4, 4),
            },
            (2 * 192, 2 * 192, 2),
            (2 * 2 * 128, 0, 2),
        ),
        (
            "glm5-next",
            MLA | {"attention.head_count_kv": (0, 1, 0, 1), "kda.head_dim": 8} | SSM,
            (2 * 576, 0, 2),
            (2 * 3 * 128, 0, 2),
        ),
    ],
)
def test_estimate_of_sparse_attention_has_a_cache_for_its_indexer(
    architecture: str,
    keys: dict[str, Value],
    main: tuple[int, int, int],
    indexer: tuple[int, int, int],
) -> None:
    """Elements of a token's K and V, and layers; the indexer's cache has one key a token."""
    shape = shape_from(architecture, SMOLLM2 | {"block_count": 4} | INDEXER | keys)

    result = _estimate(shape)

    token_bytes = 2 * 256
    assert [
        (cache.kind, cache.k_bytes // token_bytes, cache.v_bytes // token_bytes, cache.layers)
        for cache in result.caches
    ] == [("main", *main), ("indexer", *indexer)]
    assert result.is_exact


def test_estimate_of_hy_v4_without_an_indexer_is_latent() -> None:
    """A file that picks nothing has the one cache of multi-head latent attention."""
    result = _estimate(shape_from("hy_v4", SMOLLM2 | MLA))

    assert [cache.kind for cache in result.caches] == ["mla"]


def test_estimate_of_dots3note_has_a_third_cache_for_its_windows() -> None:
    """Full layers, the indexers that some of them own, and window layers with other heads."""
    keys = MLA | INDEXER | OWN_INDEXERS | {"block_count": 4}
    keys |= {"attention.sliding_window": 64, "attention.sliding_window_pattern": (0, 1, 0, 1)}
    keys |= {"attention.key_length_swa": 320}

    result = _estimate(shape_from("dots3note", SMOLLM2 | keys), launch=Launch(4096, 1, n_ubatch=64))

    assert [(cache.kind, cache.cells, cache.layers, cache.v_bytes) for cache in result.caches] == [
        ("main", 4096, 2, 0),
        ("indexer", 4096, 2, 0),
        ("swa", 256, 2, 0),
    ]
    assert result.caches[2].k_bytes == 2 * 256 * 2 * 320


def test_estimate_of_deepseek4_compresses_and_keeps_a_stream_for_each_slot() -> None:
    """The numbers are from the log of b11434 with a tiny model: five caches, and float32 states."""
    keys: dict[str, Value] = {
        "block_count": 4,
        "attention.head_count_kv": 1,
        "attention.sliding_window": 32,
        "attention.compress_ratios": (0, 0, 4, 128),
        "attention.indexer.key_length": 128,
    }

    result = _estimate(shape_from("deepseek4", SMOLLM2 | keys), launch=Launch(4096, 2))

    assert [(cache.kind, cache.cells, cache.layers, cache.streams) for cache in result.caches] == [
        ("full", 4096, 0, 2),
        ("swa", 768, 4, 2),
        ("main", 1024, 1, 2),
        ("main", 256, 1, 2),
        ("indexer", 1024, 1, 2),
    ]
    assert result.v_bytes == 0
    assert result.recurrent_bytes == 4 * 2 * 2 * (8 * 128 + 128 * 64 + 8 * 256)


def test_estimate_of_qwen4exp_keeps_a_history_of_n_grams() -> None:
    """The layer with hashed embeddings has a row of float32 for each slot beside its state."""
    keys = SMOLLM2 | SSM | INDEXER | {"block_count": 4}
    hashed: dict[str, Value] = {
        "ple.layers": (0,),
        "ple.conv_kernel": 4,
        "ple.ngram_size": 3,
        "hyper_connection.count": 2,
    }

    without, with_one = (
        _estimate(shape_from("qwen4exp", merged), launch=Launch(256, 3))
        for merged in (keys, keys | hashed)
    )

    assert with_one.recurrent_bytes - without.recurrent_bytes == 4 * 3 * (3 * 3 * 2 * 576)


@pytest.mark.parametrize(
    ("architecture", "keys", "n_layers"),
    [("nanbeige", {"num_loops": 3}, 90), ("nanbeige", {}, 30), ("hrm_text", {}, 30)],
)
def test_estimate_of_looped_layers_counts_each_pass(
    architecture: str, keys: dict[str, Value], n_layers: int
) -> None:
    """A file of nanbeige has the layers once; one of hrm_text counts every pass already."""
    (cache,) = _estimate(shape_from(architecture, SMOLLM2 | keys)).caches

    assert (cache.layers, cache.k_bytes) == (n_layers, n_layers * 256 * 2 * 192)


def test_estimate_of_graniteswitch_has_one_head_more_which_routes() -> None:
    """Behind the last layer is one of a single head."""
    (cache,) = _estimate(shape_from("graniteswitch", SMOLLM2)).caches

    assert (cache.layers, cache.k_bytes) == (31, 256 * 2 * (30 * 192 + 64))
