"""Which pairs are refused before the start, and what is offered instead."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from kvsup.kvlooks import Setup
from kvsup.kvrules import RULES, Finding, findings, nearest_pair, violation
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


@pytest.mark.parametrize("flash_attention", ["auto", "on"])
def test_violation_of_k_with_heads_of_80_offers_f16(flash_attention: FlashAttention) -> None:
    """Blocks must divide K's heads, where llama-server checks it."""
    broken = violation(parse_kv_pair("q8_0:f16"), flash_attention, _shape(head_k=80))

    assert broken is not None
    assert broken.message == (
        "K as q8_0 is stored in blocks of 32, which do not divide this model's heads of 80; "
        "use f16:f16"
    )


def test_violation_of_k_with_heads_of_80_without_flash_attention_says_what_it_would_answer() -> (
    None
):
    """There llama-server checks nothing, and the answers are NaN with status 200."""
    broken = violation(parse_kv_pair("q8_0:f16"), "off", _shape(head_k=80))

    assert broken is not None
    assert broken.message == (
        "K as q8_0 is stored in blocks of 32, which do not divide this model's heads of 80: "
        "without flash attention it loads all the same, and answers NaN or nonsense with status "
        "200; use f16:f16"
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


def _found(rule: str, setup: Setup) -> Finding | None:
    return next((found for found in findings(setup) if found.rule == rule), None)


def _setup(pair: str, shape: ModelShape | None = None, **settings: Any) -> Setup:
    return Setup(
        pair=parse_kv_pair(pair),
        shape=shape or _shape(),
        **{"kv_types": STOCK_TYPES, **settings},
    )


def _mixed(plain: ModelShape, *, head_k: int, has_window: bool) -> ModelShape:
    """Return a shape whose second layer has other keys."""
    other = replace(plain.layers[1], head_k=head_k, has_window=has_window)
    return replace(plain, layers=(plain.layers[0], other))


def test_rules_have_each_an_id_and_those_that_refuse_stand_first() -> None:
    """The first broken rule is the one that is told."""
    severities = [rule.severity for rule in RULES]

    assert len({rule.id for rule in RULES}) == len(RULES)
    assert severities == sorted(severities)
    assert all(rule.expected and rule.source for rule in RULES)


def test_findings_of_a_pair_without_fault_are_all_ok_and_name_what_was_seen() -> None:
    """Expected, observed and evidence stand beside each other, whatever the verdict."""
    found = findings(_setup("q8_0:q5_1", num_ctx=4096))

    assert {each.verdict for each in found} == {"ok"}
    assert [each.rule for each in found] == [
        "known-types",
        "flash-for-values",
        "key-blocks",
        "value-blocks",
        "rotation-on",
        "rotated-keys",
        "rotated-values",
        "trained-context",
    ]
    assert found[2].observed == "K q8_0 in blocks of 32, heads of 64"


def test_findings_without_shape_and_binary_are_unknown_not_refused() -> None:
    """What was not looked at is never a fault."""
    setup = Setup(pair=parse_kv_pair("q8_0:q8_0"))

    by_rule = {each.rule: each for each in findings(setup)}

    assert by_rule["key-blocks"].verdict == "unknown"
    assert by_rule["key-blocks"].observed == "not known: the weights could not be read"
    assert by_rule["known-types"].observed == "not known: the llama-server was not asked"
    assert by_rule["flash-for-values"].verdict == "ok"


def test_findings_of_a_type_that_the_binary_lacks_are_refused_with_those_it_takes() -> None:
    """No nearest pair beside the name that was meant."""
    found = _found("known-types", _setup("q8_1:f16", kv_types=("f16", "q8_0")))

    assert found is not None
    assert found.verdict == "refused"
    assert found.message == (
        "'q8_1' is no KV cache type of this llama-server; did you mean 'q8_0'? it takes f16, q8_0"
    )


def test_nearest_pair_is_of_types_that_the_binary_takes() -> None:
    """A binary without bf16 and f32 is offered neither."""
    nearest = nearest_pair(
        parse_kv_pair("bf16:q8_0"), "off", _shape(), kv_types=("f16", "q8_0", "q4_0")
    )

    assert nearest == parse_kv_pair("f16:f16")


def test_findings_of_a_model_without_a_cache_warn_that_types_have_no_effect() -> None:
    """Encoders and recurrent models have none, and take any type."""
    plain = _shape("mamba")
    layer = replace(plain.layers[0], has_cache=False, head_k=0, head_v=0, is_recurrent=True)
    bare = replace(plain, layers=(layer,))

    found = _found("used-types", _setup("q8_0:q8_0", bare))
    plainly = _found("used-types", _setup("f16:f16", bare))

    assert found is not None
    assert plainly is not None
    assert (found.verdict, plainly.verdict) == ("warn", "ok")
    assert found.message == "mamba has no KV cache: q8_0:q8_0 has no effect; use f16:f16"


@pytest.mark.parametrize(
    ("shape", "because"),
    [
        (_shape(head_k=96), "heads of 96 are no multiple of 64"),
        (_mixed(_shape(), head_k=128, has_window=False), "heads of 64 and 128 in one cache"),
        (_shape("deepseek2", is_latent=True), "multi-head latent attention is computed without"),
    ],
    ids=["96", "two sizes", "MLA"],
)
def test_findings_of_keys_that_are_not_rotated_warn_with_the_cause(
    shape: ModelShape, because: str
) -> None:
    """A quantized half without rotation loses more; f16 would not."""
    found = _found("rotated-keys", _setup("q8_0:q8_0", shape))

    assert found is not None
    assert found.verdict == "warn"
    assert because in found.message
    assert found.nearest is not None
    assert not found.nearest.k.is_quantized


def test_findings_of_keys_with_a_size_for_each_cache_are_rotated() -> None:
    """Layers with a sliding window have a cache of their own, and so a rotation of their own."""
    found = _found(
        "rotated-keys", _setup("q8_0:f16", _mixed(_shape(), head_k=256, has_window=True))
    )

    assert found is not None
    assert (found.verdict, found.observed) == ("ok", "K q8_0, heads of 64 and 256")


@pytest.mark.parametrize(("first", "other", "verdict"), [(96, 128, "warn"), (128, 96, "ok")])
def test_findings_of_two_caches_follow_the_heads_of_the_first_layer(
    first: int, other: int, verdict: str
) -> None:
    """As llama.cpp asks its layer 0, whichever cache that is in."""
    shape = _mixed(_shape(head_k=first), head_k=other, has_window=True)

    found = _found("rotated-keys", _setup("q8_0:f16", shape))

    assert found is not None
    assert found.verdict == verdict


def test_findings_of_a_binary_that_does_not_rotate_warn_once() -> None:
    """The cause is one for both halves; what is not quantized is not concerned."""
    setup = _setup("q8_0:q8_0", unrotated_because="it is switched off")

    warnings = [each for each in findings(setup) if each.verdict == "warn"]

    assert [each.rule for each in warnings] == ["rotation-on"]
    assert warnings[0].key == "env"
    assert "it is switched off" in warnings[0].message
    assert _found("rotation-on", replace(setup, pair=parse_kv_pair("f16"))) is None


@pytest.mark.parametrize(
    ("architecture", "pair", "rule", "nearest"),
    [
        ("qwen2", "q4_0:q8_0", "qwen2-keys", "q8_0:q8_0"),
        ("gpt-oss", "q8_0:q8_0", "gpt-oss", "f16:f16"),
        ("gemma4", "f16:q8_0", "gemma4", "f16:f16"),
        ("deepseek4", "q8_0:q8_0", "deepseek4-keys", "f16:f16"),
    ],
)
def test_findings_of_a_family_to_distrust_warn_as_reported(
    architecture: str, pair: str, rule: str, nearest: str
) -> None:
    """What others reported is said to be that; kvsup tune is what measures."""
    found = _found(rule, _setup(pair, _shape(architecture)))

    assert found is not None
    assert found.verdict == "warn"
    assert "reported, not tried" in found.message
    assert found.nearest == parse_kv_pair(nearest)


def test_findings_of_qwen2_with_keys_of_8_bits_are_ok() -> None:
    """Few bits are what its keys cannot stand, and only its keys."""
    found = _found("qwen2-keys", _setup("q8_0:q4_0", _shape("qwen2")))

    assert found is not None
    assert found.verdict == "ok"


def test_findings_of_more_context_than_trained_warn_of_num_ctx() -> None:
    """No other pair helps, so none is named."""
    found = _found("trained-context", _setup("q8_0:q8_0", num_ctx=9000))

    assert found is not None
    assert (found.verdict, found.key, found.nearest) == ("warn", "num_ctx", None)
    assert found.message == "num_ctx 9000 is more than the 8192 tokens it was trained for"


@pytest.mark.parametrize("value", ["q9_0,4", "q8_0", "q8_0,x", ""])
def test_findings_of_wrong_types_for_some_layers_refuse_extra_args(value: str) -> None:
    """A type of this binary and a number of layers, with a comma between."""
    found = _found("layer-types", _setup("q4_0:q4_0", layer_types=(("-ctk-first", value),)))

    assert found is not None
    assert (found.verdict, found.key) == ("refused", "extra_args")
    assert found.message.startswith(f"-ctk-first {value}: write TYPE,N")


def test_findings_of_right_types_for_some_layers_are_ok_and_leave_the_nearest_pair_alone() -> None:
    """What stands in extra_args decides nothing about the pair."""
    right = _found("layer-types", _setup("q4_0:q4_0", layer_types=(("-ctk-first", "q8_0,4"),)))
    wrong = _setup("q8_0:q4_0", flash_attention="off", layer_types=(("-ctk-first", "no"),))
    of_pair = _found("flash-for-values", wrong)

    assert right is not None
    assert of_pair is not None
    assert right.verdict == "ok"
    assert of_pair.nearest == parse_kv_pair("q8_0:f16")


def test_findings_of_a_draft_model_hold_its_pair_to_its_own_shape() -> None:
    """The draft has a cache, heads and types of its own, and a key of its own to mend."""
    setup = _setup("q8_0:q8_0", draft=parse_kv_pair("q8_0:f16"), draft_shape=_shape(head_k=80))

    refused = [each for each in findings(setup) if each.verdict == "refused"]

    assert [(each.rule, each.key) for each in refused] == [
        ("draft-key-blocks", "draft_kv_cache_type")
    ]
    assert refused[0].nearest == parse_kv_pair("f16:f16")


@pytest.mark.parametrize("flash_attention", ["auto", "on", "off"])
def test_nearest_of_every_finding_keeps_its_rule_and_breaks_none_that_refuses(
    flash_attention: FlashAttention,
) -> None:
    """What a warning or refusal offers is never refused, nor warned of by the same rule."""
    shapes = (_shape("gpt-oss"), _shape("qwen2", head_k=96), _shape("deepseek2", is_latent=True))
    for shape, (k, v) in product(shapes, product(STOCK_TYPES, repeat=2)):
        setup = _setup(f"{k}:{v}", shape, flash_attention=flash_attention)
        for found in findings(setup):
            if found.nearest is None:
                continue
            after = {each.rule: each for each in findings(replace(setup, pair=found.nearest))}

            assert "refused" not in {each.verdict for each in after.values()}
            assert found.rule not in after or after[found.rule].verdict == "ok"
