"""A request to ``/v1/messages``, and the chat that asks llama-server for the same.

Its own ``/v1/messages`` builds a chat of the request, too, of a few members (b10434, b11434:
server-chat.cpp, ``server_chat_convert_anthropic_to_oai``). Asked as a chat the request can be
resumed, its leaving client is noticed soon, and what is dropped there holds: a format of the
answer, one call of a tool at a time, a choice of no tool or of one by name, thinking disabled, the
effort, and the model's settings. Else this is the same conversion but for three things: results
of tools come before the text beside them, where templates look for them; the client's stop
sequence is told apart from the model's end; and an answer that goes on with the assistant's text
does not repeat it. With a schema most templates leave the model no tool to call
(common/chat-auto-parser-generator.cpp and common/parsers, b11434).
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
COUNT = "/v1/chat/completions/input_tokens"

_DEFAULT_BUDGET_TOKENS = 10_000
"""llama-server's for thinking without a budget (server-chat.cpp, b11434)."""

_EFFORTS = {"xhigh": "high"}
"""Ollama's words for efforts that templates do not know (anthropic/anthropic.go, 2026-08)."""

_BILLING = "x-anthropic-billing-header:"
_STAMP = re.compile(r"(?<=cch=).{5}(?=;)")
"""Claude Code's, new in each request: it would keep the prompt out of the cache (b11434)."""


class Source(msgspec.Struct, frozen=True):
    """Where an image is: its bytes in base64, or an address."""

    type: str = ""
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class Block(msgspec.Struct, frozen=True):
    """A part of a message; of which kind decides what of it counts."""

    type: str
    text: str | None = None
    thinking: str | None = None
    source: Source | str | None = None
    """A text only in search results, which are left out like all that no chat knows."""
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: "str | list[Block] | Json | None" = None


class Turn(msgspec.Struct, frozen=True):
    """A message."""

    role: str
    content: str | list[Block] | UnsetType | None = UNSET


class Tool(msgspec.Struct, frozen=True):
    """What the model may call; those that Anthropic itself would run have no schema."""

    name: str
    description: str | None = None
    input_schema: Json | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """Whether the model must call: ``auto``, ``any``, ``none``, or ``tool`` with a name."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, frozen=True):
    """Whether the model is to think, and for how long."""

    type: str
    budget_tokens: int | None = None


class Format(msgspec.Struct, frozen=True):
    """What the answer is to be like."""

    type: str
    schema: Json | None = None


class OutputConfig(msgspec.Struct, frozen=True):
    """How the model is to answer."""

    effort: str | None = None
    format: Format | None = None


class Request(msgspec.Struct, frozen=True):
    """What of a request to ``/v1/messages`` is read; the rest is dropped, as in llama-server."""

    model: str | None = None
    max_tokens: int | None = None
    messages: list[Turn] | None = None
    system: str | list[Block] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    """The same in a beta of Anthropic's."""
    metadata: Json | None = None
    chat_template_kwargs: Json | None = None

    @property
    def format(self) -> Format | None:
        """Return the format of the answer, wherever it stands."""
        return (self.output_config and self.output_config.format) or self.output_format

    @property
    def must_call(self) -> bool:
        """Say whether the answer has to be a call of a tool."""
        return self.tool_choice is not None and self.tool_choice.type in {"any", "tool"}


decode_request = msgspec.json.Decoder(Request).decode

_SAME = ("model", "max_tokens", "temperature", "top_p", "top_k")


def chat_request(request: Request) -> Json:
    """Return the chat that has the prompt of ``request`` and is to be answered like it.

    It is always streamed, with its progress: so the client's leaving is noticed, and the length of
    the prompt is told before the first token. With ``verbose`` the last events tell which stop
    sequence ended it.
    """
    chat: Json = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    messages = [*_system(request.system), *_turns(request.messages or [])]
    while messages and messages[-1]["role"] == "assistant" and not _says_anything(messages[-1]):
        messages.pop()  # it would stand in the place of the turn that is asked for
    if messages and messages[-1]["role"] == "assistant":
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    chat |= {"messages": messages, **_tools(request), **_thinking(request)}
    chat |= _response_format(request)
    if request.stop_sequences:
        chat |= {"stop": request.stop_sequences, "verbose": True}
    chat |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
    return chat


