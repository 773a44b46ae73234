"""The steps of a study: each in its time, kept at once, told, and its failure noted."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from msgspec import Struct

from kvsup.kvtypes import KVPair
from kvsup.runtime.remembered import Remembered
from kvsup.tuning.measuring import Screened
from kvsup.tuning.stages import (
    MAX_SLOWNESS,
    Event,
    Meter,
    Noted,
    PairDone,
    PairFailed,
    Stage,
    patience_s,
)
from kvsup.tuning.trial import TrialFailed

KIND = "tune"
"""Of the documents that are kept of a study."""

SLOW = f"it takes more than {MAX_SLOWNESS:g} times as long as f16:f16"
"""Why a pair was given up."""

D = TypeVar("D", bound=Struct)
R = TypeVar("R")
T = TypeVar("T", bound=Screened)


class Steps:
    """Measures and keeps, within the time of a study that begins now."""

    def __init__(
        self,
        remembered: Remembered,
        *,
        budget_s: float,
        is_fresh: bool,
        emit: Callable[[Event], None],
    ) -> None:
        self._remembered = remembered
        self._is_fresh = is_fresh
        self._emit = emit
        self._began_s = time.monotonic()
        self.budget_s = budget_s
        self.meter = Meter(emit)
        self.failures: dict[KVPair, str] = {}
        """Why pairs could not be screened or measured in full."""
        self.notes: list[str] = []
        """What went otherwise than was asked for."""
        self.is_cut = False
        """A pair was left out for want of time."""

    @property
    def spent_s(self) -> float:
        """Return the seconds since the study began."""
        return time.monotonic() - self._began_s

    def is_late(self, step_s: float) -> bool:
        """Say whether there is no time for a step that should take so long."""
        return self.spent_s + step_s > self.budget_s

    def note(self, *texts: str) -> None:
        """Tell, now and with the result, what goes otherwise than was asked for."""
        self.notes += texts
        for text in texts:
            self._emit(Noted(text))

    def read(self, key: str, as_type: type[D]) -> D | None:
        """Return what was measured before, unless it is to be measured anew."""
        return None if self._is_fresh else self._remembered.read(KIND, key, as_type)

    def write(self, key: str, document: Struct) -> None:
        """Keep what was measured."""
        self._remembered.write(KIND, key, document)

    async def timed(
        self, stage: Stage, what: str, work: Callable[[], Awaitable[R]], step_s: float
    ) -> R:
        """Return what a step gives that should take ``step_s``.

        Raises:
            TimeoutError: it takes too long.
        """
        began_s = self.spent_s
        self.meter.begin(stage, what, step_s)
        try:
            with anyio.fail_after(patience_s(step_s, left_s=self.budget_s - began_s)):
                return await work()
        finally:
            self.meter.end(self.spent_s - began_s)

    async def done(
        self,
        stage: Stage,
        pair: KVPair,
        key: str,
        work: Callable[[], Awaitable[T]],
        step_s: float,
    ) -> T | None:
        """Measure a pair and keep what was found; None with its failure noted."""
        began_s = self.spent_s
        try:
            done = await self.timed(stage, str(pair), work, step_s)
        except (TrialFailed, TimeoutError) as error:
            reason = str(error)
            is_late = isinstance(error, TimeoutError)
            if is_late and self.spent_s - began_s >= MAX_SLOWNESS * step_s:
                reason, is_late = SLOW, False  # more time would not help
            elif is_late:
                reason = "time was up before it was measured"
            if stage == "cross-check":
                self.notes.append(f"llama-perplexity: {reason}")
            else:
                self.failures[pair] = reason
                self.is_cut |= is_late
            self._emit(PairFailed(stage, str(pair), reason))
            return None
        self.write(key, done)
        self._emit(PairDone(stage, str(pair), done.quality.mean_kld_nats))
        return done
