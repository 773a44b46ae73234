"""What happened, folded into a timeline for a person."""

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup import events
from kvsup.events import Event
from kvsup.history import Line, Record, about, record_of, timeline

SPAWNED = events.Spawned("m", 7, "b11434", "q8_0:q4_0", 4096, 2)
READY = events.Ready("m", 0.42, None, "q8_0:q4_0")
START = (SPAWNED, READY)
STARTED = "started (pid 7, b11434, KV q8_0:q4_0, 2 x 4096 tokens), ready after 0.42 s"
SEGFAULT = events.Died("m", "died of a signal; signal SIGSEGV", "CRASHED", -11, 30.0)
REPLAYED = events.Replayed("m", "replayed", 0, 0.5, "died of a signal")
RESUMED = events.Replayed("m", "resumed", 12, 0.5, "died of a signal")
IDLE = (events.Stopping("m", "idle"), events.Stopped("m", 0.02, was_killed=False))
EVICTED = (
    events.Stopping("m", "to make room for big", room_for="big"),
    events.Stopped("m", 0.02, was_killed=False),
)


def records(*happened: Event, step_s: float = 1.0) -> list[Record]:
    """Return the records of what happened, one each ``step_s``."""
    return [record_of(event, at_s=n * step_s) for n, event in enumerate(happened)]


def texts(lines: Iterable[Line]) -> list[str]:
    """Return what the lines say."""
    return [line.text for line in lines]


def test_record_of_an_event_survives_json() -> None:
    """Model and fields apart, its line without the model's name."""
    record = record_of(SEGFAULT, at_s=12.5)

    back = msgspec.json.decode(msgspec.json.encode(record), type=Record)

    assert back == record
    assert (back.event, back.model, back.at_s) == ("Died", "m", 12.5)
    assert back.text == "died of a signal; signal SIGSEGV"
    assert back.facts == {
        "reason": "died of a signal; signal SIGSEGV",
        "cause": "CRASHED",
        "returncode": -11,
        "uptime_s": 30.0,
    }


def test_about_a_model_is_what_happened_to_it_and_to_kvsup() -> None:
    """Another model's records are not; of a reload only what it did to this one; by time."""
    happened = [
        *records(events.Reloaded(("m",), ("x",), ()), events.Reloaded((), ("x",), ()), SPAWNED),
        record_of(events.Died("other", "died"), at_s=0.5),
        record_of(events.Began(1, "0.1"), at_s=-1.0),
    ]

    found = about("m", happened)

    assert [(record.event, record.text) for record in found] == [
        ("Began", "kvsup 0.1 started (pid 1)"),
        ("Reloaded", "its configuration changed"),
        ("Spawned", STARTED.partition(",")[0].replace("started", "starting") + ", b11434,"
         " KV q8_0:q4_0, 2 x 4096 tokens)"),
    ]  # fmt: skip


def test_start_and_stop_are_a_line_each() -> None:
    """How long a load took, why it was stopped, and what it took."""
    told = timeline(records(*START, *IDLE))

    assert texts(told) == [STARTED, "stopped: idle, gone after 0.02 s"]
    assert [(line.at_s, line.until_s, line.n_times) for line in told] == [(0, 0, 1), (2, 2, 1)]


def test_eviction_names_whom_for() -> None:
    """That is what an owner wants to know first."""
    (*_, last) = timeline(records(*START, *EVICTED))

    assert last.text == "evicted to make room for big, gone after 0.02 s"


def test_deaths_of_one_kind_are_told_together_with_what_became_of_the_requests() -> None:
    """Restarts, evidence and requests are no lines of their own."""
    once = (SEGFAULT, events.Restarting("m", 0.5), events.Evidence("m", "/e/1"), *START, REPLAYED)
    last = (SEGFAULT, events.Restarting("m", 0.5), *START, RESUMED, events.Evidence("m", "/e/2"))

    (start, deaths) = timeline(records(*START, *once, *once, *last))

    assert start.text == STARTED
    assert deaths.text == (
        "3 times in 12 s: died of a signal (SIGSEGV); started again each time;"
        " 2 requests replayed, 1 resumed, none lost"
    )
    assert (deaths.n_times, deaths.evidence) == (3, "/e/2")
    assert (deaths.at_s, deaths.until_s) == (2.0, 14.0)


def test_a_single_death_says_how_long_it_had_served() -> None:
    """And its whole reason."""
    (_, death) = timeline(records(*START, SEGFAULT, events.Lost("m", "no restart in 60 s")))

    assert death.text == ("after 30 s of service died of a signal; signal SIGSEGV; 1 request lost")


def test_death_for_which_a_model_is_given_up_is_one_line_with_that() -> None:
    """The reason is said once; one that adds to it is a line of its own."""
    died = events.Died("m", "no such file; exit code 1", "NO_SUCH_FILE", 1)
    same = events.GaveUp("m", "no such file; exit code 1")
    more = events.GaveUp("m", "died 5 times in 60 s, last: died of a signal")

    assert texts(timeline(records(died, same))) == ["no such file; exit code 1; given up"]
    assert texts(timeline(records(SEGFAULT, more)))[-1].startswith("given up: died 5 times in 60 s")


