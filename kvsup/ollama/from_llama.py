"""Ollama's answers, written from llama-server's event streams.

Feed the bytes of the upstream's body, send what comes back, and call ``finish`` when the upstream
has ended. Fields and their order are those of Ollama (api/types.go, 2026-08).
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from kvsup.ollama.ndjson import encode, escape, stamp
from kvsup.ollama.pieces import NO_TEXT, Answer, Piece, Whole
from kvsup.ollama.thinking import PartedAnswer, ThoughtSplitter

_NS_PER_MS = 1_000_000
_NOT_DONE = b',"done":false'
_GAP = b'"\0"'

_Render = Callable[[Piece, bytes, bytes], bytes]
"""Writes what follows ``created_at``, given a piece, the done fields and the metrics."""


class _Replies:
    """Writes one answer as a stream of lines, or all at once for ``Folded``."""

    _render: _Render

    def __init__(
        self,
        model: str,
        *,
        top_logprobs: int = 0,
        keeps_text: bool = False,
        splitter: ThoughtSplitter | None = None,
    ) -> None:
        self.beside: Mapping[str, int] = {}
        """What kvsup tells of the request in the last object's ``kvsup``, which Ollama has not."""
        self._head = b'{"model":%s,"created_at":"' % encode(model)
        self._answer = Answer(top_logprobs=top_logprobs)
        if splitter is not None:
            self._answer = PartedAnswer(splitter, top_logprobs=top_logprobs)
        self._text: bytearray | None = bytearray() if keeps_text else None
        self._around_content = self._around(Piece(content=_GAP))
        self._around_thinking = self._around(Piece(thinking=_GAP))

    @property
    def text(self) -> str:
        """Return the content so far, if it ``keeps_text``."""
        return msgspec.json.decode(b'"%s"' % (self._text or b""), type=str)

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """Return the lines for the events that ``data`` completes, empty if there is none.

        Raises:
            EngineError: llama-server reports an error.
            UpstreamError: it sent what is no event.
        """
        texts = self._answer.texts(data)
        if texts is None:
            return self._lines(self.read(data), now_ns)
        is_thinking = self._answer.is_thinking
        if self._text is not None and not is_thinking:
            self._text += b"".join(texts)
        start, end = self._around_thinking if is_thinking else self._around_content
        start = self._head + stamp(now_ns) + start
        return start + escape((end + start).join(texts)) + end

    def finish(
        self, now_ns: int, *, total_ns: int, load_ns: int, context: Sequence[int] = ()
    ) -> bytes:
        """Return the last lines, of which the very last says ``"done":true``.

        ``total_ns`` is the time since the request came, ``load_ns`` the part of it until the model
        was ready, ``context`` the tokens of prompt and answer.

        Raises:
            UpstreamError: the upstream ended before the answer did.
        """
        held_back = self._lines(self._answer.finish(), now_ns)
        last = self._last(Piece(), now_ns, total_ns=total_ns, load_ns=load_ns, context=context)
        return held_back + last + b"\n"

    def read(self, data: bytes) -> list[Piece]:
        """Return the pieces in ``data`` instead of their lines; raises as ``feed``."""
        pieces = self._answer.feed(data)
        if self._text is not None:
            self._text += b"".join([piece.content[1:-1] for piece in pieces])
        return pieces

    def fold(
        self,
        whole: Whole,
        now_ns: int,
        *,
        total_ns: int,
        load_ns: int,
        context: Sequence[int] = (),
    ) -> bytes:
        """Return ``whole`` and what is held back as one object; otherwise as ``finish``."""
        whole.add(self._answer.finish())
        piece = whole.piece()
        return self._last(piece, now_ns, total_ns=total_ns, load_ns=load_ns, context=context)

    def _around(self, piece: Piece) -> tuple[bytes, bytes]:
        """Return what stands in a line after its time before and behind the gap in ``piece``."""
        start, _, end = self._render(piece, _NOT_DONE, b"").partition(_GAP[1:-1])
        return start, end + b"\n"

    def _lines(self, pieces: list[Piece], now_ns: int) -> bytes:
        if not pieces:
            return b""
        head, render = self._head + stamp(now_ns), self._render
        return b"".join([b"%s%s\n" % (head, render(piece, _NOT_DONE, b"")) for piece in pieces])

    def _last(
        self,
        piece: Piece,
        now_ns: int,
        *,
        total_ns: int,
        load_ns: int,
        context: Sequence[int],
    ) -> bytes:
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
        if self.beside:
            metrics += b',"kvsup":' + encode(self.beside)
        reason = b"length" if answer.finish_reason == "length" else b"stop"
        done = b',"done":true,"done_reason":"%s"' % reason
        if context:
            done += b',"context":' + encode(context)
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

    Arguments as for ``ChatReplies``; with ``keeps_text`` the content can be asked for at the end,
    and a ``splitter`` parts thoughts from it, which a completion does not.
    """

    _render = staticmethod(_generate_object)


class Folded:
    """The same answer as one object without newline: what ``"stream": false`` asks for."""

    def __init__(self, replies: ChatReplies | GenerateReplies) -> None:
        self._replies = replies
        self._whole = Whole()

    def feed(self, data: bytes, now_ns: int) -> bytes:  # noqa: ARG002 - as the replies' own feed
        """Keep what ``data`` holds and return nothing; raises as the replies' own ``feed``."""
        self._whole.add(self._replies.read(data))
        return b""

    @property
    def text(self) -> str:
        """Return the content so far, if the replies keep it."""
        return self._replies.text

    def finish(
        self, now_ns: int, *, total_ns: int, load_ns: int, context: Sequence[int] = ()
    ) -> bytes:
        """Return the object; arguments and errors as for the replies' own ``finish``."""
        return self._replies.fold(
            self._whole, now_ns, total_ns=total_ns, load_ns=load_ns, context=context
        )
