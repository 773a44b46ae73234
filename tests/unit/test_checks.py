"""Decoded models against a binary and a shape: problems, and advice."""

from pathlib import Path
from typing import Any

import pytest

from kvsup.checks import kv_setup, model_advice, model_findings
from kvsup.config import FallbackStep, ModelConfig, WatchdogConfig
from kvsup.kvtypes import parse_kv_pair
from kvsup.llama.binary import Binary, parse_binary
from kvsup.modelshape import Layer, ModelShape

GOLDEN = Path(__file__).parent.parent / "golden"
STOCK = parse_binary(
    "llama-server",
    help_text=(GOLDEN / "help_b11434.txt").read_text("utf-8"),
    version_text="",
    devices_text="",
)
IK = parse_binary(
    "ik",
    help_text="-ctk, --cache-type-k TYPE x\n-ctk-first, --cache-type-k-first TYPE,N x\n-khad x\n",
    version_text="",
    devices_text="",
)


def _model(pair: str, **settings: Any) -> ModelConfig:
    return ModelConfig(name="m", model="/m.gguf", kv_cache_type=parse_kv_pair(pair), **settings)


def _shape(*, head: int = 64) -> ModelShape:
    layer = Layer(4, head, head, has_cache=True, has_window=False, is_recurrent=False)
    return ModelShape(
        architecture="llama",
        layers=(layer, layer),
        n_ctx_train_tokens=8192,
        n_window_tokens=0,
        is_latent=False,
        state_elements=0,
        max_v_row=4 * head,
        n_embd=256,
        n_ff=512,
        n_head=4,
        n_vocab=1000,
        is_exact=True,
    )


def _problems(model: ModelConfig, binary: Binary = STOCK, **settings: Any) -> list[tuple[str, str]]:
    return list(model_findings(model, binary=binary, **{"shape": _shape(), **settings}))


def test_model_findings_of_heads_that_no_block_divides_are_one_problem() -> None:
    """K and V break a rule each; what is written for the first mends the second, too."""
    [(key, message)] = _problems(_model("q8_0:q8_0"), shape=_shape(head=80))

    assert key == "kv_cache_type"
    assert message == (
        "K as q8_0 is stored in blocks of 32, which do not divide this model's heads of 80; "
        "use f16:f16"
    )


def test_model_findings_of_an_unknown_type_say_what_was_meant() -> None:
    """The names are those that the binary lists."""
    [(key, message)] = _problems(_model("q5_2:f16"))

    assert key == "kv_cache_type"
    assert message.startswith(
        "'q5_2' is no KV cache type of this llama-server; did you mean 'q5_1'? it takes f32, f16,"
    )


def test_model_findings_of_warnings_are_none() -> None:
    """What runs is no problem, though something could be better."""
    model = _model("q8_0:q8_0", env={"LLAMA_ATTN_ROT_DISABLE": "1"})

    assert _problems(model, shape=_shape(head=96)) == []


def test_model_findings_of_a_drafts_pair_stand_at_its_own_key() -> None:
    """The draft model has heads of its own."""
    model = _model("q8_0:q8_0", draft_model="/d.gguf", draft_kv_cache_type=parse_kv_pair("q8_0"))

    problems = _problems(model, draft_shape=_shape(head=80))

    assert [key for key, _ in problems] == ["draft_kv_cache_type"]


@pytest.mark.parametrize(
    "extra_args", [("-ctk-first", "q9_0,4"), ("--cache-type-k-first=q9_0,4",), ("-ctk-first",)]
)
def test_model_findings_of_layer_types_that_ik_llama_lacks_stand_at_extra_args(
    extra_args: tuple[str, ...],
) -> None:
    """It would end with "Invalid cache type"."""
    [(key, message)] = _problems(_model("f16", extra_args=extra_args), IK)

    assert key == "extra_args"
    assert "write TYPE,N with a type of this llama-server" in message