def test_poisoned_request_is_told_apart_from_lost_ones() -> None:
    """It was not lost by accident: it is what kills."""
    poisoned = events.Poisoned("m", "9f2c", "two died")

    (_, death) = timeline(records(*START, SEGFAULT, *START, REPLAYED, poisoned))

    assert death.text.endswith(
        "1 request replayed, 1 not tried again (a second process died under it), none lost"
    )


@pytest.mark.parametrize(
    "between",
    [
        events.Died("m", "the kernel killed it", "KERNEL_OOM", -9),
        events.Stopping("m", "idle"),
        events.Reloaded(("m",), (), ()),
    ],
)
def test_deaths_with_something_else_between_are_lines_apart(between: Event) -> None:
    """A death of another kind, a stop, an edit."""
    told = timeline(about("m", records(SEGFAULT, *START, between, *START, SEGFAULT)))

    assert sum("SIGSEGV" in text for text in texts(told)) == 2


def test_deaths_far_apart_are_lines_apart() -> None:
    """Two within a week are no storm."""
    told = timeline(records(SEGFAULT, *START, SEGFAULT, *START, step_s=300.0))

    assert [line.n_times for line in told] == [1, 1]


def test_hangs_that_repeat_are_told_once_with_their_deaths() -> None:
    """The verdict once, before the deaths that follow from each."""
    verdict = events.Hung("m", "no progress for 60 s")
    died = events.Died("m", "hung, and was ended", "HUNG", -9)

    told = timeline(records(verdict, died, *START, verdict, died, *START))

    assert [line.n_times for line in told] == [1, 2]
    assert told[0].text == "hangs: no progress for 60 s; it is ended"
    assert told[1].text.endswith("hung, and was ended (SIGKILL); started again each time")


def test_thrash_of_two_models_is_one_line() -> None:
    """Evicted and started again, over and over: the sentence that explains slow answers."""
    told = timeline(records(*START, *(EVICTED + START) * 5))

    assert texts(told) == [
        "5 times in 18 s: started, then evicted to make room for big",
        STARTED,
    ]


def test_warning_of_each_load_is_told_once() -> None:
    """It was true the first time."""
    warning = events.KVWarning("m", "K is not rotated")

    told = timeline(records(*START, warning, *IDLE, *START, warning))

    assert texts(told).count("K is not rotated") == 1


def test_event_of_a_newer_kvsup_is_told_by_its_line() -> None:
    """Nothing is known of it but that; repeated, it is counted."""
    unknown = Record(5.0, "Teleported", "m", "beamed to another host", {"where": 3})

    assert texts(timeline([unknown])) == ["beamed to another host"]
    assert texts(timeline([unknown] * 3)) == ["3 times in 0.0 s: beamed to another host"]


def test_kvsup_that_was_killed_is_told_by_the_next() -> None:
    """It could not say it itself."""
    began = events.Began(1, "0.1")

    in_order = timeline(records(began, events.Ended(1), began))
    killed = timeline(records(began, *START, began))

    assert "in order" not in " ".join(texts(in_order))
    assert texts(killed)[-1].endswith("the one before did not end in order: killed, or the machine"
                                      " went down")  # fmt: skip


ANY_EVENT = st.sampled_from(
    (SPAWNED, READY, SEGFAULT, REPLAYED, *IDLE, *EVICTED, events.Restarting("m", 1.0),
     events.Evidence("m", "/e"), events.GaveUp("m", "died"), events.Lost("m", "gone"),
     events.Poisoned("m", "f", "r"), events.Began(1, "1"), events.Ended(1),
     events.Reloaded(("m",), (), ()), events.KVWarning("m", "slow"))
)  # fmt: skip


@given(st.lists(ANY_EVENT, max_size=40))
def test_timeline_of_any_history_is_in_order_and_loses_no_death_and_no_request(
    happened: list[Event],
) -> None:
    """Whatever is folded with what, the numbers stay."""
    own = about("m", records(*happened))

    told = timeline(own)

    assert [line.at_s for line in told] == sorted(line.at_s for line in told)
    assert all(line.at_s <= line.until_s for line in told)
    assert all(line.text for line in told)
    n_deaths = sum(isinstance(event, events.Died) for event in happened)
    assert n_deaths == sum(line.n_times for line in told if "SIGSEGV" in line.text)
    assert len(told) <= len(own)


def test_record_of_a_name_that_is_no_utf8_can_be_written() -> None:
    """Linux takes any bytes for a file's name, and a message tells that name."""
    event = events.ReloadRefused("caf\udce9.toml: is no TOML")

    data = msgspec.json.encode(record_of(event, at_s=1.0))

    assert b"caf" in data
