"""``output_config.format``: messages asked for as a chat, whose answer is a message again.

``/v1/messages`` drops the format (b10434, b11434: server-chat.cpp,
``server_chat_convert_anthropic_to_oai``); ``/v1/chat/completions`` knows it as
``response_format``. The conversion is llama-server's own but for two things: results of tools come
before the text beside them, and the client's stop sequence is told apart from the model's end.
With a schema most templates leave the model no tool to call (common/chat-auto-parser-generator.cpp
and common/parsers, b11434).
"""

import re
from collections.abc import Hashable, Iterator
from typing import Any

import msgspec

from kvsup.anthropic.messages import Asked, MessageMend, written
from kvsup.llama.sse import EventSplitter

Json = dict[str, Any]

CHAT = "/v1/chat/completions"

_DEFAULT_BUDGET_TOKENS = 10_000
"""llama-server's for thinking without a budget (server-chat.cpp, b11434)."""

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
"""What is not ``end_turn``."""

_BILLING = "x-anthropic-billing-header:"
_STAMP = re.compile(r"(?<=cch=).{5}(?=;)")
"""Claude Code's, new in each request: it would keep the prompt out of the cache (b11434)."""


class Source(msgspec.Struct, frozen=True):
    """Where an image is: its bytes in base64, or an address."""

    type: str = ""
    media_type: str = "image/jpeg"
    data: str = ""
    url: str = ""


class Block(msgspec.Struct, frozen=True):
    """A part of a message; of which kind decides what of it counts."""

    type: str
    text: str = ""
    thinking: str = ""
    source: Source | str | None = None
    """A text only in search results, which are left out like all that no chat knows."""
    id: str = ""
    name: str = ""
    input: Json = {}
    tool_use_id: str = ""
    content: "str | list[Block] | Json | None" = None


class Turn(msgspec.Struct, frozen=True):
    """A message."""

    role: str
    content: str | list[Block] | None = None


class Tool(msgspec.Struct, frozen=True):
    """What the model may call."""

    name: str
    description: str = ""
    input_schema: Json = {}


class Thinking(msgspec.Struct, frozen=True):
    """Whether the model is to think, and for how long."""

    type: str = ""
    budget_tokens: int = _DEFAULT_BUDGET_TOKENS


class Request(msgspec.Struct, frozen=True):
    """What of a request to ``/v1/messages`` goes into that of a chat."""

    messages: list[Turn]
    system: str | list[Block] | None = None
    model: str | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    chat_template_kwargs: Json | None = None
    stop_sequences: list[str] | None = None
    tools: list[Tool] | None = None
    thinking: Thinking | None = None


decode_request = msgspec.json.Decoder(Request).decode

_SAME = (
    "model", "max_tokens", "stream", "temperature", "top_p", "top_k", "chat_template_kwargs",
)  # fmt: skip


