"""What the attempts at one answer have shown: which ways are closed, how fast it is generated."""

from collections.abc import Mapping
from typing import Any

from kvsup.errors import NotResumed, UpstreamError
from kvsup.llama.resume import Continue, Facts, Replay, facts
from kvsup.llama.transcript import Transcript


class _Pace:
    """How fast an attempt generates, from the first token that was new to the last.

    So neither the prompt counts, nor what a replay says again, nor a hang.
    """

    def __init__(self, n_tokens: int, now_s: float) -> None:
        self._n_first = n_tokens
        self._first_s = now_s

    def paused(self, took_s: float) -> None:
        self._first_s += took_s

    def tokens_per_s(self, n_tokens: int, last_s: float) -> float | None:
        n_timed, took_s = n_tokens - self._n_first, last_s - self._first_s
        return n_timed / took_s if n_timed > 0 and took_s > 0 else None


class Attempts:
    """Those at one answer, one after the other; pure, so the clock comes in."""

    def __init__(self) -> None:
        self.came_s = 0.0
        """When a part of the answer came last, for its reader to set: it is so at every token."""
        self.goes_on = False
        """Whether the present attempt has given anything new."""
        self._can_replay = True
        self._can_continue = True
        self._n_fruitless = 0
        self._tokens_per_s: float | None = None
        self._pace: _Pace | None = None

    def go_on(self, n_tokens: int, now_s: float) -> None:
        """Note that the present attempt has given something new, of now ``n_tokens`` in all."""
        self.goes_on, self._pace = True, _Pace(n_tokens, now_s)

    def paused(self, took_s: float) -> None:
        """Note that nothing was read for so long, since the client took its time."""
        self.came_s += took_s
        if self._pace is not None:
            self._pace.paused(took_s)

    def broke_off(self, how: Replay | Continue | None, error: UpstreamError, n_tokens: int) -> None:
        """Note that the present attempt ended before the answer did.

        Args:
            how: what it was; None for a first one.
            error: of what it ended; one that says so closes the way for good.
            n_tokens: how many have been delivered, of all attempts.
        """
        if isinstance(error, NotResumed):
            self._can_continue &= not isinstance(how, Continue)
            self._can_replay &= not isinstance(how, Replay)
        self.goes_on = False
        pace, self._pace = self._pace, None
        if pace is None:
            self._n_fruitless += 1
        else:
            self._n_fruitless = 0
            self._tokens_per_s = pace.tokens_per_s(n_tokens, self.came_s) or self._tokens_per_s

    def facts(self, path: str, body: Mapping[str, Any], transcript: Transcript) -> Facts:
        """Return what is known of an answer that broke off; arguments as of ``resume.facts``."""
        return facts(
            path,
            body,
            transcript,
            can_replay=self._can_replay,
            can_continue=self._can_continue,
            n_fruitless=self._n_fruitless,
            tokens_per_s=self._tokens_per_s,
        )
