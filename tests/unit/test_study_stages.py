"""How a study is cut to its time, and which pairs it measures in full."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.kvtypes import F16, KVPair, KVType, parse_kv_pair
from kvsup.pareto import ALWAYS, halves, predicted
from kvsup.tuning.stages import (
    MAX_FULL_TOKENS,
    MIN_FULL_TOKENS,
    PROMPTS,
    Costs,
    Event,
    Meter,
    Progress,
    Schedule,
    finalists,
    patience_s,
    schedule,
    shortfall,
)

DEMO = Costs(load_s=0.15, score_s=0.0105, answer_s=0.0098, prompt_s=0.002)
"""What SmolLM2 takes on two cores."""
LARGE = Costs(load_s=8.0, score_s=0.2, answer_s=0.2, prompt_s=0.02)

TYPES = {"f16": 0.0, "q8_0": 0.002, "q5_1": 0.008, "q5_0": 0.009, "q4_1": 0.02, "q4_0": 0.03}
PAIRS = tuple(
    pair for k, v in product(TYPES, repeat=2) if (pair := KVPair(KVType(k), KVType(v))) != F16
)
SIZES = {pair: (pair.k.row_bytes(32) or 0) + (pair.v.row_bytes(32) or 0) for pair in PAIRS}
LOSSES = {pair: 3 * TYPES[str(pair.k)] + TYPES[str(pair.v)] / 2 for pair in halves(PAIRS)}


def planned(costs: Costs, budget_s: float, *, n_wanted: int | None = None) -> Schedule:
    """Return the schedule of a study of all pairs."""
    return schedule(
        costs,
        budget_s=budget_s,
        n_halves=0 if n_wanted else 12,
        n_wanted=n_wanted,
        max_deep_tokens=3072,
    )


def expected_s(plan: Schedule, n_halves: int) -> float:
    """Return what a study should take: screening, reference, floor and finalists."""
    return n_halves * plan.screen_s + (2 + plan.n_finalists) * plan.full_s


def test_schedule_of_the_demo_model_is_done_well_within_six_minutes() -> None:
    """With time left for pairs that are slower than f16:f16."""
    plan = planned(DEMO, 600)

    assert plan.full_tokens >= MIN_FULL_TOKENS
    assert plan.n_finalists >= 8
    assert plan.deep_tokens >= 1024
    assert expected_s(plan, 12) <= 210


def test_schedule_of_a_large_model_measures_less_and_keeps_its_time() -> None:
    """Fewer finalists, shorter answers, less depth."""
    plan = planned(LARGE, 3600)

    assert plan.full_tokens < MAX_FULL_TOKENS
    assert plan.n_finalists < 10
    assert expected_s(plan, 12) <= 3600


@given(
    st.floats(60, 36000),
    st.floats(0.001, 1.0),
    st.floats(0.05, 60.0),
    st.sampled_from([None, 1, 3, 48]),
)
def test_schedule_of_anything_is_within_its_limits(
    budget_s: float, score_s: float, load_s: float, n_wanted: int | None
) -> None:
    """Also where the time is far too short: then the least is measured."""
    costs = Costs(load_s=load_s, score_s=score_s, answer_s=score_s, prompt_s=score_s / 10)

    plan = planned(costs, budget_s, n_wanted=n_wanted)

    assert 64 <= plan.full_tokens <= MAX_FULL_TOKENS
    assert 0 <= plan.deep_tokens <= 3072
    assert plan.n_finalists == n_wanted or (n_wanted is None and plan.n_finalists >= 4)
    assert plan.answer_tokens > 0
    if plan.full_tokens >= MIN_FULL_TOKENS and plan.screen_tokens > 64:
        assert expected_s(plan, 0 if n_wanted else 12) <= budget_s


def test_shortfall_where_the_least_takes_longer_than_the_time_names_the_time() -> None:
    """A person hears it before anything is measured, not when the time is up."""
    plan = planned(LARGE, 60)
    needed_s = 30 + plan.expected_s(12)

    said = shortfall(plan, 12, spent_s=30, budget_s=600)

    minutes = -(-needed_s // 60)
    assert needed_s > 600
    assert said == (
        f"it needs about {minutes:.0f}m with this model; "
        f"give --budget-time {minutes:.0f}m, or name fewer --pairs"
    )


def test_shortfall_of_one_pair_or_of_enough_time_asks_for_no_fewer() -> None:
    """Fewer than one there cannot be."""
    one = planned(LARGE, 60, n_wanted=1)

    assert "fewer" not in shortfall(one, 0, spent_s=30, budget_s=60)
    assert shortfall(planned(DEMO, 600), 12, spent_s=10, budget_s=600) == ""


def test_patience_with_a_step_ends_with_the_time_of_the_study() -> None:
    """Ten times the plan while there is time; when it is up, twice, and a minute at least."""
    assert patience_s(30, left_s=900) == 300
    assert patience_s(30, left_s=200) == 200
    assert patience_s(50, left_s=-10) == 100
    assert patience_s(2, left_s=1) == 60


def test_schedule_of_named_pairs_screens_nothing() -> None:
    """All of them are measured in full."""
    plan = planned(DEMO, 120, n_wanted=2)

    assert plan.screen_tokens == 0
    assert plan.n_finalists == 2


def test_schedule_of_a_slow_machine_looks_at_fewer_pairs_but_at_depth() -> None:
    """What is slow is slow at depth first."""
    slow = Costs(load_s=0.15, score_s=0.0085, answer_s=0.0067, prompt_s=0.0038)

    plan = planned(slow, 600)

    assert plan.deep_tokens >= 512
    assert plan.n_finalists >= 8
    assert plan.full_tokens >= MIN_FULL_TOKENS


def test_schedule_without_time_for_depth_leaves_it_out() -> None:
    """A shallow depth would be taken for a deep one."""
    plan = planned(Costs(load_s=1, score_s=0.1, answer_s=0.1, prompt_s=0.1), 300)

    assert plan.deep_tokens == 0
    assert plan.speeds_s > 0


def test_schedule_tells_the_seconds_of_its_parts() -> None:
    """A finalist's are load, scores, answers and speeds."""
    plan = planned(DEMO, 600)

    assert plan.expected_s(12) == pytest.approx(
        expected_s(plan, 12) - DEMO.load_s - plan.speeds_s  # of the reference, whose costs tell
    )
    assert plan.answers_s == pytest.approx(PROMPTS * plan.answer_tokens * DEMO.answer_s)
    rest_s = DEMO.load_s + plan.full_tokens * DEMO.score_s + plan.answers_s + plan.speeds_s
    assert plan.full_s == pytest.approx(rest_s)


