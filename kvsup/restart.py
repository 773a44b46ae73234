"""Decide what follows the death of a llama-server: retry at a time, or give up with a reason.

The words are those of supervisord and s6: a start counts only after it stayed up (``min_uptime``),
deaths are tallied in a window, and some causes are final. Pure: ``now_s`` and the jitter come in.
"""

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from kvsup.config import RestartConfig

_MAX_DOUBLINGS = 64  # far past any max_delay, and no overflow


class ExitCause(Enum):
    """Why a llama-server ended, as far as its exit and its log tell."""

    ASKED = "stopped as asked"
    CANNOT_START = "llama-server cannot be started"
    CANNOT_START_AGAIN = "llama-server, which ran before, cannot be started"
    BAD_ARGUMENT = "llama-server does not take an argument"
    NO_SUCH_FILE = "the model file cannot be opened"
    NOT_A_MODEL = "the model file cannot be used"
    PAIR_REFUSED = "llama-server refuses this pair of KV cache types"
    DOES_NOT_FIT = "the memory is not there"
    STALLED = "the load made no progress"
    CRASH_IN_WARMUP = "died of a signal in its warm-up"
    CRASHED = "died of a signal"
    ENDED = "ended by itself"
    KERNEL_OOM = "the kernel killed it for want of memory"
    OUT_OF_MEMORY = "its memory ran out"
    HUNG = "hung, and was ended"
    KILLED = "was ended from outside"
    FROZEN = "was stopped from outside, and was ended"
    BUSY_HOST = "this host could not start a process just now"
    BUG = "a bug in kvsup ended it"

    @property
    def is_permanent(self) -> bool:
        """Say whether the next start would fail in the same way."""
        return self in _PERMANENT

    @property
    def is_from_outside(self) -> bool:
        """Say whether neither the model nor a request had a part in it."""
        return self in _FROM_OUTSIDE

    @property
    def may_be_a_requests(self) -> bool:
        """Say whether a request that ran may have brought it about."""
        return self in _MAY_BE_A_REQUESTS


_PERMANENT = frozenset(
    {
        ExitCause.CANNOT_START,
        ExitCause.BAD_ARGUMENT,
        ExitCause.NO_SUCH_FILE,
        ExitCause.NOT_A_MODEL,
        ExitCause.PAIR_REFUSED,
        ExitCause.DOES_NOT_FIT,
    }
)

_FROM_OUTSIDE = frozenset({ExitCause.KILLED, ExitCause.FROZEN, ExitCause.BUSY_HOST})

_MAY_BE_A_REQUESTS = frozenset(
    {
        ExitCause.CRASHED,
        ExitCause.ENDED,
        ExitCause.KERNEL_OOM,
        ExitCause.OUT_OF_MEMORY,
        ExitCause.HUNG,
        ExitCause.BUG,
    }
)


_WANT_OF_MEMORY = frozenset({ExitCause.KERNEL_OOM, ExitCause.OUT_OF_MEMORY})


@dataclass(frozen=True, slots=True)
class Exit:
    """One end of a process."""

    cause: ExitCause
    returncode: int | None
    """As ``subprocess`` gives it: negative for a signal; None where no process came up."""
    at_s: float
    ready_for_s: float
    """Seconds that it had been ready; 0 if it died in its load."""
    detail: str = ""
    """The line of its log that says most."""

    def describe(self) -> str:
        """Return the exit in words, with the mend where one is known."""
        words = [self.cause.value, describe_returncode(self.returncode)]
        if self.detail:
            words.append(self.detail)
        if self.cause is ExitCause.CRASH_IN_WARMUP:
            words.append(
                "a build by GCC 12 on a processor with AMX does this: rebuild it with AMX off,"
                ' or set env = { LLAMA_ARG_NO_REPACK = "1" }'
            )
        if self.cause in _WANT_OF_MEMORY:
            words.append(
                "smaller num_ctx, KV cache types or prompt_cache take less, and fallback takes them"
                " by itself; or raise the memory limit"
            )
        return "; ".join(word for word in words if word)


class Tally:
    """The deaths of one model: those that still decide what follows, and how many there were."""

    def __init__(self) -> None:
        self.n_deaths = 0
        self.recent: list[Exit] = []
        """Those in the window before the last of them, oldest first."""

    def add(self, end: Exit, *, window_s: float) -> None:
        """Count a death, and let go of those that left the window."""
        self.n_deaths += 1
        self.recent = [death for death in self.recent if end.at_s - death.at_s <= window_s]
        self.recent.append(end)

    def forgive(self, deaths: Sequence[Exit]) -> None:
        """Count those of ``deaths`` no more that are in the window."""
        left = [death for death in self.recent if death not in deaths]
        self.n_deaths -= len(self.recent) - len(left)
        self.recent = left


@dataclass(frozen=True, slots=True)
class Retry:
    """Start again at ``at_s``."""

    at_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start again before the configuration changes or someone resets it."""

    reason: str


def decide(
    config: RestartConfig, deaths: Sequence[Exit], *, now_s: float, jitter: float
) -> Retry | GiveUp:
    """Return what follows the last of ``deaths``.

    One that had been ready for ``min_uptime_s``, or that served when it was ended from outside,
    starts again at once. Else the wait doubles with each such death in the window, from
    ``min_delay_s`` up to ``max_delay_s``. What came from outside never makes a model be given up,
    and before a load that served it does not count.

    Args:
        config: the model's ``[restart]``.
        deaths: the unasked exits that ``Tally`` keeps, oldest first; at least one.
        now_s: monotonic time.
        jitter: from 0 to 1, spreads the wait over its upper half.
    """
    last = deaths[-1]
    if last.cause.is_permanent:
        return GiveUp(last.describe())
    if config.policy == "never":
        return GiveUp(f"{last.describe()}; restart.policy is never")
    recent = [death for death in deaths if now_s - death.at_s <= config.window_s]
    own = [death for death in recent if not death.cause.is_from_outside]
    if len(own) >= config.max_deaths and not last.cause.is_from_outside:
        return GiveUp(f"died {len(own)} times in {config.window_s:g} s, last: {last.describe()}")
    quick, has_served = 0, False
    for death in reversed(recent):
        if death.ready_for_s >= config.min_uptime_s:
            break
        if _is_blameless(death):
            has_served = True
        elif not (has_served and death.cause.is_from_outside):
            quick += 1
    if last.ready_for_s >= config.min_uptime_s or _is_blameless(last):
        return Retry(now_s)
    doublings = min(max(0, quick - 1), _MAX_DOUBLINGS)
    delay_s = min(config.max_delay_s, config.min_delay_s * 2.0**doublings)
    return Retry(now_s + delay_s * (0.5 + 0.5 * jitter))


def _is_blameless(death: Exit) -> bool:
    """Say whether it served well until someone ended it."""
    return death.cause.is_from_outside and death.ready_for_s > 0


def draw_jitter() -> float:
    """Return a jitter for ``decide``."""
    return random.random()  # noqa: S311 - no secret depends on it


def describe_returncode(returncode: int | None) -> str:
    """Return ``exit code 1`` or ``signal SIGKILL``."""
    if returncode is None:
        return ""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
