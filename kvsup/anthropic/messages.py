"""The answer of ``/v1/messages`` as Anthropic gives it.

What llama-server does otherwise (b10434, b11434: server-task.cpp, ``to_json_anthropic*``; ran):
the stream has no ``message_start`` where the first token is a piece of a character; blocks stay
open until the end and one can be opened twice; a call of a tool starts without ``input``, thinking
without ``signature``; only the start counts the prompt; a stop sequence ends as ``end_turn``; the
text that the client put into the assistant's mouth is repeated; ids begin with ``chatcmpl-``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from kvsup.anthropic.errors import from_engine, last_event
from kvsup.llama.sse import EventSplitter

Json = dict[str, Any]

_DELTA = b"event: content_block_delta\n"
_SIGNATURE = b'"type":"signature_delta"'
"""In no event about text: inside a JSON string its quotes would be escaped."""

_LACKING: dict[str, Json] = {"tool_use": {"input": {}}, "thinking": {"signature": ""}}
"""What the start of a block must have, and llama-server leaves out."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What only the request can tell of its answer."""

    model: str
    message_id: str
    """The id of a message whose start llama-server left out."""
    n_prompt_tokens: int
    """About how long the prompt is, for that start."""
    stop_sequences: tuple[str, ...] = ()
    prefill: str = ""
    """What the last message has the assistant say already."""

    def whole(self, message: Json) -> Json:
        """Return ``message``, llama-server's object, mended."""
        content = message["content"]
        for block in content:
            if block["type"] == "text":
                block["text"] = block["text"].removeprefix(self.prefill)
                break
        usage = usage_of(message["usage"])
        return {**message, **self.ending(message), "id": _id_of(message), "usage": usage}

    def ending(self, delta: Json) -> Json:
        """Return why a message ended; a template's own stop word is none of the client's."""
        if delta["stop_reason"] != "end_turn":
            return delta
        if delta["stop_sequence"] in self.stop_sequences:
            return {**delta, "stop_reason": "stop_sequence"}
        return {**delta, "stop_sequence": None}


def usage_of(usage: Json) -> Json:
    """Return ``usage`` with all of its counts: the prompt is the sum of the three of input."""
    return {
        "input_tokens": usage["input_tokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.get("cache_read_input_tokens", 0),
        "output_tokens": usage["output_tokens"],
    }


def _id_of(message: Json) -> str:
    """Return llama-server's id of ``message``, in Anthropic's form."""
    engine_id: str = message["id"]
    return "msg_" + engine_id.removeprefix("chatcmpl-")


class MessageMend:
    """Mends one stream of ``/v1/messages``; events about text pass as they came."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._events = EventSplitter()
        self._usage: Json | None = None
        self._kinds: dict[int, str] = {}
        self._open: int | None = None
        self._is_signed = False
        self._may_repeat = bool(asked.prefill)

    def feed(self, data: bytes) -> bytes:
        """Return the mended events that ``data`` completes.

        Raises:
            UpstreamError: an event is too long.
        """
        mended: list[bytes] = []
        for event in self._events.feed(data):
            if event.startswith(_DELTA) and _SIGNATURE not in event and not self._may_repeat:
                mended += (event, b"\n\n")
            else:
                mended += self._mended(event)
        return b"".join(mended)

    def finish(self) -> bytes:
        """Return what is left of an event that never ended."""
        return self._events.rest

    def _mended(self, event: bytes) -> Iterator[bytes]:
        name, _, payload = event.partition(b"\ndata: ")
        if not event or event.startswith(b":"):
            yield event + b"\n\n"
        elif name == b"event: error":
            yield _error(b'{"error":%b}' % payload)
        elif not payload:
            yield _error(name.removeprefix(b"data: "))
        else:
            yield from self._rebuilt(name, event, msgspec.json.decode(payload))

    def _rebuilt(self, name: bytes, event: bytes, data: Json) -> Iterator[bytes]:
        if name == b"event: message_start":
            yield self._started({**data["message"], "id": _id_of(data["message"])})
            return
        if self._usage is None:
            yield self._started(self._unsent_start())
        match name:
            case b"event: content_block_start":
                yield from self._block_started(data["index"], data["content_block"])
            case b"event: content_block_delta":
                yield from self._block_continued(event, data)
            case b"event: content_block_stop":
                if data["index"] == self._open:
                    yield from self._closed()
            case b"event: message_delta":
                yield from self._closed()
                usage = {**(self._usage or {}), **data["usage"]}
                delta = self._asked.ending(data["delta"])
                yield written("message_delta", {"delta": delta, "usage": usage})
            case _:
                yield event + b"\n\n"

    def _started(self, message: Json) -> bytes:
        self._usage = usage_of(message["usage"])
        return written("message_start", {"message": {**message, "usage": self._usage}})

    def _unsent_start(self) -> Json:
        asked = self._asked
        return {
            "id": asked.message_id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": asked.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": asked.n_prompt_tokens, "output_tokens": 0},
        }

    def _block_started(self, index: int, block: Json) -> Iterator[bytes]:
        if index in self._kinds:
            return
        yield from self._closed()
        self._open, self._kinds[index] = index, block["type"]
        block = {**block, **_LACKING.get(block["type"], {})}
        yield written("content_block_start", {"index": index, "content_block": block})

    def _block_continued(self, event: bytes, data: Json) -> Iterator[bytes]:
        """Let a delta pass, without the prefill in the first of text; the signature comes once."""
        delta = data["delta"]
        if delta["type"] == "signature_delta":
            self._is_signed = data["index"] == self._open
            if not self._is_signed:
                return
        elif delta["type"] == "text_delta":
            self._may_repeat = False
            text = delta["text"].removeprefix(self._asked.prefill)
            if text != delta["text"]:
                yield written("content_block_delta", {**data, "delta": {**delta, "text": text}})
                return
        yield event + b"\n\n"

    def _closed(self) -> Iterator[bytes]:
        """Close the block that is open, if one is; thinking ends with a signature."""
        index, self._open = self._open, None
        if index is None:
            return
        if self._kinds[index] == "thinking" and not self._is_signed:
            signature = {"type": "signature_delta", "signature": ""}
            yield written("content_block_delta", {"index": index, "delta": signature})
        yield written("content_block_stop", {"index": index})


def written(kind: str, members: Json) -> bytes:
    """Return an event of ``kind`` as Anthropic writes it."""
    data = msgspec.json.encode({"type": kind, **members})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _error(body: bytes) -> bytes:
    return last_event(from_engine(body, 500))
