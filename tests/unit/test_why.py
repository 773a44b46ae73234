"""Why a model is as it is: from its history and its present, in sentences."""

import pytest

from kvsup import events
from kvsup.events import Event
from kvsup.history import Record, record_of
from kvsup.lifecycle import State
from kvsup.restart import ExitCause
from kvsup.why import _MENDS, DAY_S, NOT_RUNNING, Answer, Present, answer

SPAWNED = events.Spawned("m", 7, "b11434", "q8_0:q4_0", 4096, 2)
READY = events.Ready("m", 0.42, None, "q8_0:q4_0")
BEGAN = events.Began(1, "0.1")
SEGFAULT = events.Died("m", "died of a signal; signal SIGSEGV", "CRASHED", -11, 30.0)
REPLAYED = events.Replayed("m", "replayed", 0, 0.5, "died of a signal")
EVICTED = events.Stopping("m", "to make room for big", room_for="big")
STOPPED = events.Stopped("m", 0.02, was_killed=False)
NOW_S = 1_000_000.0


def ask(*happened: Event, present: Present, n_lines: int = 20) -> Answer:
    """Return the answer after what happened, one event a second, the last one 10 s ago."""
    first_s = NOW_S - 9.0 - len(happened)
    records = [record_of(event, at_s=first_s + n) for n, event in enumerate(happened)]
    return answer("m", records, present, now_s=NOW_S, n_lines=n_lines)


@pytest.mark.parametrize(
    ("present", "now"),
    [
        (Present("ready", 720.0), "m has been ready for 12 min, with no request in work"),
        (Present("ready", 5.0, 1), "m has been ready for 5.0 s, with 1 request in work"),
        (Present("stopped", 40.0), "m has been stopped for 40 s"),
        (Present("loading", 40.0), "m has been loading for 40 s"),
        (Present("backoff", 1.0), "m has waited for its next start for 1.0 s"),
        (Present("failed", 60.0), "m has given up, and has not been started for 60 s"),
        (
            Present("draining", 60.0, 2),
            "m is to be stopped once what is in work has ended: 2 requests",
        ),
        (Present(NOT_RUNNING), "m is not loaded: no kvsup runs"),
        (Present("removed", is_configured=False), "m is not configured any more"),
    ],
)
def test_now_is_the_state_in_a_sentence(present: Present, now: str) -> None:
    """Since when, and what is in work."""
    assert ask(SPAWNED, READY, present=present).now == now


@pytest.mark.parametrize("state", State)
def test_every_state_has_words(state: State) -> None:
    """With a history and without one."""
    assert ask(present=Present(state.value, 1.0)).now.startswith("m ")
    assert ask(BEGAN, SPAWNED, READY, SEGFAULT, present=Present(state.value, 1.0)).now


def test_ready_after_a_death_names_it_and_what_became_of_the_requests() -> None:
    """That is why its cache is cold and its pid another."""
    told = ask(SPAWNED, READY, SEGFAULT, SPAWNED, READY, REPLAYED, present=Present("ready", 11.0))

    assert told.because == (
        "the process before it ended 13 s ago: died of a signal (SIGSEGV);"
        " 1 request replayed, none lost"
    )
    assert "report it with the evidence" in told.mend


def test_ready_after_an_eviction_names_whom_for() -> None:
    """And how both could stay."""
    told = ask(SPAWNED, READY, EVICTED, STOPPED, SPAWNED, READY, present=Present("ready", 11.0))

    assert (
        told.because == "it had been evicted to make room for big, 13 s ago, then asked for again"
    )
    assert "max_loaded_models" in told.mend


@pytest.mark.parametrize(
    ("before", "because"),
    [
        (BEGAN, "it was asked for, or is to be preloaded"),
        (events.GaveUp("m", "died"), "it had given up, and was reset or edited"),
        (events.Reloaded(("m",), (), ()), "its configuration changed, 12 s ago"),
        (events.Stopping("m", "idle"), "it had been stopped: idle, 12 s ago, then asked for again"),
    ],
)
def test_ready_is_explained_by_what_came_before_its_start(before: Event, because: str) -> None:
    """The last thing that decided about it."""
    told = ask(before, SPAWNED, READY, present=Present("ready", 10.0))

    assert told.because == because


