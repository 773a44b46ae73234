"""Decide whether a llama-server hangs, from probes of it. Pure: each probe brings its own time.

What counts is progress, not ``/health``: that is answered by threads of its own while the loop that
computes stands still (``docs/decisions/0017``). Two clocks run while answers are awaited. One is
stopped by any sign of life, CPU time included, and its limit is ``stall``; the other only by a
token or a line of the loop, and its limit is ``busy_stall``. Time without awaited answers is not
counted, but does not set the clocks back either: clients that leave a hung llama-server and come
again do not hide it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from kvsup.config import WatchdogConfig

BUSY_CORES = 0.05
"""CPU time, in cores, from which on it computes: HTTP threads that wait, and probes, take less."""

LATE_S = 1.0
"""A probe that comes so late tells that kvsup or the machine was held up: all starts anew."""

MAX_REFUSED = 3
"""Refusals one after the other after which nobody listens; one that still computes is let end."""

SLOWEST_S_PER_TOKEN = 1.0
"""A batch may be silent so long for each of its tokens; between two batches there is a sign."""

PATIENCE = 10.0
"""How much longer than it should a batch may take where the speed of the last one is known."""

_STOPPED, _COMPUTES = "T", "RD"
_NOT_JUDGED = "tZX"
"""Under a debugger, or ended already."""


class Answer(Enum):
    """What ``/health`` said."""

    NOT_ASKED = "not asked"
    OK = "ok"
    REFUSED = "refused"
    TIMED_OUT = "timed out"
    ERROR = "error"


_UNWELL = frozenset({Answer.REFUSED, Answer.TIMED_OUT, Answer.ERROR})


class Standing(Enum):
    """How it stands with a llama-server, from well to ill."""

    ALIVE = 0
    SUSPICIOUS = 1
    HUNG = 2
    FROZEN = 3
    """Stopped by a signal from outside."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a timeline comes to."""

    standing: Standing
    reason: str = ""
    is_from_outside: bool = False
    """Someone told it to end, or took its socket away: neither a request nor the model did."""

    @property
    def is_final(self) -> bool:
        """Say whether it is to be ended."""
        return self.standing in {Standing.HUNG, Standing.FROZEN}


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at a process; what is counted only grows."""

    at_s: float
    """Monotonic."""
    n_reads: int = 0
    """Pieces of answers that came of its loop (``llama/heartbeat.py``)."""
    n_lines: int = 0
    """Lines of its log that its loop wrote."""
    cpu_s: float = 0.0
    """User and system time of the process and all below it."""
    read_bytes: int = 0
    """What they have read from disks, page faults included; 0 where that is not known."""
    state: str = "S"
    """As in ``/proc/PID/stat``: R, S, D, T stopped, t traced, Z ended."""
    awaited_s: float = 0.0
    """How long the oldest answer that its loop owes has been awaited; 0 if it owes none."""
    health: Answer = Answer.NOT_ASKED
    late_s: float = 0.0
    """How much later it came than it was due."""
    slept_s: float = 0.0
    """How long the machine has been suspended since its boot."""

    def describe(self) -> str:
        """Return it as one line; times are monotonic seconds."""
        return (
            f"{self.at_s:.1f} s: {self.state}, awaited {self.awaited_s:.1f} s,"
            f" reads {self.n_reads}, lines {self.n_lines}, CPU {self.cpu_s:.2f} s,"
            f" disk {self.read_bytes} B, health {self.health.value}"
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How long it may be silent."""

    stall_s: float
    busy_stall_s: float

    @classmethod
    def of(
        cls,
        config: WatchdogConfig,
        *,
        batch_tokens: int,
        is_offloaded: bool = False,
        prompt_tokens_per_s: float = 0.0,
    ) -> "Limits":
        """Return the limits of a model: a batch is never too long, however slow the machine.

        Args:
            config: the model's ``[watchdog]``.
            batch_tokens: what llama-server reads of a prompt before it gives a sign.
            is_offloaded: a device computes, and takes no CPU time here while it does.
            prompt_tokens_per_s: how fast a prompt was read lately; 0: not known.
        """
        slowest_s = batch_tokens * SLOWEST_S_PER_TOKEN
        batch_s = slowest_s
        if prompt_tokens_per_s:
            batch_s = min(slowest_s, PATIENCE * batch_tokens / prompt_tokens_per_s)
        stall_s = max(config.stall_s, batch_s) if is_offloaded else config.stall_s
        return cls(stall_s, max(config.busy_stall_s, stall_s, slowest_s))


