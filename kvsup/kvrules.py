"""Which KV pairs a model cannot run with, known before a llama-server is started.

The rules are those on which llama-server b11434 exits (``llama_init_from_model`` of
llama-context.cpp), and one on which it does not but should: with flash attention off, quantized K
and a head size that the block does not divide, it answers NaN or nonsense with status 200.
"""

from dataclasses import dataclass
from itertools import product

from kvsup.kvtypes import STOCK_TYPES, FlashAttention, KVPair, KVType
from kvsup.modelshape import ModelShape

_UNKNOWN_BITS = 8.0


@dataclass(frozen=True, slots=True)
class Violation:
    """Why a pair cannot work, and what can."""

    message: str
    """What is wrong; what to write instead."""
    nearest: KVPair
    """The nearest pair of stock types that breaks no rule."""


def violation(
    pair: KVPair, flash_attention: FlashAttention, shape: ModelShape | None
) -> Violation | None:
    """Return the first rule that ``pair`` breaks, or None.

    Without a shape, since the model cannot be read, only the rules that hold for every model are
    applied.
    """
    broken = _broken_rule(pair, flash_attention, shape)
    if broken is None:
        return None
    nearest = nearest_pair(pair, flash_attention, shape)
    return Violation(f"{broken} use {nearest}", nearest)


def nearest_pair(pair: KVPair, flash_attention: FlashAttention, shape: ModelShape | None) -> KVPair:
    """Return the pair of stock types nearest to ``pair`` that breaks no rule.

    K is kept before V, and is never given fewer bits where that can be helped: errors in K cost
    more. Among the pairs left, the one with the nearest bits an element for K, then for V, then
    with the same names.
    """

    def distance(other: KVPair) -> tuple[bool, float, float, bool, bool]:
        k_bits, v_bits = _bits(other.k) - _bits(pair.k), _bits(other.v) - _bits(pair.v)
        return k_bits < 0, abs(k_bits), abs(v_bits), other.k != pair.k, other.v != pair.v

    stock = (KVPair(KVType(k), KVType(v)) for k, v in product(STOCK_TYPES, repeat=2))
    possible = (p for p in stock if _broken_rule(p, flash_attention, shape) is None)
    return min(possible, key=distance)


def _broken_rule(
    pair: KVPair, flash_attention: FlashAttention, shape: ModelShape | None
) -> str | None:
    """Return the rule that ``pair`` breaks, worded up to "use …"."""
    architecture = "" if shape is None else shape.architecture
    is_latent = shape is not None and (shape.is_latent or architecture == "deepseek4")
    if is_latent and pair.k != pair.v:
        return f"{architecture} needs one type for K and V, not {pair};"
    if architecture == "grok" and pair.v.is_quantized:
        return f"grok runs without flash attention, which quantized V ({pair.v}) needs;"
    if flash_attention == "off" and pair.v.is_quantized:
        return (
            f"quantized V ({pair.v}) needs flash attention, which is off; "
            'set flash_attention = "auto", or'
        )
    for layer in () if shape is None else shape.layers:
        for half, kv_type, size in (("K", pair.k, layer.head_k), ("V", pair.v, layer.head_v)):
            if size % (kv_type.block_elements or 1):
                return (
                    f"{half} as {kv_type} is stored in blocks of {kv_type.block_elements}, "
                    f"which do not divide this model's heads of {size};"
                )
    return None


def _bits(kv_type: KVType) -> float:
    """Return the bits of one element; types of unknown size count as 8."""
    size_bytes = kv_type.row_bytes(32)
    return _UNKNOWN_BITS if size_bytes is None else size_bytes / 4
