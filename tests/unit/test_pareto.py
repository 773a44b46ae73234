"""Which pairs are measured, which is picked for a goal, and what is said of K and V."""

import msgspec
import pytest

from kvsup.gguf import Metadata, Value
from kvsup.kvtypes import F16, KVPair, parse_kv_pair
from kvsup.measures import Goal, PairMeasurement, Quality, Speed, Trajectory
from kvsup.modelshape import shape_of
from kvsup.pareto import (
    candidates,
    finding,
    front,
    halves,
    pareto,
    pick,
    predicted,
    size_bytes,
)

STOCK = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


def pair(text: str) -> KVPair:
    """Return the pair of this name."""
    return parse_kv_pair(text)


def measured(
    name: str,
    n_bytes: int,
    kld: float,
    *,
    spread: float = 0.1,
    speeds: tuple[Speed, ...] = (),
    scratch_bytes: int = 0,
    failure: str | None = None,
) -> PairMeasurement:
    """Return a pair that loses ``kld``, with an interval of ``spread`` around it."""
    return PairMeasurement(
        pair=name,
        k_bytes=n_bytes // 2,
        v_bytes=n_bytes - n_bytes // 2,
        scratch_bytes=scratch_bytes,
        quality=Quality(
            n_tokens=1000,
            mean_kld_nats=kld,
            low_kld_nats=kld * (1 - spread),
            high_kld_nats=kld * (1 + spread),
            p999_kld_nats=kld * 10,
            max_kld_nats=kld * 20,
            same_top=0.95,
            perplexity_ratio=1.0,
        ),
        speeds=speeds,
        failure=failure,
    )


def speed(generation: float, *, prompt: float = 500.0, depth: int = 2048) -> Speed:
    """Return speeds at a depth."""
    return Speed(depth_tokens=depth, prompt_tokens_per_s=prompt, generation_tokens_per_s=generation)


def with_calls(measurement: PairMeasurement, *, same: bool) -> PairMeasurement:
    """Return a pair of which one tool call was compared."""
    trajectory = Trajectory(first_difference=(), lengths=(), same_tool_calls=(True, same))
    return msgspec.structs.replace(measurement, trajectory=trajectory)


SMOLLM2 = (
    measured("f16:f16", 900, 1e-6, speeds=(speed(100),)),
    measured("q8_0:q8_0", 478, 0.0041, speeds=(speed(90),)),
    measured("q8_0:q5_1", 408, 0.0055, speeds=(speed(80),)),
    measured("q8_0:q4_0", 366, 0.0109, speeds=(speed(85),)),
    measured("q4_0:q8_0", 366, 0.0652, speeds=(speed(110),)),
    measured("q5_1:q5_1", 338, 0.018, speeds=(speed(49),)),
    measured("q4_0:q4_0", 253, 0.0742, speeds=(speed(95),)),
)
"""Much as it came out on b11434."""


def test_candidates_of_a_stock_binary_are_all_mixes_but_of_wide_types() -> None:
    """f32 and bf16 take as much as f16 or more, and are no better."""
    pairs, refused = candidates(STOCK, None, "auto")

    assert len(pairs) == 7 * 7
    assert not refused
    assert len(candidates(STOCK, None, "auto", with_wide=True)[0]) == 9 * 9


def test_candidates_without_flash_attention_have_no_quantized_v() -> None:
    """Those refused have the reason."""
    pairs, refused = candidates(("f16", "q8_0"), None, "off")

    assert pair("f16:q8_0") in refused
    assert "flash attention" in refused[pair("f16:q8_0")]
    assert F16 in pairs


def test_halves_of_pairs_are_each_type_in_k_alone_and_in_v_alone() -> None:
    """Twice the types, and f16:f16 is none."""
    pairs, _ = candidates(("f16", "q8_0", "q4_0"), None, "auto")

    alone = {str(one) for one in halves(pairs)}

    assert alone == {"q8_0:f16", "f16:q8_0", "q4_0:f16", "f16:q4_0"}


def test_halves_of_pairs_of_one_type_are_none() -> None:
    """Where K and V must be of one type, no type can be measured alone."""
    assert halves([F16, pair("q8_0"), pair("q4_0")]) == ()


def test_predicted_loss_of_a_pair_is_the_sum_of_its_halves() -> None:
    """f16 costs nothing; what was not screened is not guessed."""
    losses = {pair("q8_0:f16"): 0.002, pair("f16:q4_0"): 0.007}

    assert predicted(pair("q8_0:q4_0"), losses) == pytest.approx(0.009)
    assert predicted(pair("q8_0:f16"), losses) == pytest.approx(0.002)
    assert predicted(F16, losses) == 0
    assert predicted(pair("q4_0:q4_0"), losses) is None


def test_front_of_points_drops_what_another_beats() -> None:
    """No worse in any respect and better in one; equal points stay both."""
    points = [(1, 9), (2, 5), (3, 5), (4, 1), (4, 1), (5, 2)]

    assert front(points, lambda point: point) == [(1, 9), (2, 5), (4, 1), (4, 1)]