def _system(system: str | list[Block] | None) -> Iterator[Json]:
    if system is None:
        return
    if isinstance(system, list):
        texts = [block.text or "" for block in system if block.type == "text"]
    else:
        texts = [system]
    yield {"role": "system", "content": "".join(map(_unstamped, texts))}


def _unstamped(text: str) -> str:
    return _STAMP.sub("fffff", text, count=1) if text.startswith(_BILLING) else text


def _turns(turns: list[Turn]) -> Iterator[Json]:
    for turn in turns:
        if turn.content is UNSET:
            continue
        if not isinstance(turn.content, list):
            yield {"role": turn.role, "content": turn.content or ""}
            continue
        for block in turn.content:
            if block.type == "tool_result":
                content = _result(block.content)
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
        said: Json = {
            "content": _parts(turn.content),
            "reasoning_content": "".join(
                block.thinking or "" for block in turn.content if block.type == "thinking"
            ),
            "tool_calls": [_call(block) for block in turn.content if block.type == "tool_use"],
        }
        if any(said.values()):
            members = {name: value for name, value in said.items() if value}
            yield {"role": turn.role, "content": "", **members}


def _says_anything(message: Json) -> bool:
    parts = message["content"]
    is_text = isinstance(parts, str)
    text = parts if is_text else "".join(part.get("text", "*") for part in parts)
    return bool(text or message.keys() - {"role", "content"})


def _parts(blocks: list[Block]) -> list[Json]:
    parts: list[Json] = []
    for block in blocks:
        if block.type == "text":
            parts.append({"type": "text", "text": block.text or ""})
        elif block.type == "image" and (address := _address(block.source)) is not None:
            parts.append({"type": "image_url", "image_url": {"url": address}})
    return parts


def _address(source: Source | str | None) -> str | None:
    """Return where an image is, None if that is a file at Anthropic's."""
    if not isinstance(source, Source):
        return None
    if source.type == "base64":
        return f"data:{source.media_type or 'image/jpeg'};base64,{source.data or ''}"
    return source.url


def _result(content: str | list[Block] | Json | None) -> str | list[Json]:
    """Return texts as one, which is all that most templates know, and images as parts."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    parts = _parts(content)
    has_images = any(part["type"] == "image_url" for part in parts)
    return parts if has_images else "".join(part["text"] for part in parts)


def _call(block: Block) -> Json:
    arguments = msgspec.json.encode({} if block.input is None else block.input).decode()
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id, "type": "function", "function": function}


def _tools(request: Request) -> Json:
    """Return the tools to choose from; one that must be called by name is left alone among them.

    llama-server knows neither "none" nor a name (``common_chat_tool_choice_parse_oaicompat``).
    """
    choice = request.tool_choice or ToolChoice("auto")
    tools = [
        tool
        for tool in request.tools or []
        if choice.type != "none" and (choice.type != "tool" or tool.name == choice.name)
    ]
    if not tools:
        return {}
    members: Json = {"tools": [_function(tool) for tool in tools]}
    if request.must_call:
        members["tool_choice"] = "required"
    if choice.disable_parallel_tool_use:
        members["parallel_tool_calls"] = False
    return members


def _function(tool: Tool) -> Json:
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.input_schema or {},
    }
    return {"type": "function", "function": function}


def _thinking(request: Request) -> Json:
    """Return the budget, and the switches in the template's words."""
    members: Json = {}
    words: Json = {}
    if request.thinking is not None:
        words["enable_thinking"] = request.thinking.type != "disabled"
        if request.thinking.type == "enabled":
            budget_tokens = request.thinking.budget_tokens
            members["thinking_budget_tokens"] = (
                _DEFAULT_BUDGET_TOKENS if budget_tokens is None else budget_tokens
            )
    effort = request.output_config.effort if request.output_config else None
    if effort is not None:
        words["reasoning_effort"] = _EFFORTS.get(effort, effort)
    words |= request.chat_template_kwargs or {}
    return {**members, "chat_template_kwargs": words} if words else members


def _response_format(request: Request) -> Json:
    """Return the format, unless a tool must be called: with a schema none could be."""
    if request.format is None or request.must_call:
        return {}
    schema = request.format.schema or {"type": "object"}  # b10434 takes an empty one for none
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
