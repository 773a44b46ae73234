"""The deaths of one instance, and what follows from each."""

from kvsup.plan import Plan
from kvsup.restart import Exit, ExitCause, GiveUp, Retry, Tally, decide, draw_jitter
from kvsup.runtime.descent import Descent
from kvsup.runtime.docket import Docket
from kvsup.runtime.upstream import Upstream

_OF_THE_FILE = frozenset(
    {
        ExitCause.NOT_A_MODEL,
        ExitCause.CRASH_IN_WARMUP,
        ExitCause.CRASHED,
        ExitCause.ENDED,
    }
)
"""Ends of a load that a model file may have brought about."""


class Toll:
    """Deaths that nobody asked for and no request is to blame for, of the last ``window``."""

    def __init__(self, docket: Docket, descent: Descent) -> None:
        self._docket = docket
        self._descent = descent
        self._tally = Tally()

    @property
    def n_deaths(self) -> int:
        """Return how many there were since a reset."""
        return self._tally.n_deaths

    @property
    def last_words(self) -> str:
        """Return what it died of last, as the end of a sentence; empty if it did not."""
        deaths = self._tally.recent
        return f"; last: {deaths[-1].describe()}" if deaths else ""

    def take(self, end: Exit, plan: Plan, upstream: Upstream | None = None) -> Plan:
        """Count the end of a process of ``plan``, unless a request is to blame.

        Returns the plan that is loaded next: the same, or one step lower.
        """
        lower = self._descent.after(end, plan, self._tally.recent)
        self._tally.add(end, window_s=plan.model.restart.window_s)
        if upstream is not None:
            self._tally.forgive(self._docket.died(upstream, end, is_answered=lower is not None))
        return lower or plan

    def verdict(self, end: Exit, plan: Plan, *, is_trial: bool, now_s: float) -> Retry | GiveUp:
        """Return whether ``plan`` is tried again after ``end``, and when."""
        if is_trial:
            return GiveUp(end.describe())
        deaths = self._descent.here(self._tally.recent) or [end]  # all were requests' own
        verdict = decide(plan.model.restart, deaths, now_s=now_s, jitter=draw_jitter())
        if isinstance(verdict, GiveUp) and not end.ready_for_s and end.cause in _OF_THE_FILE:
            suspicion = plan.file.suspicion
            return GiveUp(f"{verdict.reason}; {suspicion}") if suspicion else verdict
        return verdict

    def reset(self) -> None:
        """Forget them all, and what was concluded from them."""
        self._tally = Tally()
        self._descent.reset()
        self._docket.forget()
