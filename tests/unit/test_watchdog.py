"""The watchdog over every timeline of probes to a depth, against a second telling of its rules."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.config import WatchdogConfig
from kvsup.watchdog import (
    LATE_S,
    MAX_REFUSED,
    Answer,
    Limits,
    Probe,
    Silence,
    Standing,
    judge,
    listen,
    verdict,
)

INTERVAL_S = 2.0
STALL_S = 4.0
BUSY_STALL_S = 8.0
LIMITS = Limits(STALL_S, BUSY_STALL_S)
DEPTH = 6


@dataclass(frozen=True)
class Step:
    """What changes from one look to the next; ``owes``: an answer has long been awaited."""

    owes: bool = True
    reads: int = 0
    lines: int = 0
    cpu_s: float = 0.0
    read_bytes: int = 0
    state: str = "S"
    health: Answer = Answer.NOT_ASKED
    late_s: float = 0.0
    slept_s: float = 0.0

    @cached_property
    def tells(self) -> bool:
        """Say whether it shows a token or a line."""
        return bool(self.reads or self.lines)

    @cached_property
    def moves(self) -> bool:
        """Say whether it shows any sign of life."""
        computes = self.cpu_s >= 0.1 or self.read_bytes > 0 or self.state in "RD"
        return self.tells or computes

    @cached_property
    def is_deaf(self) -> bool:
        """Say whether ``/health`` failed while nothing was owed."""
        return not self.owes and self.health not in {Answer.OK, Answer.NOT_ASKED}

    @cached_property
    def starts_anew(self) -> bool:
        """Say whether nothing before it counts."""
        return self.late_s > LATE_S or self.slept_s > LATE_S or self.state == "t"


ALPHABET = {
    "token": Step(reads=1),
    "burns": Step(cpu_s=2.0, state="R"),
    "still": Step(),
    "stopped": Step(state="T"),
    "idle": Step(owes=False, health=Answer.OK),
    "refused": Step(owes=False, health=Answer.REFUSED),
    "timed out": Step(owes=False, health=Answer.TIMED_OUT),
    "late": Step(late_s=INTERVAL_S),
}


def after(last: Probe, step: Step, *, interval_s: float = INTERVAL_S) -> Probe:
    """Return the look that follows ``last``."""
    return Probe(
        at_s=last.at_s + interval_s,
        n_reads=last.n_reads + step.reads,
        n_lines=last.n_lines + step.lines,
        cpu_s=last.cpu_s + step.cpu_s,
        read_bytes=last.read_bytes + step.read_bytes,
        state=step.state,
        awaited_s=math.inf if step.owes else 0.0,
        health=step.health,
        late_s=step.late_s,
        slept_s=last.slept_s + step.slept_s,
    )


FIRST = Step(owes=False)
"""The look before all steps: it sleeps and owes nothing."""


def expected(steps: list[Step]) -> Standing:
    """Return what the rules say of a timeline, told backwards and apart from the code."""
    still_s = mute_s = stopped_s = deaf_s = 0.0
    n_refused = 0
    has_told = has_moved = was_well = was_loose = False
    for n in range(len(steps) - 1, -1, -1):
        step, before = steps[n], steps[n - 1] if n else FIRST
        if step.starts_anew:
            break
        stays_stopped = step.state == before.state == "T"
        has_told = has_told or step.tells
        has_moved = has_moved or step.moves
        was_well = was_well or has_moved or step.health is Answer.OK
        was_loose = was_loose or has_moved or not stays_stopped
        if step.owes and step.state != "T":
            mute_s += 0.0 if has_told else INTERVAL_S
            still_s += 0.0 if has_moved else INTERVAL_S
        if not was_loose:
            stopped_s += INTERVAL_S
        if not was_well:
            n_refused += step.health is Answer.REFUSED
            deaf_s += INTERVAL_S * (step.is_deaf and before.is_deaf and step.state != "T")
    if stopped_s >= STALL_S:
        return Standing.FROZEN
    is_silent = still_s >= STALL_S or mute_s >= BUSY_STALL_S
    is_deaf = n_refused >= MAX_REFUSED or deaf_s >= STALL_S
    return Standing.HUNG if is_silent or is_deaf else Standing.ALIVE


def timelines(depth: int = DEPTH) -> Iterator[tuple[list[Step], list[Silence]]]:
    """Yield every timeline up to a depth, with what it amounted to after each of its steps.

    Both lists are used again for the next timeline.
    """
    first = Probe(at_s=0.0)
    steps: list[Step] = []
    heard = [listen(None, first)]

    def grow() -> Iterator[tuple[list[Step], list[Silence]]]:
        for step in ALPHABET.values():
            steps.append(step)
            heard.append(listen(heard[-1], after(heard[-1].last, step)))
            yield steps, heard
            if len(steps) < depth:
                yield from grow()
            steps.pop()
            heard.pop()

    return grow()


def test_every_timeline_is_judged_as_the_rules_say() -> None:
    """299,592 timelines, all of up to six looks over eight kinds of look."""
    n_timelines = 0
    for steps, heard in timelines():
        found = verdict(LIMITS, heard[-1])
        n_timelines += 1
        said = found.standing if found.is_final else Standing.ALIVE

        assert said is expected(steps), steps

    assert n_timelines == sum(len(ALPHABET) ** n for n in range(1, DEPTH + 1)) == 299_592


def test_no_timeline_ends_what_went_on_within_the_stall() -> None:
    """A token, CPU time or a late look within ``stall`` saves it, save one that only burns."""
    recent = int(STALL_S / INTERVAL_S)
    for steps, heard in timelines(5):
        if not verdict(LIMITS, heard[-1]).is_final:
            continue
        latest = steps[-recent:]

        assert not any(step.tells or step.starts_anew for step in latest), steps
        if any(step.moves for step in latest):
            assert heard[-1].mute_s >= BUSY_STALL_S, steps


def test_every_wedge_is_ended_in_the_stall_and_one_look_more() -> None:
    """Whatever went before: still, stopped, deaf, refused or spinning for long enough is final."""
    ends = {"still": 3, "stopped": 3, "refused": 3, "timed out": 3, "burns": 5}
    for name, n_looks in ends.items():
        step = ALPHABET[name]
        for _, heard in timelines(4):
            silence = heard[-1]
            for _ in range(n_looks):
                silence = listen(silence, after(silence.last, step))

            assert verdict(LIMITS, silence).is_final, (name, heard[-1])


def test_a_verdict_stands_until_there_is_a_sign() -> None:
    """More silence never makes it better; what is stopped stays frozen until it is continued."""
    worse = {
        Standing.HUNG: ("still", "stopped", "refused", "timed out"),
        Standing.FROZEN: ("stopped",),
    }
    for _, heard in timelines(5):
        silence = heard[-1]
        for name in worse.get(verdict(LIMITS, silence).standing, ()):
            then = listen(silence, after(silence.last, ALPHABET[name]))

            assert verdict(LIMITS, then).is_final, (name, silence)


def test_time_outs_are_never_worse_than_refusals() -> None:
    """With each refusal a time-out instead, no timeline is ended that was not, and some live."""
    n_saved = 0
    refused, timed_out = ALPHABET["refused"], ALPHABET["timed out"]
    for steps, heard in timelines(5):
        if refused not in steps:
            continue
        milder = [timed_out if step is refused else step for step in steps]
        probes = [Probe(at_s=0.0)]
        for step in milder:
            probes.append(after(probes[-1], step))
        was, is_now = verdict(LIMITS, heard[-1]), judge(LIMITS, probes)

        assert was.is_final or not is_now.is_final
        n_saved += was.is_final and not is_now.is_final

    assert n_saved > 0


def _played(*steps: Step, limits: Limits = LIMITS, interval_s: float = INTERVAL_S) -> Standing:
    probes = [Probe(at_s=0.0)]
    for step in steps:
        probes.append(after(probes[-1], step, interval_s=interval_s))
    return judge(limits, probes).standing


def test_clients_that_leave_and_come_again_do_not_hide_a_wedge() -> None:
    """Time without awaited answers is not counted, and sets nothing back."""
    idle, still = ALPHABET["idle"], ALPHABET["still"]

    assert _played(still, idle, idle, idle, still) is Standing.HUNG
    assert _played(still, idle, ALPHABET["token"], still) is Standing.SUSPICIOUS


def test_only_time_in_which_an_answer_was_awaited_counts() -> None:
    """A request that came just before the look has not waited since the one before."""
    probes = [Probe(at_s=n * INTERVAL_S, awaited_s=0.1) for n in range(20)]

    assert judge(LIMITS, probes).standing is Standing.SUSPICIOUS
    assert listen(listen(None, probes[0]), probes[1]).still_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    "sign",
    [
        Step(lines=1),
        Step(reads=1),
        Step(read_bytes=4096),
        Step(state="D"),
        Step(state="R"),
        Step(cpu_s=0.11),
        Step(state="t"),
        Step(late_s=1.5),
        Step(slept_s=3600.0),
    ],
)
def test_each_sign_of_life_keeps_it_alive(sign: Step) -> None:
    """With one each third look it lives on; a debugger, a late look and a suspend count as one."""
    looks = [ALPHABET["still"], sign] * 3

    assert _played(*looks, limits=Limits(STALL_S, 60.0)) is Standing.ALIVE


def test_cpu_time_of_threads_that_wait_is_no_sign() -> None:
    """Less than a twentieth of a core is what probes and waiting threads take."""
    creeping = Step(cpu_s=0.09)

    assert _played(creeping, creeping, creeping) is Standing.HUNG


@pytest.mark.parametrize("sign", [Step(cpu_s=2.0), Step(state="D"), Step(read_bytes=1 << 20)])
def test_signs_of_computing_end_with_busy_stall(sign: Step) -> None:
    """A spin, an endless wait for a device and endless reading are seen at last."""
    assert _played(sign, sign, sign) is Standing.ALIVE
    assert _played(sign, sign, sign, sign) is Standing.HUNG


def test_a_process_that_someone_stops_and_continues_is_not_frozen() -> None:
    """As tools do that limit CPU time: between two looks it has moved on."""
    throttled = Step(state="T", cpu_s=0.5)

    assert _played(*[throttled] * 3) is Standing.SUSPICIOUS


def test_one_that_is_stopped_while_it_idles_is_frozen_not_hung() -> None:
    """``/health`` fails, too, but who stopped it is to blame."""
    unwell = Step(owes=False, state="T", health=Answer.TIMED_OUT)
    just_before = replace(unwell, state="R")

    assert _played(just_before, unwell, unwell) is Standing.SUSPICIOUS
    assert _played(just_before, unwell, unwell, unwell) is Standing.FROZEN


def test_answers_with_an_error_are_no_refusals() -> None:
    """503 for a while after a wake-up is waited for; it is ill only after ``stall``."""
    error = Step(owes=False, health=Answer.ERROR)

    refused = ALPHABET["refused"]

    assert _played(refused, refused, refused, limits=Limits(60.0, 60.0)) is Standing.HUNG
    mixed = [refused, error, refused, refused]
    assert _played(*mixed, limits=Limits(60.0, 60.0)) is Standing.SUSPICIOUS
    assert _played(error, error, error) is Standing.HUNG


def test_a_batch_is_never_too_long() -> None:
    """The second limit grows with the batch, the longest silence of one that works."""
    config = WatchdogConfig(stall_s=4.0, busy_stall_s=8.0)

    assert Limits.of(config, batch_tokens=1) == Limits(4.0, 8.0)
    assert Limits.of(config, batch_tokens=2048) == Limits(4.0, 2048.0)
    assert Limits.of(WatchdogConfig(busy_stall_s=1.0), batch_tokens=1).busy_stall_s == 90.0


@pytest.mark.parametrize(
    ("tokens_per_s", "stall_s"), [(0.0, 512.0), (4.0, 512.0), (20.0, 256.0), (1000.0, 90.0)]
)
def test_a_device_may_take_its_time_for_a_batch(tokens_per_s: float, stall_s: float) -> None:
    """It computes without CPU time here; what is known of its speed makes the limit shorter."""
    limits = Limits.of(
        WatchdogConfig(), batch_tokens=512, is_offloaded=True, prompt_tokens_per_s=tokens_per_s
    )

    assert limits == Limits(stall_s, 600.0)


def test_of_no_probes_it_is_alive() -> None:
    """Nothing was seen, so nothing is wrong."""
    assert judge(LIMITS, []).standing is Standing.ALIVE


def test_reason_of_each_verdict_says_what_was_seen() -> None:
    """An operator reads it in the log."""
    first = listen(None, Probe(at_s=0.0))
    told = {
        verdict(LIMITS, silence).reason
        for silence in (
            replace(first, stopped_s=5.0),
            replace(first, still_s=5.0, last=Probe(at_s=5.0, health=Answer.OK)),
            replace(first, mute_s=9.0),
            replace(first, n_refused=3),
            replace(first, deaf_s=5.0, last=Probe(at_s=5.0, health=Answer.TIMED_OUT)),
        )
    }

    assert told == {
        "stopped by a signal for 5 s",
        (
            "no token, no line of its loop and no CPU time in 5 s in which an answer was awaited;"
            " /health: ok"
        ),
        "it is busy, but gave no token and no line in 9 s in which an answer was awaited",
        "nobody listens on its socket",
        "/health has failed for 5 s; /health: timed out",
    }


@given(
    st.lists(st.sampled_from([*ALPHABET.values(), Step(state="D"), Step(lines=1)]), max_size=80),
    st.floats(0.5, 30.0),
)
def test_with_real_limits_no_long_timeline_with_signs_is_ended(
    steps: list[Step], interval_s: float
) -> None:
    """Whatever lies between two tokens that are less than ``stall`` apart, it lives."""
    limits = Limits.of(WatchdogConfig(), batch_tokens=64)
    n_between = int(limits.stall_s / interval_s) - 1
    with_tokens: list[Step] = []
    for place, step in enumerate(steps):
        if place % max(1, min(n_between, MAX_REFUSED - 1)) == 0:
            with_tokens.append(Step(reads=1))
        with_tokens.append(step)

    found = _played(*with_tokens, limits=limits, interval_s=interval_s)

    assert found in {Standing.ALIVE, Standing.SUSPICIOUS}
