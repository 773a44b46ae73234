"""Which pairs are refused before the start, and what is offered instead."""

from dataclasses import replace
from itertools import product

import pytest

from kvsup.kvrules import nearest_pair, violation
from kvsup.kvtypes import STOCK_TYPES, FlashAttention, KVPair, KVType, parse_kv_pair
from kvsup.modelshape import Layer, ModelShape


def _shape(
    architecture: str = "llama", *, head_k: int = 64, head_v: int = 64, is_latent: bool = False
) -> ModelShape:
    layer = Layer(4, head_k, head_v, has_cache=True, has_window=False, is_recurrent=False)
    return ModelShape(
        architecture=architecture,
        layers=(layer, layer),
        n_ctx_train_tokens=8192,
        n_window_tokens=0,
        is_latent=is_latent,
        state_elements=0,
        max_v_row=4 * head_v,
        n_embd=256,
        n_ff=512,
        n_head=4,
        n_vocab=1000,
        is_exact=True,
    )


@pytest.mark.parametrize("text", ["f16:f16", "q8_0:q4_0", "iq4_nl:q5_1", "f32:bf16", "q6_0:q6_0"])
@pytest.mark.parametrize("flash_attention", ["auto", "on"])
def test_violation_of_a_plain_model_with_flash_attention_is_none(
    text: str, flash_attention: FlashAttention
) -> None:
    """Every pair works where heads are multiples of 32 and flash attention may be used."""
    assert violation(parse_kv_pair(text), flash_attention, _shape()) is None


@pytest.mark.parametrize("shape", [None, _shape()])
def test_violation_of_quantized_v_without_flash_attention_says_both_ways_out(
    shape: ModelShape | None,
) -> None:
    """A quantized V cache needs flash attention, whatever the model."""
    broken = violation(parse_kv_pair("q8_0:q4_0"), "off", shape)

    assert broken is not None
    assert broken.message == (
        "quantized V (q4_0) needs flash attention, which is off; "
        'set flash_attention = "auto", or use q8_0:f16'
    )
    assert broken.nearest == parse_kv_pair("q8_0:f16")


def test_violation_of_quantized_k_without_flash_attention_is_none() -> None:
    """Quantized K alone needs no flash attention."""
    assert violation(parse_kv_pair("q4_0:bf16"), "off", _shape()) is None


@pytest.mark.parametrize("flash_attention", ["auto", "on", "off"])
def test_violation_of_k_with_heads_of_80_offers_f16(flash_attention: FlashAttention) -> None:
    """Blocks must divide K's heads, also without flash attention: there the answers are NaN."""
    broken = violation(parse_kv_pair("q8_0:f16"), flash_attention, _shape(head_k=80))

    assert broken is not None
    assert broken.message == (
        "K as q8_0 is stored in blocks of 32, which do not divide this model's heads of 80; "
        "use f16:f16"
    )


def test_violation_of_v_with_heads_of_80_keeps_k() -> None:
    """Blocks must divide V's heads too; K stays as asked for."""
    broken = violation(parse_kv_pair("q4_1:q4_0"), "auto", _shape(head_v=80))

    assert broken is not None
    assert broken.nearest == parse_kv_pair("q4_1:f16")


def test_violation_of_heads_in_one_layer_only_is_found() -> None:
    """One layer with other heads, such as a sliding-window one, is enough."""
    plain = _shape()
    odd = replace(plain, layers=(plain.layers[0], replace(plain.layers[1], head_k=48)))

    assert violation(parse_kv_pair("q8_0:f16"), "auto", odd) is not None


@pytest.mark.parametrize(
    "shape", [_shape("deepseek2", is_latent=True), _shape("deepseek4")], ids=["MLA", "deepseek4"]
)
def test_violation_of_latent_attention_with_two_types_offers_ks(shape: ModelShape) -> None:
    """A model that stores K only still wants the same type for V."""
    broken = violation(parse_kv_pair("q8_0:f16"), "auto", shape)

    assert broken is not None
    assert broken.message.endswith("needs one type for K and V, not q8_0:f16; use q8_0:q8_0")
    assert violation(broken.nearest, "auto", shape) is None


def test_violation_of_quantized_latent_attention_without_flash_attention_offers_f16() -> None:
    """The only types then are those that are not quantized."""
    broken = violation(parse_kv_pair("q8_0"), "off", _shape("deepseek2", is_latent=True))

    assert broken is not None
    assert broken.nearest == parse_kv_pair("f16")


@pytest.mark.parametrize("flash_attention", ["auto", "on", "off"])
def test_violation_of_grok_with_quantized_v_keeps_k(flash_attention: FlashAttention) -> None:
    """Grok switches flash attention off by itself, so V cannot be quantized; K can."""
    grok = _shape("grok", head_k=128, head_v=128)

    broken = violation(parse_kv_pair("q8_0:q8_0"), flash_attention, grok)

    assert broken is not None
    assert broken.nearest == parse_kv_pair("q8_0:f16")
    assert violation(parse_kv_pair("q8_0:f16"), flash_attention, grok) is None


def test_nearest_pair_to_types_of_a_fork_is_one_of_stock() -> None:
    """A type of unknown size has a nearest pair too."""
    assert nearest_pair(parse_kv_pair("q6_0:q6_0"), "off", None) == parse_kv_pair("q8_0:f16")


@pytest.mark.parametrize("flash_attention", ["auto", "on", "off"])
def test_nearest_pair_of_every_stock_pair_works_and_never_lowers_k(
    flash_attention: FlashAttention,
) -> None:
    """What is offered breaks no rule, keeps a pair that works, and K loses no bits."""
    shapes = (None, _shape(), _shape(head_k=80, head_v=80), _shape("grok"), _shape("deepseek4"))
    for k, v in product(STOCK_TYPES, repeat=2):
        pair = KVPair(KVType(k), KVType(v))
        for shape in shapes:
            nearest = nearest_pair(pair, flash_attention, shape)

            assert violation(nearest, flash_attention, shape) is None
            assert (nearest == pair) == (violation(pair, flash_attention, shape) is None)
            assert (nearest.k.row_bytes(32) or 0) >= (pair.k.row_bytes(32) or 0)
