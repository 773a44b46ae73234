"""Layers of tiny models, as names and shapes of their tensors; see ``tests/architectures.py``."""

from collections.abc import Sequence

WIDTH, N_FF, N_VOCAB = 64, 64, 32
Q_RANK = 32
N_EXPERTS = 2
SSM_INNER, SSM_STATE, SSM_GROUPS, SSM_HEADS, CONVOLUTION = 128, 32, 2, 2, 4

Key = bool | int | float | Sequence[bool] | Sequence[int]
Tensors = dict[str, tuple[int, ...]]
"""Shapes, the fastest dimension first, as llama.cpp writes them."""


def attention(n_head: int, n_head_kv: int, head: int = 64) -> Tensors:
    """Return attention with its norm."""
    if n_head == 0:
        return {}
    return {
        "attn_norm.weight": (WIDTH,),
        "attn_q.weight": (WIDTH, n_head * head),
        "attn_k.weight": (WIDTH, n_head_kv * head),
        "attn_v.weight": (WIDTH, n_head_kv * head),
        "attn_output.weight": (n_head * head, WIDTH),
    }


def feed_forward(norm: str = "ffn_norm.weight") -> Tensors:
    """Return a feed-forward part with gate and norm."""
    return {
        norm: (WIDTH,),
        "ffn_gate.weight": (WIDTH, N_FF),
        "ffn_up.weight": (WIDTH, N_FF),
        "ffn_down.weight": (N_FF, WIDTH),
    }


def experts() -> Tensors:
    """Return routed experts, without a norm."""
    return {
        "ffn_gate_inp.weight": (WIDTH, N_EXPERTS),
        "ffn_gate_exps.weight": (WIDTH, N_FF, N_EXPERTS),
        "ffn_up_exps.weight": (WIDTH, N_FF, N_EXPERTS),
        "ffn_down_exps.weight": (N_FF, WIDTH, N_EXPERTS),
    }


def norms(head: int = 64) -> Tensors:
    """Return norms of queries and keys."""
    return {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}


SSM: dict[str, Key] = {
    "ssm.conv_kernel": CONVOLUTION,
    "ssm.inner_size": SSM_INNER,
    "ssm.state_size": SSM_STATE,
    "ssm.time_step_rank": SSM_HEADS,
    "ssm.group_count": SSM_GROUPS,
}
SSM_MIXED = SSM_INNER + 2 * SSM_GROUPS * SSM_STATE


def mamba2(_: int) -> Tensors:
    """Return a state-space layer."""
    return {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (WIDTH, SSM_INNER + SSM_MIXED + SSM_HEADS),
        "ssm_conv1d.weight": (CONVOLUTION, SSM_MIXED),
        "ssm_conv1d.bias": (SSM_MIXED,),
        "ssm_dt.bias": (SSM_HEADS,),
        "ssm_a": (1, SSM_HEADS),
        "ssm_d": (1, SSM_HEADS),
        "ssm_norm.weight": (SSM_INNER // SSM_GROUPS, SSM_GROUPS),
        "ssm_out.weight": (SSM_INNER, WIDTH),
    }


HYBRID_HEADS_KV = (0, 2, 0, 1)


def granitehybrid(index: int) -> Tensors:
    """Return a layer of state space or attention."""
    n_head_kv = HYBRID_HEADS_KV[index]
    mixer = attention(2, n_head_kv) if n_head_kv else mamba2(index)
    return mixer | feed_forward()


def lfm2(index: int) -> Tensors:
    """Return a layer of convolution or attention."""
    n_head_kv = HYBRID_HEADS_KV[index]
    convolution: Tensors = {
        "attn_norm.weight": (WIDTH,),
        "shortconv.in_proj.weight": (WIDTH, 3 * WIDTH),
        "shortconv.conv.weight": (3, WIDTH),
        "shortconv.out_proj.weight": (WIDTH, WIDTH),
    }
    mixer = attention(2, n_head_kv, 32) | norms(32) if n_head_kv else convolution
    return mixer | feed_forward()


def falcon_h1(index: int) -> Tensors:
    """Return a layer of state space and attention."""
    return mamba2(index) | attention(2, 1) | feed_forward("ffn_norm")


def qwen35(index: int) -> Tensors:
    """Return a layer of linear attention or, every second, of attention."""
    rest = feed_forward("post_attention_norm.weight")
    if index % 2:
        gated = attention(2, 1) | {"attn_q.weight": (WIDTH, 2 * 2 * 64)}
        return gated | norms() | rest
    heads, keys = SSM_HEADS, SSM_GROUPS * SSM_STATE
    linear: Tensors = {
        "attn_norm.weight": (WIDTH,),
        "attn_qkv.weight": (WIDTH, 2 * keys + heads * SSM_STATE),
        "attn_gate.weight": (WIDTH, heads * SSM_STATE),
        "ssm_conv1d.weight": (CONVOLUTION, 2 * keys + heads * SSM_STATE),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_alpha.weight": (WIDTH, heads),
        "ssm_beta.weight": (WIDTH, heads),
        "ssm_norm.weight": (SSM_STATE,),
        "ssm_out.weight": (heads * SSM_STATE, WIDTH),
    }
    return linear | rest


def rwkv7(_: int) -> Tensors:
    """Return a layer of RWKV-7."""
    rank = 8
    layer: Tensors = {}
    for norm in ("attn_norm", "attn_norm_2", "time_mix_ln"):
        layer |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    for lora in "wav":
        layer |= {f"time_mix_{lora}0.weight": (WIDTH,)}
    for lora in "wavg":
        layer |= {f"time_mix_{lora}1.weight": (WIDTH, rank)}
        layer |= {f"time_mix_{lora}2.weight": (rank, WIDTH)}
    for vector in ("k_k", "k_a", "r_k"):
        layer |= {f"time_mix_{vector}.weight": (WIDTH,)}
    for matrix in ("key", "value", "receptance", "output"):
        layer |= {f"time_mix_{matrix}.weight": (WIDTH, WIDTH)}
    return layer | {
        "time_mix_lerp_fused.weight": (WIDTH, 1, 1, 6),
        "channel_mix_lerp_k.weight": (WIDTH, 1, 1),
        "channel_mix_key.weight": (WIDTH, N_FF),
        "channel_mix_value.weight": (N_FF, WIDTH),
    }


RWKV: dict[str, Key] = {
    "attention.head_count": 0,
    "wkv.head_size": 32,
    "attention.decay_lora_rank": 8,
    "attention.iclr_lora_rank": 8,
    "attention.value_residual_mix_lora_rank": 8,
    "attention.gate_lora_rank": 8,
}
