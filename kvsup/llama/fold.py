"""Fold a stream of llama-server into the one JSON object that it answers without ``stream``.

The objects are those of tools/server/server-task.cpp, ``to_json_oaicompat``, ``…_chat`` and
``…_resp`` (b10434, b11434: alike). Four things are not in a stream: the text of a chat answer
that parses to nothing (an empty ``<think></think>``), which is folded to ``""``; a character that
the limit of tokens cut in two, U+FFFD otherwise; blanks that the parser takes back at the end; and
the last letters before the limit where a stop word could have begun in them.
"""

from typing import Any

import msgspec

from kvsup.errors import EngineError, UpstreamError
from kvsup.llama.sse import SSEDecoder

_DONE = b"[DONE]"


class _Error(msgspec.Struct, frozen=True):
    code: int = 500
    message: str = "llama-server gave no reason"
    type: str = "server_error"


class _Function(msgspec.Struct, frozen=True):
    name: str = ""
    arguments: str = ""


class _ToolCallPiece(msgspec.Struct, frozen=True):
    index: int
    id: str = ""
    function: _Function = _Function()


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCallPiece] = []


class _ChatPiece(msgspec.Struct, frozen=True):
    index: int
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[msgspec.Raw]


class _TextPiece(msgspec.Struct, frozen=True):
    index: int
    text: str = ""
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    id: str = ""
    created: int = 0
    model: str = ""
    system_fingerprint: str = ""
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    error: _Error | None = None


class _ChatChunk(_Chunk, frozen=True):
    choices: list[_ChatPiece] = []


class _TextChunk(_Chunk, frozen=True):
    choices: list[_TextPiece] = []


class _ResponseEvent(msgspec.Struct, frozen=True):
    type: str = ""
    response: dict[str, Any] = {}
    error: _Error | None = None


_chat_chunk = msgspec.json.Decoder(_ChatChunk).decode
_text_chunk = msgspec.json.Decoder(_TextChunk).decode
_response_event = msgspec.json.Decoder(_ResponseEvent).decode


