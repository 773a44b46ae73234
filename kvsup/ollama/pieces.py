"""The pieces of an answer, read from llama-server's event stream (b10434, b11434).

Texts are not decoded: a piece holds the JSON string of its event, with Go's escapes put in.
"""

from collections.abc import Sequence

import msgspec

from kvsup.errors import EngineError, UpstreamError
from kvsup.llama.sse import SSEDecoder
from kvsup.llama.wire import (
    NOTHING,
    Chunk,
    Frame,
    Logprob,
    Timings,
    ToolCallPiece,
    error_message,
)
from kvsup.ollama.ndjson import encode, escape

BROKEN_OFF = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an "
    "internal error, check ollama server logs for details"
)
"""Ollama's text (llm/llama_server.go, 2026-08) for an upstream that ends without a last event."""

NO_TEXT = b'""'
_ABSENT = (b"null", NO_TEXT)
_DONE = b"[DONE]"


_decode = msgspec.json.Decoder(Chunk).decode


class Piece(msgspec.Struct, frozen=True):
    """A part of an answer; texts are JSON strings with their quotes, calls JSON objects."""

    content: bytes = NO_TEXT
    thinking: bytes = NO_TEXT
    calls: tuple[bytes, ...] = ()
    logprobs: tuple[Logprob, ...] = ()


