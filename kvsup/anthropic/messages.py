"""The answer of ``/v1/messages``, written from the stream of the chat that was asked instead.

Events and their order are Anthropic's: blocks come one after the other, each closed before the
next is opened, thoughts end with a signature (empty, as llama-server's own), and the prompt is
counted at the start and at the end. llama-server's own stream has no start where the first token
is a piece of a character, leaves blocks open until the end, and opens that of a call for each
longer name (b10434, b11434: server-task.cpp, ``to_json_anthropic*``; ran).

Texts are not decoded: an event gets the JSON string of the chat's.
"""

from collections.abc import Collection, Hashable
from typing import Any

import msgspec

from kvsup.errors import EngineError, UpstreamError
from kvsup.llama.sse import EventSplitter
from kvsup.llama.wire import Choice, Frame, ToolCallPiece, error_message

Json = dict[str, Any]

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
"""What is neither the end of a turn nor a stop sequence."""

_KEYS = {"thinking": b"reasoning_content", "text": b"content"}
"""Where a chat has the text of a block of each kind."""

_DELTAS = {
    "thinking": b'"thinking_delta","thinking":"',
    "text": b'"text_delta","text":"',
    "tool_use": b'"input_json_delta","partial_json":"',
}
_BEFORE = b"""event: content_block_delta
data: {"type":"content_block_delta","index":%d,"delta":{"type":%b"""
_AFTER = b'"}}\n\n'

_NO_TEXT = (b"null", b'""')
_DONE = b"[DONE]"


class _Progress(msgspec.Struct, frozen=True):
    total: int
    cache: int


class _Cached(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Cached = _Cached()


class _Verbose(msgspec.Struct, frozen=True):
    stopping_word: str = ""


class _Error(msgspec.Struct, frozen=True):
    code: int = 500


class _Chunk(msgspec.Struct, frozen=True):
    """One event of a chat's stream."""

    id: str = ""
    choices: list[Choice] = []
    prompt_progress: _Progress | None = None
    usage: _Usage | None = None
    verbose: _Verbose = msgspec.field(name="__verbose", default=_Verbose())
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class _Answer:
    """Reads the stream of a chat and tells of the blocks that it is made of."""

    def __init__(self, model: str, stop_sequences: Collection[str]) -> None:
        """Make what reads one answer.

        Args:
            model: as the request names it.
            stop_sequences: the request's; other words that end an answer are not the client's.
        """
        self._model = model
        self._stop_sequences = stop_sequences
        self._events = EventSplitter()
        self._frame: Frame | None = None
        """Around the texts of the open block."""
        self._id = ""
        self._prompt = _Progress(0, 0)
        self._open: Hashable = None
        """The kind of the block that is open, or its number if it is a call."""
        self._call: Json | None = None
        """The block of a call that is not opened yet, since its name may grow."""
        self._finish_reason: str | None = None
        self._stop_word = ""
        self._error: EngineError | None = None
        self._is_complete = False

    def _feed(self, data: bytes) -> None:
        texts = None if self._frame is None or self._events.rest else self._frame.texts(data)
        if texts is not None:
            self._added(texts)
            return
        for event in self._events.feed(data):
            if event.startswith(b":"):
                self._commented(event)
            elif event.startswith(b"data: ") and self._error is None:
                self._read(event[6:])

    def _check(self, *, is_last: bool = False) -> None:
        """Raise what ended the stream too early."""
        if self._error is not None:
            raise self._error
        if is_last and not self._is_complete:
            raise UpstreamError("llama-server broke off in the middle of its answer")

    def _read(self, payload: bytes) -> None:
        if payload == _DONE:
            return
        try:
            chunk = _decode(payload)
        except msgspec.MsgspecError as error:
            raise UpstreamError(f"llama-server sent an unreadable event: {error}") from error
        if chunk.error is not None:
            text = error_message(payload)
            self._error = EngineError(text, status=chunk.error.code, body=payload)
            return
        self._id = self._id or "msg_" + chunk.id.removeprefix("chatcmpl-")
        self._prompt = chunk.prompt_progress or self._prompt
        self._stop_word = chunk.verbose.stopping_word or self._stop_word
        for choice in chunk.choices:
            self._read_choice(choice, payload)
        if chunk.usage is not None:
            self._end(chunk.usage)

    def _read_choice(self, choice: Choice, payload: bytes) -> None:
        delta = choice.delta
        thinking, text = bytes(delta.reasoning_content), bytes(delta.content)
        if thinking not in _NO_TEXT:
            self._say("thinking", thinking, payload)
        if text not in _NO_TEXT:
            self._say("text", text, payload)
        for piece in delta.tool_calls or ():
            self._use(piece)
        self._finish_reason = choice.finish_reason or self._finish_reason

    def _say(self, kind: str, text: bytes, payload: bytes) -> None:
        if self._open != kind:
            self._close()
            self._open = kind
            signature = {"signature": ""} if kind == "thinking" else {}
            self._opened({"type": kind, kind: "", **signature})
        self._added([text[1:-1]])
        self._frame = Frame.around(payload, _KEYS[kind], text)

    def _use(self, piece: ToolCallPiece) -> None:
        """Take a piece of a call: a later name is the whole name, grown longer."""
        if self._open != piece.index:
            self._close()
            self._open = piece.index
            self._call = {"type": "tool_use", "id": piece.id, "name": "", "input": {}}
        if self._call is not None:
            self._call["id"] = piece.id or self._call["id"]
            self._call["name"] = piece.function.name or self._call["name"]
        if arguments := piece.function.arguments:
            self._open_call()
            self._added([msgspec.json.encode(arguments)[1:-1]])

    def _open_call(self) -> None:
        if self._call is not None:
            self._opened(self._call)
            self._call = None

    def _close(self) -> None:
        if self._open is not None:
            self._open_call()
            self._closed()
            self._open = self._frame = None

    def _end(self, usage: _Usage) -> None:
        self._close()
        self._is_complete = True
        reason = _STOP_REASONS.get(self._finish_reason or "", "end_turn")
        word = self._stop_word if self._stop_word in self._stop_sequences else None
        if word is not None and reason == "end_turn":
            reason = "stop_sequence"
        counts = _counts(
            usage.prompt_tokens,
            n_cached=usage.prompt_tokens_details.cached_tokens,
            n_output=usage.completion_tokens,
        )
        self._ended({"stop_reason": reason, "stop_sequence": word}, counts)

    def _message(self, content: list[Json], ending: Json, usage: Json) -> Json:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return {**head, "content": content, **ending, "usage": usage}

    def _commented(self, comment: bytes) -> None:
        """Take one of the comments with which llama-server keeps a connection open."""

    def _opened(self, block: Json) -> None:
        """Begin ``block``; calls with no name that could still grow."""
        raise NotImplementedError

    def _added(self, texts: list[bytes]) -> None:
        """Add ``texts``, JSON strings without quotes, to the open block."""
        raise NotImplementedError

    def _closed(self) -> None:
        """End the open block."""
        raise NotImplementedError

    def _ended(self, ending: Json, usage: Json) -> None:
        """End the message."""
        raise NotImplementedError


class MessageStream(_Answer):
    """The events of a message, from those of a chat."""

    def __init__(self, model: str, stop_sequences: Collection[str]) -> None:
        super().__init__(model, stop_sequences)
        self._out: list[bytes] = []
        self._is_started = False
        self._index = 0
        self._before = b""

    def feed(self, data: bytes) -> bytes:
        """Return the events for those that ``data`` completes.

        Raises:
            EngineError: llama-server reports an error; events before it are returned first, and
                the next call raises.
            UpstreamError: it sent what is no event.
        """
        self._feed(data)
        if not self._out:
            self._check()
        out, self._out = self._out, []
        return b"".join(out)

    def finish(self) -> bytes:
        """Return nothing: a whole stream ends with its last event.

        Raises:
            EngineError: llama-server reported an error.
            UpstreamError: the stream broke off before its last event.
        """
        self._check(is_last=True)
        return b""

    def _commented(self, comment: bytes) -> None:
        self._out.append(comment + b"\n\n")

    def _opened(self, block: Json) -> None:
        self._start()
        self._write("content_block_start", index=self._index, content_block=block)
        self._before = _BEFORE % (self._index, _DELTAS[block["type"]])

    def _added(self, texts: list[bytes]) -> None:
        self._out.append(self._before + (_AFTER + self._before).join(texts) + _AFTER)

    def _closed(self) -> None:
        if self._open == "thinking":
            signature = {"type": "signature_delta", "signature": ""}
            self._write("content_block_delta", index=self._index, delta=signature)
        self._write("content_block_stop", index=self._index)
        self._index += 1

    def _ended(self, ending: Json, usage: Json) -> None:
        self._start()
        self._write("message_delta", delta=ending, usage=usage)
        self._write("message_stop")

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            usage = _counts(self._prompt.total, n_cached=self._prompt.cache, n_output=0)
            message = self._message([], {"stop_reason": None, "stop_sequence": None}, usage)
            self._write("message_start", message=message)

    def _write(self, kind: str, **members: object) -> None:
        data = msgspec.json.encode({"type": kind, **members})
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))


