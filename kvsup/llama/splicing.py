"""Mend the events of a process so that they go on where the stream of its predecessor broke off.

Both ways keep the first stream's id, date, model and fingerprint, and drop what a stream has once:
the role, and the prompt's progress (b10434, b11434).
"""

from typing import Any

import msgspec

from kvsup.errors import UpstreamError
from kvsup.llama.counts import Before, Spent, sum_timings, sum_usage
from kvsup.llama.owed import OwedAnswer
from kvsup.llama.transcript import DATA, DONE, NATIVE, Transcript, prelude

Members = dict[str, Any]

_TEXTS = ("content", "reasoning_content", "text", "tool_calls")


class Splice:
    """What both ways share; one object an attempt."""

    def __init__(self, path: str, delivered: Transcript, spent: Spent) -> None:
        """Make a splice.

        Args:
            path: the route.
            delivered: what the client has had so far; it grows while events are delivered.
            spent: by the processes before.
        """
        self.spent = Spent()
        """What this process has spent, as far as it said so."""
        self._is_native = path in NATIVE
        self._delivered = delivered
        self._spent_before = spent
        self._identity = dict(delivered.identity)
        self._n_closings = delivered.n_closings

    def feed(self, block: bytes) -> bytes:
        """Return what to deliver for complete events.

        Raises:
            Diverged: they are not those of the answer that was delivered.
            UpstreamError: they are no events of llama-server.
        """
        events = (self._mended(event) for event in block[:-2].split(b"\n\n"))
        return b"".join(event + b"\n\n" for event in events if event is not None)

    def _mended(self, event: bytes) -> bytes | None:
        if not event.startswith(DATA):
            return event
        payload = event[len(DATA) :]
        if payload == DONE:
            self._end()
            return event
        try:
            members = msgspec.json.decode(payload, type=Members)
            if "error" in members:
                return event
            if not self._takes(members):
                return None
        except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError) as error:
            raise UpstreamError(f"llama-server sent an event that is none: {error!r}") from error
        members.update((name, self._identity[name]) for name in members if name in self._identity)
        return DATA + msgspec.json.encode(members)

    def _takes(self, members: Members) -> bool:
        """Mend an event in place; say whether anything is left of it to deliver."""
        progress = members.get("prompt_progress")
        if progress is not None:
            self.spent = Spent(prompt_ms=progress["time_ms"])
            return self._takes_progress(progress)
        if self._is_native:
            reason = None if members.get("stop") is False else members.get("stop_type", "none")
            is_new = self._takes_answer(members.get("index", 0), members, members, reason)
        elif members["choices"]:
            members["choices"] = [each for each in members["choices"] if self._takes_choice(each)]
            is_new = bool(members["choices"])
        else:
            is_new = self._n_closings == 0
            self._n_closings -= not is_new
        self._sum(members)
        return is_new

    def _takes_choice(self, choice: Members) -> bool:
        index = choice["index"]
        delta = choice.get("delta", choice)
        if self._delivered.answer(index).has_role and delta.pop("role", None):
            delta.pop("content", None)
        return self._takes_answer(index, delta, choice, choice.get("finish_reason"))

    def _sum(self, members: Members) -> None:
        """Add to counts and durations what came before."""
        timings = members.get("timings")
        if timings is not None:
            self.spent = Spent(timings["prompt_ms"], timings["predicted_ms"])
            sum_timings(timings, self._spent_before, self._before(members))

    def _takes_progress(self, progress: Members) -> bool:
        raise NotImplementedError

    def _takes_answer(
        self, index: int, delta: Members, choice: Members, finish_reason: str | None
    ) -> bool:
        """Mend what an event says of one answer; say whether anything of it is new.

        Args:
            index: of the answer.
            delta: what holds the texts.
            choice: what holds the rest; the same object, but in a chat.
            finish_reason: the reason if the event ends the answer, else None.
        """
        raise NotImplementedError

    def _before(self, members: Members) -> Before | None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class Restarted:
    """A stream whose events kvsup does not read begins anew: what came before all is not repeated.

    The response keeps the id that it was given.
    """

    def __init__(self, delivered: Transcript) -> None:
        """Make a splice; ``delivered`` is all preludes."""
        self.spent = Spent()
        self._preludes = dict(delivered.preludes)
        self._ids: tuple[bytes, bytes] | None = None

    def feed(self, block: bytes) -> bytes:
        """Return what to deliver for complete events."""
        events = (self._mended(event) for event in block[:-2].split(b"\n\n"))
        return b"".join(event + b"\n\n" for event in events if event is not None)

    def _mended(self, event: bytes) -> bytes | None:
        if found := prelude(event):
            kind, new_id = found
            if kind in self._preludes:
                self._ids = new_id, self._preludes[kind]
                return None
        return event.replace(*self._ids) if self._ids else event


