"""Tiny random models with heads of any size, to try KV pairs on: what they say is nonsense.

Names of keys and tensors are those of llama.cpp at b11434: ``src/llama-arch.cpp``,
``src/models/{llama,deepseek2,gemma4,grok,mamba}.cpp``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from scripts.make_tiny_gguf import _add_vocabulary, _byte, _finish, _random

_WIDTH = 64
_FEED_FORWARD = 32
_N_CTX_TRAIN = 512
_N_EXPERTS = 2


def make_plain(path: Path, *, head: int, n_head: int = 4, architecture: str = "llama") -> Path:
    """Write a model with heads of this size, of an architecture with the tensors of ``llama``."""
    row = n_head * head
    shapes = _named(
        attn_norm=(_WIDTH,),
        attn_q=(row, _WIDTH),
        attn_k=(row, _WIDTH),
        attn_v=(row, _WIDTH),
        attn_output=(_WIDTH, row),
        ffn_norm=(_WIDTH,),
        ffn_gate=(_FEED_FORWARD, _WIDTH),
        ffn_up=(_FEED_FORWARD, _WIDTH),
        ffn_down=(_WIDTH, _FEED_FORWARD),
    )
    keys = {
        "attention.head_count": n_head,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
    }
    return _write(path, architecture, keys, shapes)


def make_latent(path: Path) -> Path:
    """Write a ``deepseek2`` with multi-head latent attention: K of 128 for one head, no V."""
    n_head, nope, rope, value, rank, query_rank = 2, 32, 64, 32, 64, 32
    shapes = _named(
        attn_norm=(_WIDTH,),
        attn_q_a=(query_rank, _WIDTH),
        attn_q_a_norm=(query_rank,),
        attn_q_b=(n_head * (nope + rope), query_rank),
        attn_kv_a_mqa=(rank + rope, _WIDTH),
        attn_kv_a_norm=(rank,),
        attn_k_b=(n_head, rank, nope),
        attn_v_b=(n_head, value, rank),
        attn_output=(_WIDTH, n_head * value),
        ffn_norm=(_WIDTH,),
        ffn_gate=(_FEED_FORWARD, _WIDTH),
        ffn_up=(_FEED_FORWARD, _WIDTH),
        ffn_down=(_WIDTH, _FEED_FORWARD),
    )
    keys = {
        "attention.head_count": n_head,
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": value,
        "attention.kv_lora_rank": rank,
        "attention.q_lora_rank": query_rank,
        "rope.dimension_count": rope,
        "leading_dense_block_count": 1,
        "expert_count": _N_EXPERTS,
        "expert_used_count": 1,
        "expert_shared_count": 1,
        "expert_feed_forward_length": _FEED_FORWARD,
    }
    return _write(path, "deepseek2", keys, shapes)


def make_grok(path: Path) -> Path:
    """Write a ``grok`` with heads of 32."""
    n_head, head = 2, 32
    shapes = _named(
        attn_norm=(_WIDTH,),
        attn_q=(n_head * head, _WIDTH),
        attn_k=(n_head * head, _WIDTH),
        attn_v=(n_head * head, _WIDTH),
        attn_output=(_WIDTH, n_head * head),
        attn_output_norm=(_WIDTH,),
        ffn_norm=(_WIDTH,),
        ffn_gate_inp=(_N_EXPERTS, _WIDTH),
        ffn_gate_exps=(_N_EXPERTS, _FEED_FORWARD, _WIDTH),
        ffn_up_exps=(_N_EXPERTS, _FEED_FORWARD, _WIDTH),
        ffn_down_exps=(_N_EXPERTS, _WIDTH, _FEED_FORWARD),
        layer_output_norm=(_WIDTH,),
    )
    keys = {
        "attention.head_count": n_head,
        "rope.dimension_count": head,
        "expert_count": _N_EXPERTS,
        "expert_used_count": 1,
        "expert_feed_forward_length": _FEED_FORWARD,
    }
    return _write(path, "grok", keys, shapes)


def make_recurrent(path: Path) -> Path:
    """Write a ``mamba``, which has no KV cache."""
    inner, state, kernel, rank = 2 * _WIDTH, 16, 4, 4
    shapes = _named(
        attn_norm=(_WIDTH,),
        ssm_in=(2 * inner, _WIDTH),
        ssm_conv1d=(inner, kernel),
        ssm_x=(rank + 2 * state, inner),
        ssm_dt=(inner, rank),
        ssm_out=(_WIDTH, inner),
    )
    shapes |= {"blk.0.ssm_conv1d.bias": (inner,), "blk.0.ssm_dt.bias": (inner,)}
    shapes |= {"blk.0.ssm_a": (inner, state), "blk.0.ssm_d": (inner,)}
    keys = {
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
    }
    return _write(path, "mamba", {"attention.head_count": 0, **keys}, shapes)


def make_windowed(path: Path, *, head: int, head_window: int) -> Path:
    """Write a ``gemma4``: a layer with a sliding window and heads of its own size, and one without.

    Each of the two layers has a cache of its own.
    """
    n_head = 2
    shapes: dict[str, tuple[int, ...]] = {"rope_freqs.weight": (head // 2,)}
    for layer, size in enumerate((head_window, head)):
        row = n_head * size
        named = _named(
            attn_norm=(_WIDTH,),
            attn_q=(row, _WIDTH),
            attn_k=(row, _WIDTH),
            attn_v=(row, _WIDTH),
            attn_output=(_WIDTH, row),
            attn_q_norm=(size,),
            attn_k_norm=(size,),
            post_attention_norm=(_WIDTH,),
            ffn_norm=(_WIDTH,),
            ffn_gate=(_FEED_FORWARD, _WIDTH),
            ffn_up=(_FEED_FORWARD, _WIDTH),
            ffn_down=(_WIDTH, _FEED_FORWARD),
            post_ffw_norm=(_WIDTH,),
        )
        shapes |= {name.replace("blk.0", f"blk.{layer}"): shape for name, shape in named.items()}
    keys = {
        "attention.head_count": n_head,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.key_length_swa": head_window,
        "attention.value_length_swa": head_window,
        "attention.sliding_window": 64,
        "attention.sliding_window_pattern": [True, False],
        "embedding_length_per_layer_input": 0,
        "rope.dimension_count": head,
        "rope.dimension_count_swa": head_window,
    }
    return _write(path, "gemma4", keys, shapes, n_layer=2)


def _named(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}


def _write(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    n_layer: int = 1,
) -> Path:
    kind = gguf.TokenType
    tokens = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    tokens += [(_byte(value), kind.BYTE) for value in range(256)]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(_N_CTX_TRAIN)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_layer_norm_rms_eps(1e-6)
    for key, value in keys.items():
        add = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    _add_vocabulary(writer, "llama", tokens)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    both = {"token_embd.weight": (len(tokens), _WIDTH), "output.weight": (len(tokens), _WIDTH)}
    all_shapes = {**both, "output_norm.weight": (_WIDTH,), **shapes}
    _finish(writer, _random(all_shapes), _WIDTH)
    return path