def test_front_in_three_respects_keeps_what_is_best_in_one() -> None:
    """Speed can be a third cost."""
    points = [(1, 1, 9), (2, 2, 1), (2, 2, 9)]

    assert front(points, lambda point: point) == [(1, 1, 9), (2, 2, 1)]


def test_pareto_of_measurements_leaves_out_what_was_not_measured() -> None:
    """A prediction is no measurement."""
    guessed = PairMeasurement(pair="q5_0:q4_0", k_bytes=1, v_bytes=1, predicted_kld_nats=0.0)

    names = [m.pair for m in pareto([*SMOLLM2, guessed])]

    assert names == [
        "q4_0:q4_0",
        "q5_1:q5_1",
        "q8_0:q4_0",
        "q8_0:q5_1",
        "q8_0:q8_0",
        "f16:f16",
    ]


def test_size_of_a_pair_has_its_scratch_in_it() -> None:
    """What a device needs beside the cache is memory, too."""
    assert size_bytes(measured("q8_0:q8_0", 478, 0.004, scratch_bytes=22)) == 500


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("accurate", "q8_0:q8_0"),
        ("balanced", "q8_0:q4_0"),
        ("small", "q4_0:q4_0"),
        ("fast", "f16:f16"),
    ],
)
def test_pick_on_measurements_of_the_demo_model_serves_its_goal(goal: Goal, expected: str) -> None:
    """Balanced passes over the smaller q5_1:q5_1, which has less than half of f16:f16's speed."""
    choice = pick(SMOLLM2, goal)

    assert choice.pair == expected
    assert "nats" in choice.reason
    assert ("that keeps 50%" in choice.reason) == (goal == "balanced")


def test_pick_under_a_limit_on_the_loss_is_the_smallest_below_it() -> None:
    """The limit takes the place of the goal's own."""
    assert pick(SMOLLM2, "small", max_kld=0.006).pair == "q8_0:q5_1"
    assert pick(SMOLLM2, "accurate", max_kld=0.07).pair == "q8_0:q4_0"


def test_pick_says_what_it_keeps_of_the_speed_of_f16() -> None:
    """No slow pair is picked in silence."""
    prompts = measured("q4_0:q8_0", 366, 0.0652, speeds=(speed(110, prompt=100),))

    kept = pick(SMOLLM2, "accurate").reason
    slow = pick([SMOLLM2[0], prompts], "small").reason

    assert "90% of its generation and 100% of its prompt speed behind 2048 tokens" in kept
    assert "slow" not in kept
    assert "110% of its generation and 20% of its prompt speed behind 2048 tokens" in slow
    assert slow.endswith("; that is slow")


def test_pick_of_small_is_the_smallest_however_slow() -> None:
    """Who is short of memory is served; accurate and balanced pass over what is slow."""
    slow = measured("q5_1:q5_0", 300, 0.004, speeds=(speed(10),))
    pairs = [*SMOLLM2[:2], slow]

    assert pick(pairs, "small").pair == "q5_1:q5_0"
    assert pick(pairs, "balanced").pair == "q8_0:q8_0"
    assert pick(pairs, "accurate").pair == "q8_0:q8_0"


@pytest.mark.parametrize("goal", ["accurate", "balanced", "small", "fast"])
def test_pick_passes_over_a_pair_whose_tool_calls_differ(goal: Goal) -> None:
    """And says so."""
    other = with_calls(measured("q4_0:q4_0", 253, 0.001, speeds=(speed(200),)), same=False)
    same = with_calls(measured("q8_0:q8_0", 478, 0.004, speeds=(speed(150),)), same=True)

    choice = pick([SMOLLM2[0], other, same], goal)
    none = pick([other], goal)

    assert choice.pair == "q8_0:q8_0"
    assert "calls tools as f16:f16 does" in choice.reason
    assert none.pair is None
    assert "tool calls differ" in none.reason


def test_pick_for_accuracy_takes_a_noisy_floor_into_account() -> None:
    """What f16:f16 loses against itself is no loss of another pair."""
    noisy = [measured("f16:f16", 900, 0.006), measured("q8_0:q8_0", 478, 0.011)]

    assert pick(noisy, "accurate").pair == "q8_0:q8_0"


def test_pick_where_memory_is_short_is_among_what_fits() -> None:
    """Bytes count with scratch."""
    fits = pick(SMOLLM2, "accurate", memory_bytes=478)
    short = pick(SMOLLM2, "accurate", memory_bytes=400)
    none = pick(SMOLLM2, "balanced", memory_bytes=200)

    assert fits.pair == "q8_0:q8_0"
    assert short.pair is None
    assert "q8_0:q4_0 loses least, 0.0109" in short.reason
    assert none.pair is None
    assert "q4_0:q4_0 is the smallest" in none.reason