class _Fold:
    """What all folds share: events in, nothing out until the end."""

    content_type = b"application/json; charset=utf-8"

    def __init__(self) -> None:
        self._events = SSEDecoder()
        self._is_complete = False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the stream; return nothing.

        Raises:
            EngineError: the stream holds an error.
            UpstreamError: it holds what is no event of llama-server.
        """
        try:
            for payload in self._events.feed(data):
                if payload == _DONE:
                    self._is_complete = True
                else:
                    self._take(payload)
        except msgspec.DecodeError as error:
            raise UpstreamError(f"llama-server sent an event that is none: {error}") from error
        return b""

    def finish(self) -> bytes:
        """Return the object as JSON.

        Raises:
            UpstreamError: the stream broke off before its last event.
        """
        answer = self._answer() if self._is_complete else None
        if answer is None:
            raise UpstreamError("llama-server broke off in the middle of its answer")
        return msgspec.json.encode(answer)

    def _take(self, payload: bytes) -> None:
        raise NotImplementedError

    def _answer(self) -> dict[str, Any] | None:
        raise NotImplementedError


class _Message:
    """One choice of a chat answer as it grows."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: dict[int, _ToolCall] = {}
        self.finish_reason: str | None = None

    def add(self, piece: _ChatPiece) -> None:
        delta = piece.delta
        if delta.content:
            self.content.append(delta.content)
        if delta.reasoning_content:
            self.reasoning.append(delta.reasoning_content)
        for call in delta.tool_calls:
            self.tool_calls.setdefault(call.index, _ToolCall()).add(call)
        self.finish_reason = piece.finish_reason or self.finish_reason

    def fold(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.tool_calls:
            message["tool_calls"] = [call.fold() for _, call in sorted(self.tool_calls.items())]
        return message


class _ToolCall:
    """One call of a tool as it grows; a later name is the whole name, grown longer."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def add(self, piece: _ToolCallPiece) -> None:
        self.id = piece.id or self.id
        self.name = piece.function.name or self.name
        self.arguments.append(piece.function.arguments)

    def fold(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        call: dict[str, Any] = {"type": "function", "function": function}
        return {**call, "id": self.id} if self.id else call


class ChatFold(_Fold):
    """``/v1/chat/completions`` with ``stream_options.include_usage``, without ``logprobs``."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: dict[int, _Message] = {}
        self._finished_index = 0
        self._last: _Chunk | None = None

    def _take(self, payload: bytes) -> None:
        chunk = _chat_chunk(payload)
        if chunk.error is not None:
            raise _engine_error(chunk.error)
        for piece in chunk.choices:
            self._messages.setdefault(piece.index, _Message()).add(piece)
            if piece.finish_reason is not None:
                self._finished_index = piece.index
        if chunk.usage is not None and self._finished_index == 0:
            self._last = chunk  # with n > 1 the object has the counts of the first choice

    def _answer(self) -> dict[str, Any] | None:
        choices = [
            {"finish_reason": message.finish_reason, "index": index, "message": message.fold()}
            for index, message in sorted(self._messages.items())
        ]
        return _object("chat.completion", choices, self._last)


class _Text:
    """One choice of a completion as it grows."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.logprobs: list[msgspec.Raw] = []
        self.finish_reason: str | None = None

    def add(self, piece: _TextPiece) -> None:
        self.pieces.append(piece.text)
        if piece.logprobs is not None:
            self.logprobs += piece.logprobs.content
        self.finish_reason = piece.finish_reason or self.finish_reason

    def fold(self, index: int) -> dict[str, Any]:
        return {
            "text": "".join(self.pieces),
            "index": index,
            "logprobs": {"content": self.logprobs} if self.logprobs else None,
            "finish_reason": self.finish_reason,
        }


class CompletionFold(_Fold):
    """``/v1/completions`` with one prompt, with ``logprobs`` only where no stop word is asked."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[int, _Text] = {}
        self._last: _Chunk | None = None

    def _take(self, payload: bytes) -> None:
        chunk = _text_chunk(payload)
        if chunk.error is not None:
            raise _engine_error(chunk.error)
        for piece in chunk.choices:
            self._texts.setdefault(piece.index, _Text()).add(piece)
            if chunk.usage is not None and piece.index == 0:
                self._last = chunk

    def _answer(self) -> dict[str, Any] | None:
        choices = [text.fold(index) for index, text in sorted(self._texts.items())]
        return _object("text_completion", choices, self._last)


class ResponseFold(_Fold):
    """``/v1/responses``: its last event holds the object, but for a few fields."""

    def __init__(self) -> None:
        super().__init__()
        self._response: dict[str, Any] = {}

    def _take(self, payload: bytes) -> None:
        event = _response_event(payload)
        if event.error is not None:
            raise _engine_error(event.error)
        if event.type == "response.completed":
            self._response = event.response
            self._is_complete = True

    def _answer(self) -> dict[str, Any]:
        response = self._response
        for item in response.get("output", []):
            item.setdefault("status", "completed")  # a stream's reasoning item has none
        return {"completed_at": response.get("created_at"), **response}


def _object(kind: str, choices: list[dict[str, Any]], last: _Chunk | None) -> dict[str, Any] | None:
    """Return the object around ``choices``, or None where the event with the counts is missing."""
    if last is None:
        return None
    answer = {
        "choices": choices,
        "created": last.created,
        "model": last.model,
        "system_fingerprint": last.system_fingerprint,
        "object": kind,
        "usage": last.usage,
        "id": last.id,
    }
    return answer if last.timings is None else {**answer, "timings": last.timings}


def _engine_error(error: _Error) -> EngineError:
    body = msgspec.json.encode({"error": error})
    return EngineError(error.message, status=error.code, body=body)