@pytest.mark.parametrize(
    ("happened", "because"),
    [
        ((EVICTED, STOPPED), "it was evicted to make room for big, 11 s ago"),
        ((events.Stopping("m", "idle"), STOPPED), "it was stopped: idle, 11 s ago"),
        ((SEGFAULT,), "its process ended 10 s ago: died of a signal (SIGSEGV)"),
        ((events.GaveUp("m", "no such file"),), None),
        ((), "kvsup ended without stopping it: it was killed, or the machine went down"),
        ((BEGAN,), "nobody has asked for it since kvsup started, 10 s ago"),
    ],
)
def test_stopped_is_explained_by_how_it_ended(
    happened: tuple[Event, ...], because: str | None
) -> None:
    """By kvsup, by itself, or with kvsup."""
    told = ask(SPAWNED, READY, *happened, present=Present("stopped", 1.0))

    assert told.because == because or (
        because is None and told.because.startswith("it was given up: no such file")
    )


def test_model_of_which_nothing_is_kept_was_never_asked_for() -> None:
    """It says so."""
    told = ask(present=Present("stopped", 1.0))

    assert told.because == "nobody has asked for it: nothing is kept of m"
    assert (told.timeline, told.lately, told.mend, told.evidence) == ([], "", "", None)


def test_given_up_tells_the_failure_the_mend_and_the_command() -> None:
    """The three things that its owner needs."""
    died = events.Died("m", "the model file cannot be used", "NOT_A_MODEL", 1)
    present = Present("failed", 3.0, failure="the model file cannot be used", source="m.toml")

    told = ask(SPAWNED, died, events.GaveUp("m", "x"), present=present)

    assert told.because == "the model file cannot be used"
    assert told.mend == (
        "fetch the model file again, or name another in m.toml; then run kvsup reset m"
    )


@pytest.mark.parametrize("cause", [cause for cause in ExitCause if cause is not ExitCause.ASKED])
def test_every_cause_of_a_death_has_a_mend(cause: ExitCause) -> None:
    """Whoever adds a cause says what its owner can do."""
    died = events.Died("m", "it died", cause.name, -9)

    told = ask(SPAWNED, died, present=Present("backoff", 1.0, source="m.toml"))

    assert told.mend
    assert "{" not in told.mend


def test_mends_are_of_causes_that_there_are() -> None:
    """Not of one that was renamed."""
    assert set(_MENDS) <= set(ExitCause.__members__)


def test_last_day_in_numbers() -> None:
    """Starts, deaths by kind, evictions by whom for, requests; what is older does not count."""
    cycle = (SPAWNED, READY, SEGFAULT, SPAWNED, READY, REPLAYED, EVICTED, STOPPED)
    old = record_of(SPAWNED, at_s=NOW_S - DAY_S - 1.0)
    records = [old, *(record_of(event, at_s=NOW_S) for event in cycle * 2)]

    told = answer("m", records, Present("stopped"), now_s=NOW_S, n_lines=20)

    assert told.lately == (
        "started 4 times, died of a signal (SIGSEGV) twice, evicted twice for big,"
        " 2 requests replayed, none lost"
    )


def test_hangs_that_were_left_alone_are_counted() -> None:
    """With ``dry_run`` nothing else tells of them; those that were ended are deaths."""
    told = ask(
        SPAWNED,
        READY,
        events.Hung("m", "silent", dry_run=True),
        events.Hung("m", "silent", dry_run=True),
        events.Hung("m", "silent"),
        events.Died("m", "hung", "HUNG", -9),
        present=Present("backoff"),
    )

    assert told.lately == (
        "started once, hung and left alone twice, hung, and was ended (SIGKILL) once"
    )


def test_timeline_is_cut_to_its_last_lines_and_counts_the_others() -> None:
    """None at all if none are wanted."""
    happened = (BEGAN, SPAWNED, READY, SEGFAULT, EVICTED, STOPPED)

    two = ask(*happened, present=Present("stopped"), n_lines=2)
    none = ask(*happened, present=Present("stopped"), n_lines=0)

    assert [line.text.split()[0] for line in two.timeline] == ["after", "evicted"]
    assert two.n_earlier == 2
    assert (none.timeline, none.n_earlier) == ([], 4)


def test_records_of_another_model_change_nothing() -> None:
    """They lie beside."""
    other = record_of(events.Died("x", "died"), at_s=NOW_S)
    records = [record_of(SPAWNED, at_s=NOW_S - 1.0), record_of(READY, at_s=NOW_S - 1.0)]

    alone = answer("m", records, Present("ready"), now_s=NOW_S, n_lines=9)

    assert answer("m", [*records, other], Present("ready"), now_s=NOW_S, n_lines=9) == alone


def test_death_that_an_older_kvsup_wrote_is_told_by_its_line() -> None:
    """Without a cause that is known there is no mend, and no error."""
    died = Record(NOW_S - 5.0, "Died", "m", "died of boredom", {"cause": "BORED"})

    told = answer("m", [died], Present("stopped"), now_s=NOW_S, n_lines=9)

    assert told.because == "its process ended 5.0 s ago: died of boredom"
    assert told.mend == ""