class Whole:
    """Puts the pieces of an answer together as they come, with no object a token."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._thinking = bytearray()
        self._calls: list[bytes] = []
        self._logprobs: list[Logprob] = []

    def add(self, pieces: Sequence[Piece]) -> None:
        """Append ``pieces``."""
        for piece in pieces:
            self._content += piece.content[1:-1]
            self._thinking += piece.thinking[1:-1]
            self._calls += piece.calls
            self._logprobs += piece.logprobs

    def piece(self) -> Piece:
        """Return all that came as one piece."""
        return Piece(
            b'"%s"' % self._content,
            b'"%s"' % self._thinking,
            tuple(self._calls),
            tuple(self._logprobs),
        )


class Answer:
    """Reads the events of one answer, gives its pieces, and remembers how it ended."""

    def __init__(self, *, top_logprobs: int) -> None:
        self.finish_reason: str | None = None
        """llama-server's word once the last event was read, else None."""
        self.timings = Timings()
        self.is_thinking = False
        """Whether the texts of ``texts`` are thinking instead of content."""
        self._sse = SSEDecoder()
        self._frame: Frame | None = None
        self._calls = _ToolCalls()
        self._top_logprobs = top_logprobs
        self._error: str | None = None

    def texts(self, data: bytes) -> list[bytes] | None:
        """Return the JSON texts, without quotes, of events that ``feed`` has seen the like of.

        None if there is anything else in ``data``; then nothing is read, and it is for ``feed``.
        """
        if self._frame is None or self._sse.is_inside_event:
            return None
        return self._frame.texts(data)

    def feed(self, data: bytes) -> list[Piece]:
        """Return the pieces of the events that ``data`` completes.

        Raises:
            EngineError: llama-server reports an error; pieces before it are returned first, and
                the next call raises.
            UpstreamError: it sent what is no event.
        """
        pieces: list[Piece] = []
        for payload in self._sse.feed(data):
            if payload == _DONE or self._error is not None:
                continue
            try:
                event = _decode(payload)
            except msgspec.MsgspecError as error:
                raise UpstreamError(f"llama-server sent an unreadable event: {error}") from error
            if event.error is not NOTHING and bytes(event.error) != b"null":
                self._error = error_message(payload)
                self._frame = None
            elif event.choices:
                self._read_chat(event, payload, pieces)
            else:
                self._read_completion(event, pieces)
        if not pieces:
            self._raise_error()
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back, after the upstream has ended.

        Raises:
            UpstreamError: the answer is not complete.
        """
        self._raise_error()
        if self.finish_reason is None:
            raise UpstreamError(BROKEN_OFF)
        call = self._calls.finish(self.finish_reason)
        return [Piece(calls=(call,))] if call else []

    def _raise_error(self) -> None:
        if self._error is not None:
            raise EngineError(self._error)

    def _read_chat(self, event: Chunk, payload: bytes, pieces: list[Piece]) -> None:
        choice = event.choices[0]
        delta = choice.delta
        content, thinking = bytes(delta.content), bytes(delta.reasoning_content)
        has_content, has_thinking = content not in _ABSENT, thinking not in _ABSENT
        calls = self._calls.feed(delta.tool_calls) if delta.tool_calls else ()
        if has_content or has_thinking or calls:
            pieces.append(
                Piece(
                    escape(content) if has_content else NO_TEXT,
                    escape(thinking) if has_thinking else NO_TEXT,
                    calls,
                    self._logprobs(choice.logprobs.content) if choice.logprobs else (),
                )
            )
        if choice.finish_reason is not None:
            self._end(choice.finish_reason, event.timings)
        elif has_content != has_thinking and not (delta.tool_calls or choice.logprobs):
            self.is_thinking = has_thinking
            key, text = (b"reasoning_content", thinking) if has_thinking else (b"content", content)
            self._frame = Frame.around(payload, key, text)

    def _read_completion(self, event: Chunk, pieces: list[Piece]) -> None:
        content = bytes(event.content)
        if content not in _ABSENT:
            logprobs = self._logprobs(event.completion_probabilities)
            pieces.append(Piece(escape(content), logprobs=logprobs))
        if event.stop:
            self._end("length" if event.stop_type == "limit" else "stop", event.timings)

    def _end(self, finish_reason: str, timings: Timings | None) -> None:
        self.finish_reason = finish_reason
        self.timings = timings or Timings()

    def _logprobs(self, logprobs: list[Logprob]) -> tuple[Logprob, ...]:
        """Leave out alternatives that were not asked for: llama-server wants at least one."""
        if self._top_logprobs > 0:
            return tuple(logprobs)
        return tuple(msgspec.structs.replace(logprob, top_logprobs=[]) for logprob in logprobs)


class _ToolCalls:
    """Puts tool calls together from their fragments, which come call by call."""

    def __init__(self) -> None:
        self._fragments: list[ToolCallPiece] = []

    def feed(self, fragments: list[ToolCallPiece]) -> tuple[bytes, ...]:
        """Return the calls that are complete, since a fragment of the next one came."""
        complete = []
        for fragment in fragments:
            if self._fragments and fragment.index != self._fragments[0].index:
                complete.append(self._take())
            self._fragments.append(fragment)
        return tuple(complete)

    def finish(self, finish_reason: str) -> bytes | None:
        """Return the last call; None if there is none, or the length limit cut it."""
        if not self._fragments:
            return None
        try:
            return self._take()
        except UpstreamError:
            if finish_reason == "length":
                return None
            raise

    def _take(self) -> bytes:
        """Return the call as Ollama writes it: arguments as an object, no ``type``.

        The outer ``index`` is not Ollama's: litellm 1.105 numbers the calls of a stream by their
        place in a line, and so makes one of two, unless it finds it.
        """
        fragments, self._fragments = self._fragments, []
        name = "".join(fragment.function.name for fragment in fragments)
        text = "".join(fragment.function.arguments for fragment in fragments)
        try:
            arguments = msgspec.json.decode(text or "{}", type=dict[str, msgspec.Raw])
        except msgspec.MsgspecError as error:
            raise UpstreamError(f"the model's call of {name} has no object as arguments") from error
        call_id = next((fragment.id for fragment in fragments if fragment.id), None)
        index = fragments[0].index
        function = {"index": index, "name": name, "arguments": arguments}
        call = encode(
            {**({"id": call_id} if call_id else {}), "index": index, "function": function}
        )
        return msgspec.json.format(call, indent=-1)