class MessageFold(_Answer):
    """The same message as one object: what ``"stream": false`` asks for."""

    def __init__(self, model: str, stop_sequences: Collection[str]) -> None:
        super().__init__(model, stop_sequences)
        self._content: list[Json] = []
        self._text = bytearray()
        self._whole: Json = {}

    def feed(self, data: bytes) -> bytes:
        """Keep what ``data`` holds; return nothing.

        Raises:
            EngineError: llama-server reports an error.
            UpstreamError: it sent what is no event.
        """
        self._feed(data)
        self._check()
        return b""

    def finish(self) -> bytes:
        """Return the message.

        Raises:
            UpstreamError: the stream broke off before its last event.
        """
        self._check(is_last=True)
        return msgspec.json.encode(self._whole)

    def _opened(self, block: Json) -> None:
        self._content.append(block)
        self._text.clear()

    def _added(self, texts: list[bytes]) -> None:
        self._text += b"".join(texts)

    def _closed(self) -> None:
        block = self._content[-1]
        text = msgspec.json.decode(b'"%b"' % bytes(self._text), type=str)
        if block["type"] == "tool_use":
            block["input"] = _arguments(text)
        else:
            block[block["type"]] = text

    def _ended(self, ending: Json, usage: Json) -> None:
        self._whole = self._message(self._content, ending, usage)


def _counts(n_prompt: int, *, n_cached: int, n_output: int) -> Json:
    """Return the usage: the prompt is the sum of the three counts of input."""
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_output,
    }


def _arguments(text: str) -> Any:
    """Return the arguments of a call, none where the limit cut them, as llama-server does."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
