"""Ollama's answers, written from llama-server's event streams.

Feed the bytes of the upstream's body, send what comes back, and call ``finish`` when the upstream
has ended. Fields and their order are those of Ollama (api/types.go, 2026-08).
"""

from collections.abc import Callable

from kvsup.ollama.ndjson import encode, stamp
from kvsup.ollama.pieces import NO_TEXT, Answer, Piece, joined

_NS_PER_MS = 1_000_000
_NOT_DONE = b',"done":false'

_Render = Callable[[Piece, bytes, bytes], bytes]
"""Writes what follows ``created_at``, given a piece, the done fields and the metrics."""


class _Replies:
    """Writes one answer as a stream of lines, or all at once for ``Folded``."""

    _render: _Render

    def __init__(self, model: str, *, top_logprobs: int = 0) -> None:
        self._head = b'{"model":%s,"created_at":"' % encode(model)
        self._answer = Answer(top_logprobs=top_logprobs)

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """Return the lines for the events that ``data`` completes, empty if there is none.

        Raises:
            EngineError: llama-server reports an error.
            UpstreamError: it sent what is no event.
        """
        return self._lines(self._answer.feed(data), now_ns)

    def finish(self, now_ns: int, *, total_ns: int, load_ns: int) -> bytes:
        """Return the last lines, of which the very last says ``"done":true``.

        ``total_ns`` is the time since the request came, ``load_ns`` the part of it until the model
        was ready.

        Raises:
            UpstreamError: the upstream ended before the answer did.
        """
        held_back = self._lines(self._answer.finish(), now_ns)
        return held_back + self._last(Piece(), now_ns, total_ns=total_ns, load_ns=load_ns) + b"\n"

    def read(self, data: bytes) -> list[Piece]:
        """Return the pieces in ``data`` instead of their lines; raises as ``feed``."""
        return self._answer.feed(data)

    def fold(self, pieces: list[Piece], now_ns: int, *, total_ns: int, load_ns: int) -> bytes:
        """Return ``pieces`` and what is held back as one object; otherwise as ``finish``."""
        whole = joined([*pieces, *self._answer.finish()])
        return self._last(whole, now_ns, total_ns=total_ns, load_ns=load_ns)

    def _lines(self, pieces: list[Piece], now_ns: int) -> bytes:
        if not pieces:
            return b""
        head, render = self._head + stamp(now_ns), self._render
        return b"".join([b"%s%s\n" % (head, render(piece, _NOT_DONE, b"")) for piece in pieces])

    def _last(self, piece: Piece, now_ns: int, *, total_ns: int, load_ns: int) -> bytes:
        answer = self._answer
        timings = answer.timings
        numbers = {
            "total_duration": total_ns,
            "load_duration": load_ns,
            "prompt_eval_count": timings.cache_n + timings.prompt_n,
            "prompt_eval_duration": round(timings.prompt_ms * _NS_PER_MS),
            "eval_count": timings.predicted_n,
            "eval_duration": round(timings.predicted_ms * _NS_PER_MS),
        }
        metrics = b"".join(
            [b',"%s":%d' % (name.encode(), number) for name, number in numbers.items() if number]
        )
        reason = b"length" if answer.finish_reason == "length" else b"stop"
        done = b',"done":true,"done_reason":"%s"' % reason
        return self._head + stamp(now_ns) + self._render(piece, done, metrics)


def _chat_object(piece: Piece, done: bytes, metrics: bytes) -> bytes:
    extra, logprobs = _thinking(piece), b""
    if piece.calls:
        extra += b',"tool_calls":[%s]' % b",".join(piece.calls)
    if piece.logprobs:
        logprobs = b',"logprobs":' + encode(piece.logprobs)
    return b'","message":{"role":"assistant","content":%s%s}%s%s%s}' % (
        piece.content,
        extra,
        done,
        logprobs,
        metrics,
    )


def _generate_object(piece: Piece, done: bytes, metrics: bytes) -> bytes:
    end = metrics
    if piece.calls:
        end += b',"tool_calls":[%s]' % b",".join(piece.calls)
    if piece.logprobs:
        end += b',"logprobs":' + encode(piece.logprobs)
    return b'","response":%s%s%s%s}' % (piece.content, _thinking(piece), done, end)


def _thinking(piece: Piece) -> bytes:
    return b"" if piece.thinking == NO_TEXT else b',"thinking":' + piece.thinking


class ChatReplies(_Replies):
    """The lines of ``POST /api/chat`` for one stream of ``/v1/chat/completions``.

    ``model`` is echoed as the client sent it. ``top_logprobs`` is the client's number.
    """

    _render = staticmethod(_chat_object)


class GenerateReplies(_Replies):
    """The lines of ``POST /api/generate`` for one stream of either route, chat or completion.

    Arguments as for ``ChatReplies``.
    """

    _render = staticmethod(_generate_object)


class Folded:
    """The same answer as one object without newline: what ``"stream": false`` asks for."""

    def __init__(self, replies: ChatReplies | GenerateReplies) -> None:
        self._replies = replies
        self._pieces: list[Piece] = []

    def feed(self, data: bytes, now_ns: int) -> bytes:  # noqa: ARG002 - as the replies' own feed
        """Keep what ``data`` holds and return nothing; raises as the replies' own ``feed``."""
        self._pieces += self._replies.read(data)
        return b""

    def finish(self, now_ns: int, *, total_ns: int, load_ns: int) -> bytes:
        """Return the object; arguments and errors as for the replies' own ``finish``."""
        return self._replies.fold(self._pieces, now_ns, total_ns=total_ns, load_ns=load_ns)