class Replayed(Splice):
    """The same request runs again: what it repeats is dropped, what is new flows on."""

    def __init__(self, path: str, delivered: Transcript, spent: Spent) -> None:
        super().__init__(path, delivered, spent)
        self._owed = {index: OwedAnswer(answer) for index, answer in delivered.answers.items()}
        self._has_delivered = delivered.has_delivered
        self._processed_tokens = delivered.processed_tokens

    def _takes_progress(self, progress: Members) -> bool:
        """Progress never goes backward."""
        if self._has_delivered or progress["processed"] <= self._processed_tokens:
            return False
        self._processed_tokens = progress["processed"]
        return True

    def _takes_answer(
        self, index: int, delta: Members, choice: Members, finish_reason: str | None
    ) -> bool:
        owed = self._owed.get(index)
        return owed is None or owed.takes(delta, choice, finish_reason)

    def _before(self, members: Members) -> None:
        """Say that the counts of a replay are those of the whole answer."""

    def _end(self) -> None:
        for owed in self._owed.values():
            owed.check_paid()


class Continued(Splice):
    """The delivered text was the end of the prompt: all that comes is new.

    What a stop word could begin with is held back by llama-server, and comes again, so a stop word
    never lies across the cut (server-context.cpp, ``process_token``, b11434).
    """

    def __init__(self, path: str, delivered: Transcript, spent: Spent, *, is_whole: bool) -> None:
        """Make a splice.

        Args:
            path: the route.
            delivered: what the client has had so far.
            spent: by the processes before.
            is_whole: whether the text is complete and only the end of the stream is missing; then
                the one token that llama-server generates at least is dropped.
        """
        super().__init__(path, delivered, spent)
        answer = delivered.answer(0)
        self._is_whole = is_whole
        self._is_finished = answer.finish_reason is not None
        self._text = answer.content.getvalue()
        self._n_silent = answer.n_silent
        self._n_before = answer.n_tokens if is_whole else answer.n_spoken
        self._n_prompt: int | None = None

    def _takes(self, members: Members) -> bool:
        is_new = super()._takes(members)
        self._delivered.has_continued |= is_new
        return is_new

    def _takes_progress(self, progress: Members) -> bool:
        self._n_prompt = progress["total"]
        return False

    def _takes_answer(
        self, index: int, delta: Members, choice: Members, finish_reason: str | None
    ) -> bool:
        del index  # there is one answer
        if self._is_native:
            self._count(choice)
        if self._is_whole:
            if finish_reason is None or self._is_finished:
                return False
            choice.update(
                {"stop_type": "limit"} if self._is_native else {"finish_reason": "length"}
            )
            return True
        if finish_reason is None and not any(delta.get(text) for text in _TEXTS):
            return self._takes_silent(choice)
        self._n_silent = 0
        return True

    def _takes_silent(self, choice: Members) -> bool:
        """Say whether an event without text is new; a chat has such only for the role."""
        is_new = self._n_silent == 0 and "delta" not in choice
        self._n_silent -= self._n_silent > 0
        return is_new

    def _count(self, members: Members) -> None:
        """Mend the counts and the prompt of an event of ``/completion``."""
        before = self._before(members)
        new = 0 if self._is_whole else members["tokens_predicted"]
        members["tokens_predicted"] = before.predicted_tokens + new
        members["tokens_evaluated"] = before.prompt_tokens
        if isinstance(prompt := members.get("prompt"), str):
            members["prompt"] = prompt.removesuffix(self._text)
            members["has_new_line"] |= "\n" in self._text

    def _sum(self, members: Members) -> None:
        usage = members.get("usage")
        if usage is not None:
            sum_usage(usage, self._before(members))
        super()._sum(members)

    def _before(self, members: Members) -> Before:
        """Return the counts before, by the length of the prompt with and without the text."""
        delivered = self._delivered
        if self._n_prompt is None:
            self._n_prompt = _prompt_tokens(members)
        n_original = delivered.prompt_tokens
        if n_original is None:
            n_original = max(0, self._n_prompt - self._n_before)
        n_before = self._n_before if self._is_native else max(0, self._n_prompt - n_original)
        return Before(n_original, n_before, delivered.cached_tokens or 0, is_whole=self._is_whole)

    def _end(self) -> None:
        """Let the stream end: nothing is owed."""


def _prompt_tokens(members: Members) -> int:
    """Return the length of the prompt as an event tells it."""
    if "tokens_evaluated" in members:
        return int(members["tokens_evaluated"])
    if usage := members.get("usage"):
        return int(usage["prompt_tokens"])
    return int(members["timings"]["cache_n"] + members["timings"]["prompt_n"])