def test_finalists_begin_with_the_pairs_that_people_ask_for() -> None:
    """A study that is broken off has the twins at least, whatever they lose."""
    hopeless = {pair: loss * 100 for pair, loss in LOSSES.items()}

    chosen = finalists(PAIRS, SIZES, hopeless, n_most=4)

    assert [str(pair) for pair in chosen] == list(ALWAYS)


def test_finalists_are_predicted_to_be_beaten_by_no_other_pair() -> None:
    """But for those that people ask for."""
    chosen = finalists(PAIRS, SIZES, LOSSES, n_most=100)

    losses = {pair: predicted(pair, LOSSES) or 0.0 for pair in PAIRS}
    for pair in chosen[len(ALWAYS) :]:
        beaten = [
            other
            for other in PAIRS
            if SIZES[other] <= SIZES[pair]
            and losses[other] <= losses[pair]
            and (SIZES[other], losses[other]) != (SIZES[pair], losses[pair])
        ]
        assert beaten == []
    assert len(chosen) > len(ALWAYS) + 2


def test_finalists_that_are_too_many_are_thinned_with_both_ends_kept() -> None:
    """The front from the most accurate to the smallest is still covered."""
    every = finalists(PAIRS, SIZES, LOSSES, n_most=100)

    some = finalists(PAIRS, SIZES, LOSSES, n_most=len(ALWAYS) + 3)

    assert len(some) == len(ALWAYS) + 3
    assert some[len(ALWAYS)] == every[len(ALWAYS)]
    assert some[-1] == every[-1]
    assert set(some) <= set(every)