@dataclass(frozen=True, slots=True)
class Silence:
    """What a timeline amounts to; seconds are of time in which answers were awaited."""

    last: Probe
    still_s: float = 0.0
    """Since the last sign of any kind."""
    mute_s: float = 0.0
    """Since the last token or line."""
    stopped_s: float = 0.0
    """In state T, which counts here alone; awaited or not, as in the next."""
    deaf_s: float = 0.0
    """``/health`` failing, with no answer awaited."""
    n_refused: int = 0
    """Refusals since the last sign or good answer."""


def listen(past: Silence | None, probe: Probe) -> Silence:
    """Return what a timeline amounts to with one probe more."""
    last = past.last if past else probe
    is_held_up = probe.late_s > LATE_S or probe.slept_s - last.slept_s > LATE_S
    if past is None or is_held_up or probe.state in _NOT_JUDGED:
        return Silence(probe)
    spent_s = probe.at_s - last.at_s
    tells = probe.n_reads > last.n_reads or probe.n_lines > last.n_lines
    moves = tells or (
        probe.state in _COMPUTES
        or probe.read_bytes > last.read_bytes
        or probe.cpu_s - last.cpu_s >= BUSY_CORES * spent_s > 0
    )
    is_stopped = probe.state == _STOPPED
    awaited_s = 0.0 if is_stopped else min(spent_s, probe.awaited_s)
    stopped_s = spent_s if last.state == _STOPPED else 0.0
    is_well = moves or probe.health is Answer.OK
    is_unwell = last.health in _UNWELL and probe.health in _UNWELL and not probe.awaited_s
    deaf_s = past.deaf_s + (spent_s if is_unwell and not is_stopped else 0.0)
    is_refused = probe.health is Answer.REFUSED
    return Silence(
        last=probe,
        still_s=0.0 if moves else past.still_s + awaited_s,
        mute_s=0.0 if tells else past.mute_s + awaited_s,
        stopped_s=past.stopped_s + stopped_s if is_stopped and not moves else 0.0,
        deaf_s=0.0 if is_well else deaf_s,
        n_refused=0 if is_well or probe.health is Answer.ERROR else past.n_refused + is_refused,
    )


def verdict(limits: Limits, silence: Silence) -> Verdict:  # noqa: PLR0911 - one return a finding
    """Return what a silence means."""
    last = silence.last
    asked = "" if last.health is Answer.NOT_ASKED else f"; /health: {last.health.value}"
    if silence.stopped_s >= limits.stall_s:
        return Verdict(Standing.FROZEN, f"stopped by a signal for {silence.stopped_s:.0f} s")
    if silence.n_refused >= MAX_REFUSED:
        return Verdict(Standing.HUNG, "nobody listens on its socket", is_from_outside=True)
    if silence.still_s >= limits.stall_s:
        return Verdict(
            Standing.HUNG,
            f"no token, no line of its loop and no CPU time in {silence.still_s:.0f} s in which an"
            f" answer was awaited{asked}",
        )
    if silence.mute_s >= limits.busy_stall_s:
        return Verdict(
            Standing.HUNG,
            f"it is busy, but gave no token and no line in {silence.mute_s:.0f} s in which an"
            f" answer was awaited{asked}",
        )
    if silence.deaf_s >= limits.stall_s:
        return Verdict(Standing.HUNG, f"/health has failed for {silence.deaf_s:.0f} s{asked}")
    if last.state == _STOPPED:
        return Verdict(Standing.SUSPICIOUS, "stopped by a signal")
    if silence.still_s:
        return Verdict(Standing.SUSPICIOUS, f"still for {silence.still_s:.0f} s{asked}")
    if last.health in _UNWELL:
        return Verdict(Standing.SUSPICIOUS, f"/health: {last.health.value}")
    return Verdict(Standing.ALIVE)


def judge(limits: Limits, timeline: Iterable[Probe]) -> Verdict:
    """Return the verdict at the last probe of ``timeline``, oldest first; of none it is alive."""
    silence: Silence | None = None
    for probe in timeline:
        silence = listen(silence, probe)
    return Verdict(Standing.ALIVE) if silence is None else verdict(limits, silence)
