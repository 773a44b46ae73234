"""What a replay has to say again before anything of it is new (b10434, b11434).

Compared are the texts, ids of tokens, names and arguments of tool calls, not the events: where a
text is cut into events may differ between two runs.
"""

from typing import Any, Generic, TypeVar

from kvsup.errors import Diverged
from kvsup.llama.transcript import Answer, ToolCall

Members = dict[str, Any]
S = TypeVar("S", str, list[int])

_QUOTED_CHARS = 40


class _Owed(Generic[S]):
    """A text or list of tokens that has to come again."""

    def __init__(self, what: str, delivered: S) -> None:
        self._what = what
        self._delivered: S = delivered
        self._n_paid = 0

    @property
    def is_paid(self) -> bool:
        return self._n_paid == len(self._delivered)

    def new(self, said: S) -> S:
        """Return what of ``said`` goes beyond what was delivered.

        Raises:
            Diverged: it is something else.
        """
        end = min(self._n_paid + len(said), len(self._delivered))
        n = end - self._n_paid
        expected = self._delivered[self._n_paid : end]
        if expected != said[:n]:
            raise Diverged(
                f"the replay's {self._what} differ at {self._n_paid}: "
                f"{said[:_QUOTED_CHARS]!r} in place of {expected[:_QUOTED_CHARS]!r}"
            )
        self._n_paid = end
        return said[n:]


class _OwedCall:
    """A tool call that has to come again, under another id."""

    def __init__(self, call: ToolCall) -> None:
        self._id = call.id
        self._name = call.name
        self.arguments = _Owed("arguments of a tool call", call.arguments.getvalue())

    def takes(self, piece: Members) -> bool:
        """Leave in ``piece`` what is new; say whether anything is."""
        function = piece["function"]
        name = function.get("name", "")
        if not (self._name.startswith(name) or name.startswith(self._name)):
            raise Diverged(f"the replay calls {name!r} in place of {self._name!r}")
        if "id" in piece and self._id is not None:
            piece["id"] = self._id
        is_known = len(name) <= len(self._name)
        function["arguments"] = self.arguments.new(function.get("arguments", ""))
        if is_known:
            for member in ("id", "type"):
                piece.pop(member, None)
            function.pop("name", None)
        return not is_known or bool(function["arguments"])


class OwedAnswer:
    """One choice that has to come again."""

    def __init__(self, answer: Answer) -> None:
        content = _Owed("text", answer.content.getvalue())
        self._texts = {
            "content": content,
            "text": content,
            "reasoning_content": _Owed("thinking", answer.reasoning.getvalue()),
        }
        self._tokens = _Owed("tokens", [*answer.tokens])
        self._calls = {index: _OwedCall(call) for index, call in answer.calls.items()}
        self._n_silent = answer.n_silent
        self._n_logprobs = answer.n_logprobs
        self._finish_reason = answer.finish_reason

    def takes(self, delta: Members, choice: Members, finish_reason: str | None) -> bool:
        """Leave in an event what is new of this choice; say whether anything is.

        Args:
            delta: what holds the texts.
            choice: what holds the probabilities; the same object, but in a chat.
            finish_reason: the reason if the event ends the choice, else None.

        Raises:
            Diverged: it says something else than was delivered, or something new too early.
        """
        is_new = "role" in delta
        if delta.get("text") == "" and finish_reason is None:
            is_new |= self._takes_silent()
        for name, owed in self._texts.items():
            if text := delta.get(name):
                delta[name] = owed.new(text)
                is_new |= bool(delta[name])
        if tokens := delta.get("tokens"):
            delta["tokens"] = self._tokens.new(tokens)
            is_new |= bool(delta["tokens"])
        if calls := delta.get("tool_calls"):
            delta["tool_calls"] = [piece for piece in calls if self._takes_call(piece)]
            is_new |= bool(delta["tool_calls"])
        is_new |= self._takes_logprobs(choice)
        if finish_reason is not None:
            is_new |= self._ends(finish_reason)
        if is_new and not self._is_paid:
            raise Diverged("the replay goes on before it has said all that was delivered")
        return is_new

    def check_paid(self) -> None:
        """Check at the end of the stream that nothing is missing.

        Raises:
            Diverged: something is.
        """
        if self._finish_reason is not None or not self._is_paid:
            raise Diverged("the replay ends before it has said all that was delivered")

    @property
    def _is_paid(self) -> bool:
        texts = (*self._texts.values(), *(call.arguments for call in self._calls.values()))
        return (
            self._n_logprobs == 0 and self._tokens.is_paid and all(text.is_paid for text in texts)
        )

    def _takes_call(self, piece: Members) -> bool:
        call = self._calls.get(piece["index"])
        return call is None or call.takes(piece)

    def _takes_silent(self) -> bool:
        """Say whether an event of ``/v1/completions`` without text is new."""
        if not self._texts["text"].is_paid:
            return False
        is_new = self._n_silent == 0
        self._n_silent -= not is_new
        return is_new

    def _takes_logprobs(self, choice: Members) -> bool:
        of_v1 = choice.get("logprobs") or {}
        probs = of_v1.get("content") or choice.get("completion_probabilities") or ()
        n_known = min(len(probs), self._n_logprobs)
        self._n_logprobs -= n_known
        if n_known:
            choice.pop("completion_probabilities", None)
            choice.pop("logprobs", None)
        return n_known < len(probs)

    def _ends(self, reason: str) -> bool:
        """Say whether the end is new."""
        if self._finish_reason is None:
            return True
        if reason != self._finish_reason or not self._is_paid:
            raise Diverged(f"the replay ends by {reason!r} in place of {self._finish_reason!r}")
        self._finish_reason = None
        return False
