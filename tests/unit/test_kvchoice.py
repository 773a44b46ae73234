"""Which pair a model gets."""

import msgspec
import pytest

from kvsup.config import ModelConfig
from kvsup.gguf import Metadata
from kvsup.kvchoice import Machine, backend_here, choose, fast_pair, slowness
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


def pair_of(choice: tuple[ModelConfig, str]) -> str:
    """Return the pair that was chosen."""
    return str(choice[0].kv_cache_type)


def test_pair_of_the_file_is_taken_without_a_word_where_nothing_is_known_against_it() -> None:
    """Nobody is told what is as he wrote it."""
    assert choose(MODEL, shape(), CPU) == (MODEL, "")
    assert slowness(MODEL.kv_cache_type, MODEL, shape(), CPU) is None


@pytest.mark.parametrize(
    ("goal", "head", "tuned", "expected", "says"),
    [
        ("balanced", 64, TUNED, "q8_0:q5_1", "found by kvsup tune on 2026-11-24 for balanced"),
        ("small", 64, TUNED, "q5_0:q4_0", "for small"),
        ("fast", 64, TUNED, "f16:f16", "kvsup tune m finds the best one for fast"),
        ("balanced", 64, None, "q8_0:q8_0", "a safe choice"),
        ("accurate", 64, None, "f16:f16", "a safe choice"),
        ("balanced", 80, None, "f16:f16", "a safe choice"),
        ("balanced", 96, None, "f16:f16", "a safe choice"),
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
    assert says in choice[1]
    assert expected in choice[1]
    assert not choice[0].kv_is_auto


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Machine(STOCK_TYPES, ("CANN0",), 11434), "f16:f16"),
        (Machine(STOCK_TYPES, probes={"q8_0:q8_0": probe("q8_0:q8_0", 0.4, 1.0)}), "f16:f16"),
        (Machine(STOCK_TYPES, ("MTL0",), 11434), "q8_0:q8_0"),
    ],
)
def test_auto_does_not_take_what_is_known_to_be_slow(machine: Machine, expected: str) -> None:
    """Nobody who leaves the choice to kvsup is then told that it was a bad one."""
    chosen, _ = choose(AUTO, shape(), machine)

    assert str(chosen.kv_cache_type) == expected
    assert slowness(chosen.kv_cache_type, chosen, shape(), machine) is None


def test_auto_does_not_take_a_type_that_the_binary_lacks() -> None:
    """What was found with a fork is of no use with the stock binary."""
    for pick in ("q8_0:turbo3", "q8_0:q8_0:q4_0", ""):
        tuned = msgspec.structs.replace(TUNED, picks={"balanced": pick})

        assert pair_of(choose(AUTO, shape(), cpu_with(tuned=tuned))) == "q8_0:q8_0"


@pytest.mark.parametrize("kv_slow", ["warn", "refuse", "fallback"])
@pytest.mark.parametrize(
    ("machine", "fast"),
    [
        (Machine(STOCK_TYPES, ("MTL0",), 11434), "q8_0:q8_0"),
        (Machine(STOCK_TYPES, probes={"q8_0:q4_0": probe("q8_0:q4_0", 0.49, 2.0)}), "f16:f16"),
        (Machine(STOCK_TYPES, probes={"q8_0:q4_0": probe("q8_0:q4_0", 2.0, 0.1)}), "f16:f16"),
    ],
    ids=["by the table", "reads slowly", "writes slowly"],
)
def test_slow_pair_is_known_and_replaced_where_the_file_says_so(
    machine: Machine, fast: str, kv_slow: str
) -> None:
    """By the table or by a probe; the nearest fast pair is named."""
    model = msgspec.structs.replace(MODEL, kv_slow=kv_slow)

    chosen, note = choose(model, shape(), machine)

    assert slowness(MODEL.kv_cache_type, model, shape(), machine)
    assert str(fast_pair(model, shape(), machine)) == fast
    if kv_slow == "fallback":
        assert str(chosen.kv_cache_type) == fast
        assert f'{fast} is used instead (kv_slow = "fallback")' in note
    else:
        assert (chosen, note) == (model, "")


def test_probe_counts_more_than_the_table() -> None:
    """Metal's table says the CPU; what was measured here says fast."""
    machine = Machine(
        STOCK_TYPES, ("MTL0",), 11434, probes={"q8_0:q4_0": probe("q8_0:q4_0", 0.9, 1.1)}
    )

    assert slowness(MODEL.kv_cache_type, MODEL, shape(), machine) is None


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


@pytest.mark.parametrize(
    ("pair", "device", "build", "nearest"),
    [
        ("q8_0:q5_1", "CUDA0", 11434, "q8_0:q8_0"),
        ("q5_1:q4_0", "CUDA0", 10000, "q8_0:q8_0"),
        ("q5_1:q4_0", "MTL0", 11434, "q5_1:q5_1"),
        ("q8_0:q4_0", "Vulkan0", 11434, "q8_0:q4_0"),
        ("q8_0:q8_0", "CANN0", 11434, "f16:f16"),
        ("iq4_nl:iq4_nl", "RPC0[host:1]", 11434, "q4_0:q4_0"),
    ],
)
def test_fast_pair_keeps_the_bits_of_k(pair: str, device: str, build: int, nearest: str) -> None:
    """Errors in K cost more, so K is kept before V, and not lowered."""
    model = msgspec.structs.replace(MODEL, kv_cache_type=parse_kv_pair(pair))

    found = fast_pair(model, shape(128), Machine(STOCK_TYPES, (device,), build))

    assert found == parse_kv_pair(nearest)


def test_fast_pair_is_of_the_binarys_types_and_of_those_that_the_model_can_run_with() -> None:
    """Where nothing is left there is none."""
    machine = Machine(("f16", "q4_0"), ("CUDA0",), 11434)

    assert fast_pair(MODEL, shape(), machine) == parse_kv_pair("f16")
    assert fast_pair(MODEL, shape(80), machine) == parse_kv_pair("f16")
    assert fast_pair(MODEL, shape(), Machine(("turbo3",), ("CUDA0",), 11434)) is None


def test_backend_of_a_model_that_names_an_rpc_server_is_rpc() -> None:
    """It is no device of ``--list-devices``, and the one that aborts."""
    model = msgspec.structs.replace(MODEL, extra_args=("--rpc", "host:50052"))

    assert backend_here(model, ["CUDA0"]) == "rpc"
    assert backend_here(MODEL, ["CUDA0"]) == "cuda"
    assert backend_here(MODEL, []) == "cpu"