def test_model_findings_of_layer_types_for_a_stock_binary_name_the_flag_as_unknown() -> None:
    """Only ik_llama.cpp has these flags."""
    model = _model("f16", extra_args=("-ctk-first", "q8_0,4"))

    assert [message.split(";")[0] for _, message in _problems(model)] == [
        "-ctk-first is no argument of this llama-server"
    ]


@pytest.mark.parametrize(
    ("value", "keys"),
    [("1", ["env"]), ("-1", ["env"]), (" 2 ", ["env"]), ("0", []), ("00", []), ("true", [])],
)
def test_model_advice_of_rotation_follows_the_variable_as_llama_server_reads_it(
    value: str, keys: list[str]
) -> None:
    """By ``atoi``: whatever is no number is 0."""
    model = _model("q8_0:q4_0", env={"LLAMA_ATTN_ROT_DISABLE": value})

    advice = list(model_advice(model, binary=STOCK, shape=_shape()))

    assert [key for key, _ in advice] == keys
    assert all("drop it from env" in message for _, message in advice)


def test_model_advice_of_ik_llama_is_to_ask_for_rotation() -> None:
    """It rotates only with flags of its own."""
    bare, asked = _model("q8_0:f16"), _model("q8_0:f16", extra_args=("-khad",))

    [(_, message)] = model_advice(bare, binary=IK, shape=_shape())

    assert "add -khad and -vhad to extra_args" in message
    assert list(model_advice(asked, binary=IK, shape=_shape())) == []


def test_kv_setup_without_a_draft_model_has_no_draft_pair() -> None:
    """A pair for a draft that is not there is held to nothing."""
    assert kv_setup(_model("f16"), binary=STOCK, shape=None).draft is None


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((FallbackStep(num_ctx=2048), FallbackStep(num_parallel=1)), []),
        ((FallbackStep(num_ctx=8192),), [("fallback.1.num_ctx", "8192 is more than the 4096")]),
        ((FallbackStep(num_ctx=4096),), [("fallback.1", "changes nothing")]),
        ((FallbackStep(mmproj="off"),), [("fallback.1", "changes nothing")]),
        (
            (FallbackStep(num_ctx=512), FallbackStep(num_ctx=1024)),
            [("fallback.2.num_ctx", "1024 is more than the 512")],
        ),
        (
            (FallbackStep(kv_cache_type=parse_kv_pair("q8_0:q9_9")),),
            [("fallback.1.kv_cache_type", "q9_9")],
        ),
    ],
)
def test_model_findings_of_a_step_that_cannot_run_or_takes_more_name_it(
    steps: tuple[FallbackStep, ...], expected: list[tuple[str, str]]
) -> None:
    """A step is checked as it will run: over those before it."""
    found = _problems(_model("f16:f16", num_parallel=2, fallback=steps))

    assert [key for key, _ in found] == [key for key, _ in expected]
    for (_, message), (_, part) in zip(found, expected, strict=True):
        assert part in message


def test_model_findings_of_what_is_wrong_without_the_fallback_are_not_said_again() -> None:
    """One mend is enough."""
    steps = (FallbackStep(num_ctx=512), FallbackStep(num_ctx=256))

    [(key, _)] = _problems(_model("q8_0:q8_0", fallback=steps), shape=_shape(head=80))

    assert key == "kv_cache_type"


def test_model_findings_of_a_step_with_a_context_below_auto_are_none() -> None:
    """What is decided at the load is more than any number."""
    steps = (FallbackStep(num_ctx=8192),)

    assert _problems(_model("f16:f16", num_ctx_is_auto=True, fallback=steps)) == []


@pytest.mark.parametrize(
    ("interval_s", "is_wrong"), [(0.0, True), (0.1, False), (5.0, False), (5.1, True)]
)
def test_model_findings_of_a_watchdog_that_cannot_look_stand_at_its_key(
    interval_s: float, *, is_wrong: bool
) -> None:
    """It looks neither all the time nor more seldom than its limit."""
    watchdog = WatchdogConfig(interval_s=interval_s, stall_s=5.0)

    found = [key for key, _ in _problems(_model("f16", watchdog=watchdog))]

    assert found == ["watchdog.interval"] * is_wrong