def test_pick_of_balanced_where_all_are_slow_is_the_smallest() -> None:
    """A limit on speed that nothing keeps decides nothing."""
    slow = [
        measured("f16:f16", 900, 0.03, speeds=(speed(100),)),
        measured("q8_0:q8_0", 478, 0.01, speeds=(speed(10),)),
    ]

    assert pick(slow, "balanced").pair == "q8_0:q8_0"


def test_pick_of_the_fastest_takes_the_smallest_of_those_as_fast() -> None:
    """Some percent are noise; what is too lossy does not count."""
    near = [
        measured("f16:f16", 900, 0.0, speeds=(speed(100),)),
        measured("q8_0:q8_0", 478, 0.004, speeds=(speed(98),)),
        measured("q4_0:q4_0", 253, 0.07, speeds=(speed(120),)),
    ]

    assert pick(near, "fast").pair == "q8_0:q8_0"


def test_pick_of_the_fastest_looks_at_the_greatest_depth() -> None:
    """Speed on an empty cache says nothing of long contexts."""
    pairs = [
        measured("f16:f16", 900, 0.0, speeds=(speed(100, depth=0), speed(50))),
        measured("q8_0:q8_0", 478, 0.004, speeds=(speed(90, depth=0), speed(80))),
    ]

    assert pick(pairs, "fast").pair == "q8_0:q8_0"


def test_pick_without_speeds_has_no_fastest() -> None:
    """And nothing can be picked of nothing."""
    assert pick([measured("f16:f16", 900, 0.0)], "fast").pair is None
    assert pick([], "small").pair is None


def test_pick_passes_over_a_pair_that_failed() -> None:
    """Whatever was measured of it before it did."""
    failed = measured("q4_0:q4_0", 253, 0.001, failure="it died")

    assert pick([*SMOLLM2[:2], failed], "balanced").pair == "q8_0:q8_0"


def test_finding_on_the_demo_model_is_that_k_matters_more() -> None:
    """With the factor, both losses, and that the sizes are equal."""
    assert finding(SMOLLM2) == (
        "K matters 6.0 times more than V here: q8_0:q4_0 loses 0.011 nats, "
        "q4_0:q8_0 0.065, at the same size."
    )


def test_finding_where_v_matters_more_says_so() -> None:
    """It depends on the model."""
    twins = [measured("q8_0:q4_0", 366, 0.05), measured("q4_0:q8_0", 360, 0.02)]

    assert finding(twins) == (
        "V matters 2.5 times more than K here: q4_0:q8_0 loses 0.02 nats, q8_0:q4_0 0.05."
    )


def test_finding_of_twins_that_cannot_be_told_apart_claims_nothing() -> None:
    """Neither where the intervals overlap, nor where the factor is small."""
    wide = [
        measured("q8_0:q4_0", 366, 0.01, spread=0.5),
        measured("q4_0:q8_0", 366, 0.02, spread=0.5),
    ]
    close = [
        measured("q8_0:q4_0", 366, 0.010, spread=0.01),
        measured("q4_0:q8_0", 366, 0.012, spread=0.01),
    ]

    assert finding(wide).startswith("K and V cannot be told apart")
    assert finding(close).startswith("K and V matter about the same")


def test_finding_of_twins_that_compare_equal_by_other_means_claims_nothing() -> None:
    """What tells two pairs apart may be handed in, so that the report says one thing only."""
    assert finding(SMOLLM2, lambda *_: True).startswith("K and V cannot be told apart")


def test_finding_takes_other_twins_where_the_usual_ones_were_not_measured() -> None:
    """Two types of one size are no twins: neither half has more bits."""
    equal = [measured("q4_0:iq4_nl", 253, 0.1), measured("iq4_nl:q4_0", 253, 0.3)]
    others = [measured("q8_0:q5_0", 390, 0.01), measured("q5_0:q8_0", 390, 0.03)]

    assert finding(equal) == ""
    assert finding([*equal, *others]).startswith("K matters 3.0 times more")
    assert finding(SMOLLM2[:4]) == ""


def test_candidates_of_latent_attention_have_one_type_for_k_and_v() -> None:
    """What the model's header forbids is refused, too."""
    keys: dict[str, Value] = {
        "general.architecture": "deepseek2",
        "deepseek2.block_count": 2,
        "deepseek2.context_length": 8192,
        "deepseek2.embedding_length": 512,
        "deepseek2.feed_forward_length": 512,
        "deepseek2.attention.head_count": 4,
        "deepseek2.attention.head_count_kv": 1,
        "deepseek2.attention.key_length": 576,
        "deepseek2.attention.value_length": 512,
        "deepseek2.attention.key_length_mla": 192,
        "deepseek2.attention.value_length_mla": 128,
        "deepseek2.vocab_size": 1000,
    }

    pairs, refused = candidates(("f16", "q8_0"), shape_of(Metadata(3, keys, ())), "auto")

    assert [str(one) for one in pairs] == ["f16:f16", "q8_0:q8_0"]
    assert all("one type" in reason for reason in refused.values())
    assert len(refused) == 2
