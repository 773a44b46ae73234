"""Which pair a model gets."""

import msgspec
import pytest

from kvsup.config import ModelConfig
from kvsup.gguf import Metadata
from kvsup.kvchoice import Choice, Machine, choose
from kvsup.kvtypes import STOCK_TYPES, parse_kv_pair
from kvsup.measures import Speed, SpeedProbe, Tuned
from kvsup.modelshape import ModelShape, shape_of

MODEL = ModelConfig(name="m", model="/m.gguf", kv_cache_type=parse_kv_pair("q8_0:q4_0"))
AUTO = msgspec.structs.replace(MODEL, kv_is_auto=True)
CPU = Machine(STOCK_TYPES)
TUNED = Tuned(
    model="m",
    binary="b1",
    measured_at="2026-11-24T10:00:00Z",
    picks={"balanced": "q8_0:q5_1", "small": "q5_0:q4_0"},
    sentence="",
)


def shape(head: int = 64) -> ModelShape:
    """Return a plain model's shape with heads of a size."""
    keys = {
        "block_count": 2,
        "embedding_length": 4 * head,
        "context_length": 4096,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
    }
    values = {f"llama.{key}": value for key, value in keys.items()}
    return shape_of(Metadata(3, {"general.architecture": "llama", **values}, ()))


def probe(pair: str, prompt: float, generation: float) -> SpeedProbe:
    """Return a probe with these parts of f16:f16's speeds."""
    return SpeedProbe(
        pair=pair,
        speed=Speed(
            depth_tokens=1024,
            prompt_tokens_per_s=100 * prompt,
            generation_tokens_per_s=10 * generation,
        ),
        baseline=Speed(depth_tokens=1024, prompt_tokens_per_s=100, generation_tokens_per_s=10),
    )


def cpu_with(*, tuned: Tuned | None) -> Machine:
    """Return a CPU with what was found on it."""
    return Machine(STOCK_TYPES, tuned=tuned)


def pair_of(choice: Choice) -> str:
    """Return the pair that was chosen."""
    return str(choice.model.kv_cache_type)


def test_pair_of_the_file_is_taken_without_a_word_where_nothing_is_known_against_it() -> None:
    """Nobody is told what is as he wrote it."""
    assert choose(MODEL, shape(), CPU) == Choice(MODEL)


@pytest.mark.parametrize(
    ("goal", "head", "tuned", "expected", "says"),
    [
        ("balanced", 64, TUNED, "q8_0:q5_1", "found by kvsup tune on 2026-11-24 for balanced"),
        ("small", 64, TUNED, "q5_0:q4_0", "for small"),
        ("fast", 64, TUNED, "q8_0:q8_0", "kvsup tune m finds the best one for fast"),
        ("balanced", 64, None, "q8_0:q8_0", "a safe choice"),
        ("accurate", 64, None, "f16:f16", "a safe choice"),
        ("balanced", 80, None, "f16:f16", "a safe choice"),
        ("balanced", 80, TUNED, "f16:f16", "a safe choice"),
    ],
)
def test_auto_takes_what_was_found_else_a_safe_pair_and_says_which(
    goal: str, head: int, tuned: Tuned | None, expected: str, says: str
) -> None:
    """A pair that the model cannot run with is not taken, whoever found it."""
    model = msgspec.structs.replace(AUTO, kv_goal=goal)

    choice = choose(model, shape(head), cpu_with(tuned=tuned))

    assert pair_of(choice) == expected
    assert says in choice.note
    assert expected in choice.note
    assert not choice.model.kv_is_auto


def test_auto_does_not_take_a_type_that_the_binary_lacks() -> None:
    """What was found with a fork is of no use with the stock binary."""
    tuned = msgspec.structs.replace(TUNED, picks={"balanced": "q8_0:turbo3"})

    assert pair_of(choose(AUTO, shape(), cpu_with(tuned=tuned))) == "q8_0:q8_0"


@pytest.mark.parametrize(
    ("kv_slow", "expected", "says"),
    [
        ("warn", "q8_0:q4_0", "{} is fast here"),
        ("refuse", "q8_0:q4_0", 'use {}, or kv_slow = "warn"'),
        ("fallback", "{}", '{} is used instead (kv_slow = "fallback")'),
    ],
)
@pytest.mark.parametrize(
    ("machine", "fast"),
    [
        (Machine(STOCK_TYPES, ("MTL0",), 11434), "q8_0:q8_0"),
        (Machine(STOCK_TYPES, probes={"q8_0:q4_0": probe("q8_0:q4_0", 0.49, 2.0)}), "f16:f16"),
        (Machine(STOCK_TYPES, probes={"q8_0:q4_0": probe("q8_0:q4_0", 2.0, 0.1)}), "f16:f16"),
    ],
    ids=["by the table", "reads slowly", "writes slowly"],
)
def test_slow_pair_is_warned_of_refused_or_replaced(
    machine: Machine, fast: str, kv_slow: str, expected: str, says: str
) -> None:
    """By the table or by a probe, as the file says; the nearest fast pair is named each time."""
    choice = choose(msgspec.structs.replace(MODEL, kv_slow=kv_slow), shape(), machine)

    assert pair_of(choice) == expected.format(fast)
    assert says.format(fast) in (choice.refusal or choice.note or choice.slow)
    assert (choice.refusal is not None) == (kv_slow == "refuse")
    assert bool(choice.slow) == (kv_slow != "fallback")


def test_probe_counts_more_than_the_table() -> None:
    """Metal's table says the CPU; what was measured here says fast."""
    machine = Machine(
        STOCK_TYPES, ("MTL0",), 11434, probes={"q8_0:q4_0": probe("q8_0:q4_0", 0.9, 1.1)}
    )

    assert choose(MODEL, shape(), machine) == Choice(MODEL)


@pytest.mark.parametrize(("ratio", "expected"), [(0.1, "f16:f16"), (0.9, "q8_0:q8_0")])
def test_fallback_of_a_pair_that_was_probed_slow_was_probed_too(
    ratio: float, expected: str
) -> None:
    """A table that was wrong once is not believed of the next pair."""
    probes = {
        "q8_0:q4_0": probe("q8_0:q4_0", 0.1, 0.1),
        "q8_0:q8_0": probe("q8_0:q8_0", ratio, ratio),
    }
    model = msgspec.structs.replace(MODEL, kv_slow="fallback")

    chosen = pair_of(choose(model, shape(), Machine(STOCK_TYPES, probes=probes)))

    assert chosen == expected