def chat_request(request: Request, schema: Json) -> bytes:
    """Return the body of ``/v1/chat/completions`` that asks for JSON of ``schema``.

    With ``return_progress`` a stream tells how long the prompt is before its first token, and with
    ``verbose`` the answer tells which stop sequence ended it.
    """
    chat: Json = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    chat["messages"] = [*_system(request.system), *_turns(request.messages)]
    json_schema = {"schema": schema or {"type": "object"}}  # b10434 takes an empty one for none
    chat["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    if request.stream:
        chat |= {"stream_options": {"include_usage": True}, "return_progress": True}
    if request.stop_sequences:
        chat |= {"stop": request.stop_sequences, "verbose": True}
    if request.tools:
        chat["tools"] = [_function(tool) for tool in request.tools]
    if request.thinking is not None and request.thinking.type == "enabled":
        chat["thinking_budget_tokens"] = request.thinking.budget_tokens
    return msgspec.json.encode(chat)


def _system(system: str | list[Block] | None) -> Iterator[Json]:
    if system is not None:
        texts = [system] if isinstance(system, str) else [block.text for block in system]
        yield {"role": "system", "content": "".join(map(_unstamped, texts))}


def _unstamped(text: str) -> str:
    return _STAMP.sub("fffff", text, count=1) if text.startswith(_BILLING) else text


def _turns(messages: list[Turn]) -> Iterator[Json]:
    for message in messages:
        if not isinstance(message.content, list):
            yield {"role": message.role, "content": message.content or ""}
            continue
        for block in message.content:
            if block.type == "tool_result":
                content = _result(block.content)
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
        said: Json = {
            "content": _parts(message.content),
            "reasoning_content": "".join(block.thinking for block in message.content),
            "tool_calls": [_call(block) for block in message.content if block.type == "tool_use"],
        }
        if any(said.values()):
            members = {name: value for name, value in said.items() if value}
            yield {"role": message.role, "content": "", **members}


def _parts(blocks: list[Block]) -> list[Json]:
    parts: list[Json] = []
    for block in blocks:
        if block.type == "text":
            parts.append({"type": "text", "text": block.text})
        elif block.type == "image" and isinstance(block.source, Source):
            parts.append({"type": "image_url", "image_url": {"url": _address(block.source)}})
    return parts


def _address(source: Source) -> str:
    is_inside = source.type == "base64"
    return f"data:{source.media_type};base64,{source.data}" if is_inside else source.url


def _result(content: str | list[Block] | Json | None) -> str | list[Json]:
    """Return texts as one, which is all that most templates know, and images as parts."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    parts = _parts(content)
    has_images = any(part["type"] == "image_url" for part in parts)
    return parts if has_images else "".join(part["text"] for part in parts)


def _call(block: Block) -> Json:
    arguments = msgspec.json.encode(block.input).decode()
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id, "type": "function", "function": function}


def _function(tool: Tool) -> Json:
    function = {
        "name": tool.name, "description": tool.description, "parameters": tool.input_schema,
    }  # fmt: skip
    return {"type": "function", "function": function}


def message_of(asked: Asked, completion: Json) -> Json:
    """Return the message that ``completion`` is, an answer of a chat without ``stream``."""
    choice, usage = completion["choices"][0], completion["usage"]
    message = choice["message"]
    content: list[Json] = []
    if thinking := message.get("reasoning_content"):
        content.append({"type": "thinking", "thinking": thinking, "signature": ""})
    if text := message.get("content"):
        content.append({"type": "text", "text": text})
    content += [_use(call) for call in message.get("tool_calls", ())]
    n_cached = usage["prompt_tokens_details"]["cached_tokens"]
    return asked.whole(
        {
            "id": completion["id"],
            "type": "message",
            "role": "assistant",
            "model": completion["model"],
            "content": content,
            **_ending(choice["finish_reason"], _stop_word(completion)),
            "usage": {
                **_prompt_usage(usage["prompt_tokens"], n_cached),
                "output_tokens": usage["completion_tokens"],
            },
        }
    )


def _use(call: Json) -> Json:
    function = call["function"]
    try:
        arguments = msgspec.json.decode(function["arguments"])
    except msgspec.DecodeError:
        arguments = {}  # the limit of tokens cut it; llama-server does the same
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _stop_word(answer: Json) -> str | None:
    return answer.get("__verbose", {}).get("stopping_word") or None


def _ending(finish_reason: str, stop_word: str | None) -> Json:
    reason = _STOP_REASONS.get(finish_reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": stop_word}


def _prompt_usage(n_tokens: int, n_cached: int) -> Json:
    return {"input_tokens": n_tokens - n_cached, "cache_read_input_tokens": n_cached}


class ChatMend:
    """Turns the stream of a chat into that of a message.

    It makes the events that llama-server would have made, and has them mended as those are.
    """

    def __init__(self, asked: Asked) -> None:
        self._events = EventSplitter()
        self._mend = MessageMend(asked)
        self._start = b""
        self._indexes: dict[Hashable, int] = {}
        self._finish_reason = ""
        self._stop_word: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Return the events that ``data`` completes.

        Raises:
            UpstreamError: an event is too long.
        """
        events = [made for event in self._events.feed(data) for made in self._translated(event)]
        return self._mend.feed(b"".join(events))

    def finish(self) -> bytes:
        """Return nothing: a stream of a chat has no end without its last event."""
        return self._mend.finish()

    def _translated(self, event: bytes) -> Iterator[bytes]:
        """Yield the message's events; comments and errors pass, as they are alike."""
        payload = event.removeprefix(b"data: ")
        if payload == b"[DONE]":
            return
        if not payload.startswith(b'{"choices":'):
            yield event + b"\n\n"
            return
        chunk = msgspec.json.decode(payload)
        if "prompt_progress" in chunk:
            self._start = _start(chunk)
            return
        yield self._start
        self._start = b""
        for choice in chunk["choices"]:
            yield from self._added(choice["delta"])
            self._finish_reason = choice["finish_reason"] or ""
        self._stop_word = _stop_word(chunk) or self._stop_word
        if "usage" in chunk:
            usage = {"output_tokens": chunk["usage"]["completion_tokens"]}
            delta = _ending(self._finish_reason, self._stop_word)
            yield written("message_delta", {"delta": delta, "usage": usage})
            yield written("message_stop", {})

    def _added(self, delta: Json) -> Iterator[bytes]:
        if thinking := delta.get("reasoning_content"):
            block = {"type": "thinking", "thinking": ""}
            yield from self._piece("thinking", block, type="thinking_delta", thinking=thinking)
        if text := delta.get("content"):
            block = {"type": "text", "text": ""}
            yield from self._piece("text", block, type="text_delta", text=text)
        for call in delta.get("tool_calls", ()):
            function = call.get("function", {})
            block = {"type": "tool_use", "id": call.get("id"), "name": function.get("name")}
            arguments = function.get("arguments", "")
            yield from self._piece(
                call["index"], block, type="input_json_delta", partial_json=arguments
            )

    def _piece(self, key: Hashable, block: Json, **delta: str) -> Iterator[bytes]:
        """Yield what goes on with the block of ``key``, which begins as ``block``."""
        index = self._indexes.setdefault(key, n_blocks := len(self._indexes))
        if index == n_blocks:
            yield written("content_block_start", {"index": index, "content_block": block})
        yield written("content_block_delta", {"index": index, "delta": delta})


def _start(chunk: Json) -> bytes:
    progress = chunk["prompt_progress"]
    usage = {**_prompt_usage(progress["total"], progress["cache"]), "output_tokens": 0}
    message = {
        "id": chunk["id"],
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": chunk["model"],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    return written("message_start", {"message": message})
