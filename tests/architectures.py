"""Tiny models of many architectures that a real llama-server loads, to see what it allocates.

Weights are zeros, so nothing that they say means anything. Keys and tensors are those that
``load_arch_hparams`` and ``load_arch_tensors`` of src/models/*.cpp ask for, b11434.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from scripts.make_tiny_gguf import make_embedding
from tests.tinylayers import (
    HYBRID_HEADS_KV,
    N_EXPERTS,
    N_FF,
    N_VOCAB,
    Q_RANK,
    RWKV,
    SSM,
    SSM_HEADS,
    SSM_STATE,
    WIDTH,
    Key,
    Tensors,
    attention,
    experts,
    falcon_h1,
    feed_forward,
    granitehybrid,
    lfm2,
    mamba2,
    norms,
    qwen35,
    rwkv7,
)

N_CTX_TRAIN = 8192


_OUTPUT_NORM: Tensors = {"output_norm.weight": (WIDTH,)}
_OUTPUT: Tensors = _OUTPUT_NORM | {"output.weight": (WIDTH, N_VOCAB)}


class Tiny(NamedTuple):
    """What makes one file."""

    architecture: str
    n_layers: int
    keys: Mapping[str, Key]
    layer: Callable[[int], Tensors]
    """Tensors of a layer, without the prefix ``blk.N.``."""
    whole: Tensors = _OUTPUT_NORM
    """Tensors that belong to no layer, beside the embeddings."""


def write(name: str, folder: Path, *, speaks: bool = False) -> Path:
    """Return the model ``name`` of ``ARCHITECTURES``, written into ``folder``.

    One that ``speaks`` has a token for each letter, and small weights at random, so that what it
    says depends on all that it has read. Its output must be that of its embeddings.
    """
    path = folder / f"{name}.gguf"
    if name == "bert":
        make_embedding(path, n_ctx_train=N_CTX_TRAIN)
    else:
        _write(ARCHITECTURES[name], path, speaks=speaks)
    return path


def _write(tiny: Tiny, path: Path, *, speaks: bool) -> None:
    writer = gguf.GGUFWriter(path, tiny.architecture)
    n_vocab = _add_letters(writer) if speaks else N_VOCAB
    if not speaks:
        writer.add_tokenizer_model("none")
    common: dict[str, Key] = {
        "vocab_size": n_vocab,
        "context_length": N_CTX_TRAIN,
        "embedding_length": WIDTH,
        "feed_forward_length": N_FF,
        "block_count": tiny.n_layers,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.layer_norm_epsilon": 1e-6,
    }
    for key, value in (common | dict(tiny.keys)).items():
        _add(writer, f"{tiny.architecture}.{key}", value)
    tensors = {"token_embd.weight": (WIDTH, n_vocab)} | tiny.whole
    for index in range(tiny.n_layers):
        tensors |= {f"blk.{index}.{name}": shape for name, shape in tiny.layer(index).items()}
    random = np.random.default_rng(1)
    for name, shape in tensors.items():
        weights = np.zeros(tuple(reversed(shape)), np.float32)
        if speaks:
            weights = random.normal(0, 0.3, weights.shape).astype(np.float32)
            weights = -abs(weights) if name.endswith("ssm_a") else weights  # it decays
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_letters(writer: gguf.GGUFWriter) -> int:
    """Add a vocabulary of all printable letters, and return how many tokens it has."""
    kind = gguf.TokenType
    tokens = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    tokens += [(chr(value), kind.NORMAL) for value in range(ord("!"), ord("~") + 1)]
    tokens += [("\N{LOWER ONE EIGHTH BLOCK}", kind.NORMAL), ("<0x0A>", kind.BYTE)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    return len(tokens)


def _add(writer: gguf.GGUFWriter, key: str, value: Key) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def _plain(n_head: int, n_head_kv: int, head: int = 64) -> Callable[[int], Tensors]:
    return lambda _: attention(n_head, n_head_kv, head) | feed_forward()


def _heads(n_head: int, n_head_kv: int, head: int = 64) -> dict[str, Key]:
    return {
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head_kv,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
    }


_DECI_HEADS, _DECI_HEADS_KV = (4, 4, 4, 4), (4, 2, 1, 2)


def _deci(index: int) -> Tensors:
    return attention(_DECI_HEADS[index], _DECI_HEADS_KV[index]) | feed_forward()


_POST_NORMS: Tensors = {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}


def _gpt_oss(_: int) -> Tensors:
    biases: Tensors = {
        "attn_output.bias": (WIDTH,),
        "ffn_gate_inp.bias": (N_EXPERTS,),
        "ffn_gate_exps.bias": (N_FF, N_EXPERTS),
        "ffn_up_exps.bias": (N_FF, N_EXPERTS),
        "ffn_down_exps.bias": (WIDTH, N_EXPERTS),
        "attn_sinks.weight": (2,),
        "post_attention_norm.weight": (WIDTH,),
    }
    return attention(2, 1) | experts() | biases


_GEMMA4_WINDOWS = (True, True, True, False, True, False)


def _gemma4(index: int) -> Tensors:
    head = 64 if _GEMMA4_WINDOWS[index] else 128
    return attention(2, 1, head) | norms(head) | feed_forward() | _POST_NORMS


_LATENT, _ROTATED = 64, 32
_MLA: dict[str, Key] = {
    **_heads(2, 1, _LATENT + _ROTATED),
    "attention.value_length": _LATENT,
    "rope.dimension_count": _ROTATED,
    "attention.q_lora_rank": Q_RANK,
    "attention.kv_lora_rank": _LATENT,
    "attention.key_length_mla": 64 + _ROTATED,
    "attention.value_length_mla": 64,
    "leading_dense_block_count": 3,
    "expert_feed_forward_length": N_FF,
    "expert_count": N_EXPERTS,
    "expert_used_count": 1,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
}


def _mla(_: int) -> Tensors:
    latent: Tensors = {
        "attn_norm.weight": (WIDTH,),
        "attn_q_a.weight": (WIDTH, Q_RANK),
        "attn_q_a_norm.weight": (Q_RANK,),
        "attn_q_b.weight": (Q_RANK, 2 * (64 + _ROTATED)),
        "attn_kv_a_mqa.weight": (WIDTH, _LATENT + _ROTATED),
        "attn_kv_a_norm.weight": (_LATENT,),
        "attn_k_b.weight": (64, _LATENT, 2),
        "attn_v_b.weight": (_LATENT, 64, 2),
        "attn_output.weight": (2 * 64, WIDTH),
    }
    return latent | feed_forward()


_INDEX_HEADS, _INDEX = 4, 64
_INDEXER: dict[str, Key] = {
    "attention.indexer.head_count": _INDEX_HEADS,
    "attention.indexer.key_length": _INDEX,
    "attention.indexer.top_k": 1024,
}


def _deepseek32(index: int) -> Tensors:
    indexer: Tensors = {
        "indexer.k_norm.weight": (_INDEX,),
        "indexer.k_norm.bias": (_INDEX,),
        "indexer.proj.weight": (WIDTH, _INDEX_HEADS),
        "indexer.attn_k.weight": (WIDTH, _INDEX),
        "indexer.attn_q_b.weight": (Q_RANK, _INDEX_HEADS * _INDEX),
    }
    return _mla(index) | indexer


_M3_DENSE = 1


def _minimax_m3(index: int) -> Tensors:
    layer = attention(4, 2) | norms()
    if index < _M3_DENSE:
        return layer | feed_forward()
    shared: Tensors = {
        "ffn_norm.weight": (WIDTH,),
        "exp_probs_b.bias": (N_EXPERTS,),
        "ffn_gate_shexp.weight": (WIDTH, N_FF),
        "ffn_up_shexp.weight": (WIDTH, N_FF),
        "ffn_down_shexp.weight": (N_FF, WIDTH),
    }
    indexer: Tensors = {
        "indexer.q_proj.weight": (WIDTH, 2 * _INDEX),
        "indexer.k_proj.weight": (WIDTH, _INDEX),
        "indexer.q_norm.weight": (_INDEX,),
        "indexer.k_norm.weight": (_INDEX,),
    }
    return layer | experts() | shared | indexer


_WINDOW: dict[str, Key] = {"attention.sliding_window": 300}
_M3: dict[str, Key] = {
    "leading_dense_block_count": _M3_DENSE,
    "expert_feed_forward_length": N_FF,
    "expert_count": N_EXPERTS,
    "expert_used_count": 1,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "attention.indexer.block_size": 4,
    "attention.indexer.local_blocks": 1,
    "attention.indexer.head_count": 2,
}

ARCHITECTURES: Mapping[str, Tiny] = {
    "llama": Tiny("llama", 2, _heads(2, 2), _plain(2, 2)),
    "llama-grouped": Tiny("llama", 3, _heads(4, 1, 32), _plain(4, 1, 32)),
    "llama-80": Tiny("llama", 2, _heads(2, 2, 80), _plain(2, 2, 80)),
    "deci": Tiny(
        "deci",
        4,
        _heads(4, 4)
        | {"attention.head_count": _DECI_HEADS, "attention.head_count_kv": _DECI_HEADS_KV},
        _deci,
    ),
    "nanbeige": Tiny("nanbeige", 2, _heads(2, 1) | {"num_loops": 3}, _plain(2, 1), _OUTPUT),
    "gemma2": Tiny("gemma2", 4, _heads(2, 1) | _WINDOW, lambda i: _plain(2, 1)(i) | _POST_NORMS),
    "gemma3": Tiny(
        "gemma3",
        7,
        _heads(2, 1) | _WINDOW,
        lambda i: _plain(2, 1)(i) | norms() | _POST_NORMS,
    ),
    "gemma4": Tiny(
        "gemma4",
        6,
        _heads(2, 1, 128)
        | {
            "attention.sliding_window": 300,
            "attention.sliding_window_pattern": _GEMMA4_WINDOWS,
            "attention.key_length_swa": 64,
            "attention.value_length_swa": 64,
            "rope.dimension_count_swa": 64,
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 0,
        },
        _gemma4,
        _OUTPUT_NORM | {"rope_freqs.weight": (64,)},
    ),
    "cohere2": Tiny(
        "cohere2",
        5,
        _heads(2, 1, 32) | _WINDOW | {"logit_scale": 1.0},
        lambda _: attention(2, 1, 32) | feed_forward("attn_norm.weight"),
    ),
    "gpt-oss": Tiny(
        "gpt-oss",
        4,
        _heads(2, 1)
        | _WINDOW
        | {
            "expert_count": N_EXPERTS,
            "expert_used_count": 1,
            "expert_feed_forward_length": N_FF,
        },
        _gpt_oss,
        _OUTPUT,
    ),
    "deepseek2": Tiny("deepseek2", 3, _MLA, _mla),
    "deepseek32": Tiny("deepseek32", 3, _MLA | _INDEXER, _deepseek32),
    "minimax-m3": Tiny("minimax-m3", 3, _heads(4, 2) | _INDEXER | _M3, _minimax_m3, _OUTPUT),
    "granitehybrid": Tiny(
        "granitehybrid",
        4,
        _heads(2, 2) | SSM | {"attention.head_count_kv": HYBRID_HEADS_KV},
        granitehybrid,
    ),
    "lfm2": Tiny(
        "lfm2",
        4,
        _heads(2, 2, 32) | {"attention.head_count_kv": HYBRID_HEADS_KV, "shortconv.l_cache": 3},
        lfm2,
        {"token_embd_norm.weight": (WIDTH,)},
    ),
    "qwen35": Tiny(
        "qwen35",
        4,
        _heads(2, 1)
        | SSM
        | {
            "ssm.inner_size": SSM_HEADS * SSM_STATE,
            "full_attention_interval": 2,
            "rope.dimension_sections": (8, 8, 8, 8),
        },
        qwen35,
    ),
    "falcon-h1": Tiny("falcon-h1", 2, _heads(2, 1) | SSM, falcon_h1),
    "mamba2": Tiny("mamba2", 3, {"attention.head_count": 0} | SSM, mamba2),
    "rwkv7": Tiny(
        "rwkv7",
        2,
        RWKV,
        rwkv7,
        _OUTPUT
        | {
            "output_norm.bias": (WIDTH,),
            "token_embd_norm.weight": (WIDTH,),
            "token_embd_norm.bias": (WIDTH,),
        },
    ),
}
"""By name; with ``bert``, which ``write`` knows, too, that makes ``NAMES``."""

NAMES = (*ARCHITECTURES, "bert")
