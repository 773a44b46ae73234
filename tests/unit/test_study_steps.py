"""The steps of a study: what is kept of them, what is told, and what comes of one that fails."""

from pathlib import Path

import anyio

from kvsup.kvtypes import parse_kv_pair
from kvsup.measures import Quality
from kvsup.runtime.remembered import Remembered
from kvsup.tuning.measuring import Screened
from kvsup.tuning.stages import Event, Noted, PairDone, PairFailed
from kvsup.tuning.steps import Steps
from kvsup.tuning.trial import TrialFailed

PAIR = parse_kv_pair("q8_0:q4_0")
FOUND = Screened(
    quality=Quality(
        n_tokens=64,
        mean_kld_nats=0.01,
        low_kld_nats=0.009,
        high_kld_nats=0.011,
        p999_kld_nats=0.1,
        max_kld_nats=0.2,
        same_top=0.95,
        perplexity_ratio=1.0,
    )
)


def steps_in(folder: Path, seen: list[Event], *, is_fresh: bool = False) -> Steps:
    """Return the steps of a study that begins now and has a minute."""
    return Steps(Remembered(folder), budget_s=60, is_fresh=is_fresh, emit=seen.append)


async def found() -> Screened:
    """Measure at once."""
    return FOUND


async def died() -> Screened:
    """Fail at once."""
    raise TrialFailed("it died")


async def late() -> Screened:
    """Take more time than there is."""
    raise TimeoutError


def test_step_that_is_done_is_kept_and_told(tmp_path: Path) -> None:
    """A study that goes on finds it, unless everything is to be measured anew."""
    seen: list[Event] = []
    steps = steps_in(tmp_path, seen)

    done = anyio.run(steps.done, "screen", PAIR, "key", found, 1.0)

    assert done == FOUND
    assert steps_in(tmp_path, seen).read("key", Screened) == FOUND
    assert steps_in(tmp_path, seen, is_fresh=True).read("key", Screened) is None
    assert PairDone("screen", "q8_0:q4_0", 0.01) in seen


def test_step_that_fails_is_noted_and_the_study_goes_on(tmp_path: Path) -> None:
    """Nothing is kept of it, and it is not for lack of time."""
    seen: list[Event] = []
    steps = steps_in(tmp_path, seen)

    done = anyio.run(steps.done, "measure", PAIR, "key", died, 1.0)

    assert done is None
    assert steps.failures == {PAIR: "it died"}
    assert not steps.is_cut
    assert steps.read("key", Screened) is None
    assert seen[-1] == PairFailed("measure", "q8_0:q4_0", "it died")


def test_step_that_is_given_up_for_time_leaves_the_study_incomplete(tmp_path: Path) -> None:
    """What was not seen to the end is not for auto."""
    steps = steps_in(tmp_path, [])

    anyio.run(steps.done, "measure", PAIR, "key", late, 1.0)

    assert steps.is_cut
    assert steps.failures == {PAIR: "time was up before it was measured"}


def test_step_of_the_cross_check_that_fails_is_no_failure_of_the_pair(tmp_path: Path) -> None:
    """It was measured; the second opinion is missing."""
    steps = steps_in(tmp_path, [])

    anyio.run(steps.done, "cross-check", PAIR, "key", late, 1.0)

    assert not steps.failures
    assert not steps.is_cut
    assert steps.notes == ["llama-perplexity: time was up before it was measured"]


def test_note_is_told_at_once_and_with_the_result(tmp_path: Path) -> None:
    """A person may break off sooner."""
    seen: list[Event] = []
    steps = steps_in(tmp_path, seen)

    steps.note("it needs about 70m")

    assert seen == [Noted("it needs about 70m")]
    assert steps.notes == ["it needs about 70m"]