def test_finalists_are_among_what_fits_and_what_the_limit_allows() -> None:
    """But for those that people ask for."""
    room = SIZES[parse_kv_pair("q5_0:q5_0")]
    lossy = {pair: loss + 0.3 for pair, loss in LOSSES.items()}

    fitting = finalists(PAIRS, SIZES, LOSSES, n_most=100, max_bytes=room)
    hopeless = finalists(PAIRS, SIZES, lossy, n_most=100)
    allowed = finalists(PAIRS, SIZES, lossy, n_most=100, max_kld=0.5)

    assert all(SIZES[pair] <= room for pair in fitting[len(ALWAYS) :])
    assert len(fitting) > len(ALWAYS)
    assert parse_kv_pair("q4_0:q4_0") not in hopeless
    assert parse_kv_pair("q4_0:q4_0") in allowed


def test_finalists_where_nothing_can_be_predicted_are_all_pairs() -> None:
    """Where K and V must be of one type there are few."""
    pairs = [parse_kv_pair(name) for name in ("q8_0", "q5_1", "q4_0")]

    chosen = finalists(pairs, dict.fromkeys(pairs, 1), {}, n_most=8)

    assert set(chosen) == set(pairs)


def test_finalists_are_without_a_half_that_could_not_be_screened() -> None:
    """Its failure is reported; its pairs would take the places of the front."""
    losses = {pair: loss for pair, loss in LOSSES.items() if str(pair) != "q5_1:f16"}

    chosen = finalists(PAIRS, SIZES, losses, n_most=100)

    assert all(str(pair.k) != "q5_1" for pair in chosen)


def test_meter_tells_how_much_is_done_and_left() -> None:
    """In seconds of expected work; the last event is all of it."""
    seen: list[Event] = []
    meter = Meter(seen.append)

    meter.expect(30)
    meter.begin("screen", "q8_0:f16", 10)
    meter.tick(4)
    meter.end(took_s=10)
    meter.begin("screen", "f16:q8_0", 20)
    meter.tick(50)
    meter.end(took_s=20)

    stands = [event for event in seen if isinstance(event, Progress)]
    assert [(s.what, s.done_s) for s in stands[:3]] == [
        ("q8_0:f16", 0),
        ("q8_0:f16", 4),
        ("q8_0:f16", 10),
    ]
    assert stands[1].left_s == 26
    assert (stands[-1].done_s, stands[-1].total_s, stands[-1].left_s) == (30, 30, 0)


def test_meter_over_the_stages_of_a_study_never_goes_back() -> None:
    """Each stage says anew what is left, with its own steps in it."""
    seen: list[Event] = []
    meter = Meter(seen.append)

    meter.expect(600)
    meter.begin("reference", "f16:f16", 0)
    meter.expect(20 + 10 + 2 * 20)
    meter.begin("reference", "f16:f16", 20)
    meter.tick(15)
    meter.end(took_s=20)
    for stage, left_s, step_s in (("screen", 10 + 2 * 20, 10), ("measure", 2 * 20, 20)):
        meter.expect(left_s)
        meter.begin(stage, "q8_0:q8_0", step_s)  # type: ignore[arg-type]
        meter.end(took_s=step_s)

    parts = [s.done_s / s.total_s for s in seen if isinstance(s, Progress)]
    assert parts == sorted(parts)
    assert parts[-1] == 50 / 70


def test_meter_corrects_the_time_left_by_what_steps_took() -> None:
    """Pairs are slower than f16:f16, which the expectation is of."""
    seen: list[Event] = []
    meter = Meter(seen.append)
    meter.expect(30)

    meter.begin("measure", "q8_0:q8_0", 10)
    meter.end(took_s=30)
    meter.begin("measure", "q4_0:q4_0", 20)

    last = seen[-1]
    assert isinstance(last, Progress)
    assert last.left_s == 40
