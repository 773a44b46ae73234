"""Requests of Anthropic's API: Ollama's checks, and what llama-server must be told otherwise.

llama-server builds a chat's request of a few members and drops the rest (b10434, b11434:
server-chat.cpp, ``convert_anthropic_to_oai``): ``thinking`` disabled, the effort, a choice of no
tool or of one by name. It answers without ``messages``, and puts the results of tools behind the
text that a client sends with them, where templates do not look for them. A format of the answer is
asked for on another route (``anthropic/structured.py``).
"""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from kvsup.anthropic import structured
from kvsup.anthropic.messages import Asked, MessageMend
from kvsup.errors import RequestError
from kvsup.mending import Fault, Instead, MalformedError, Mend, Prepared, WholeMend, read

Json = dict[str, Any]

_EFFORTS = {"xhigh": "high"}
"""Ollama's words for efforts that templates do not know (anthropic/anthropic.go, 2026-08)."""


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[msgspec.Raw] | None = None


class _Block(msgspec.Struct, frozen=True):
    type: str
    id: str | None = None
    name: str | None = None
    tool_use_id: str | None = None
    text: str | None = None


class _Tool(msgspec.Struct, frozen=True):
    name: str


class _ToolChoice(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None


class _Thinking(msgspec.Struct, frozen=True):
    type: str
    budget_tokens: int | None = None


class _Format(msgspec.Struct, frozen=True):
    type: str
    schema: Json | None = None


class _OutputConfig(msgspec.Struct, frozen=True):
    effort: str | None = None
    format: _Format | None = None


class _Request(msgspec.Struct, frozen=True):
    model: str | None = None
    max_tokens: int | None = None
    messages: list[_Message] | None = None
    system: str | list[_Block] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None
    metadata: Json | None = None
    chat_template_kwargs: Json | None = None


_request = msgspec.json.Decoder(_Request).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_block = msgspec.json.Decoder(_Block).decode
_tool = msgspec.json.Decoder(_Tool).decode


def prepare(path: str, body: bytes) -> Prepared:
    """Return what the request needs beyond being passed on.

    Args:
        path: of the URL, ``/v1/messages`` or ``/v1/messages/count_tokens``.
        body: the request's JSON.

    Raises:
        RequestError: the request is one that Ollama or Anthropic answers with 400.
    """
    request = _read(_request, body, "")
    is_message = path == "/v1/messages"
    if is_message and (request.max_tokens is None or request.max_tokens < 1):
        raise RequestError("max_tokens is required and must be positive")
    if not request.messages:
        raise RequestError("messages is required")
    forced = {**_chosen_tools(request), **_thinking(request), **_ordered(request.messages)}
    if not is_message:
        return Prepared(forced)
    asked = _asked(request, body)
    schema = _schema(request)
    if schema is not None:
        return _as_chat({**_members(body), **forced}, schema, asked, is_stream=bool(request.stream))
    if request.stream:
        return Prepared(forced, lambda _n_ctx: MessageMend(asked))
    return Prepared(forced, lambda _n_ctx: WholeMend(asked.whole))


def _read(decode: Callable[[Any], Any], raw: bytes | msgspec.Raw, at: str) -> Any:
    try:
        found = read(decode, raw, at)
    except MalformedError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(found, Fault):
        return found
    if not found.param:
        raise RequestError(f"the body must be an object, but is {found.got}")
    if not found.expected:
        raise RequestError(f"{found.param}: Field required")
    got = f", not {found.got}" if found.got else ""
    raise RequestError(f"{found.param}: Input should be {found.expected}{got}")


def _asked(request: _Request, body: bytes) -> Asked:
    """Return what the answer's mend must know of the request.

    Without a start of llama-server's the id is made of the request, and the prompt's length
    guessed as Ollama does: four bytes a token.
    """
    return Asked(
        model=request.model or "",
        message_id=f"msg_{sha256(body).hexdigest()[:24]}",
        n_prompt_tokens=len(body) // 4,
        stop_sequences=tuple(request.stop_sequences or ()),
        prefill=_prefill((request.messages or [])[-1]),
    )


def _schema(request: _Request) -> Json | None:
    """Return what the answer's JSON must be like; None where it is to be text or a call.

    A beta of Anthropic's API has the format in ``output_format``.
    """
    wanted = request.output_config.format if request.output_config else None
    wanted = wanted or request.output_format
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        raise RequestError(f"output_config.format.type: '{wanted.type}' is not 'json_schema'")
    if wanted.schema is None:
        raise RequestError("output_config.format.schema: Field required")
    if (request.messages or [])[-1].role == "assistant":
        raise RequestError("output_config.format: the last message cannot be the assistant's")
    must_call = request.tool_choice is not None and request.tool_choice.type in {"any", "tool"}
    return None if must_call else wanted.schema


def _as_chat(members: Json, schema: Json, asked: Asked, *, is_stream: bool) -> Prepared:
    """Return the chat that asks for JSON of ``schema``."""
    request = _read(structured.decode_request, msgspec.json.encode(members), "")

    def make_mend(_n_ctx: int) -> Mend:
        if is_stream:
            return structured.ChatMend(asked)
        return WholeMend(partial(structured.message_of, asked))

    return Prepared(
        make_mend=make_mend,
        instead=Instead(structured.CHAT, structured.chat_request(request, schema)),
    )


def _prefill(last: _Message) -> str:
    if last.role != "assistant":
        return ""
    if isinstance(last.content, str):
        return last.content
    blocks = [_block(raw) for raw in last.content or []]
    return "\n".join(block.text or "" for block in blocks if block.type == "text")


def _chosen_tools(request: _Request) -> Json:
    """Return the tools to choose from: llama-server knows neither "none" nor a tool by name."""
    tools = request.tools or []
    names = [_read(_tool, raw, f"tools[{index}]").name for index, raw in enumerate(tools)]
    choice = request.tool_choice
    if choice is None or choice.type not in {"none", "tool"}:
        return {}
    if choice.type == "none":
        return {"tools": []}
    if choice.name not in names:
        raise RequestError(f"tool_choice: there is no tool '{choice.name}' in tools")
    return {"tools": [tools[names.index(choice.name)]]}


def _thinking(request: _Request) -> Json:
    """Return the template's words for thinking: its switches are all that llama-server passes."""
    words: Json = {}
    if request.thinking is not None:
        words["enable_thinking"] = request.thinking.type != "disabled"
    effort = request.output_config.effort if request.output_config else None
    if effort is not None:
        words["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return (
        {"chat_template_kwargs": {**words, **(request.chat_template_kwargs or {})}} if words else {}
    )


def _ordered(messages: list[_Message]) -> Json:
    """Return the messages with each one's results of tools in a message of their own, first."""
    ordered: list[Json] = []
    is_changed = False
    for index, message in enumerate(messages):
        if not isinstance(message.content, list):
            ordered.append({"role": message.role, "content": message.content})
            continue
        results, others = _parted(message.content, f"messages[{index}].content")
        parts = [results, others] if results and others else [message.content]
        is_changed |= len(parts) > 1
        ordered += [{"role": message.role, "content": part} for part in parts]
    return {"messages": ordered} if is_changed else {}


def _parted(content: list[msgspec.Raw], at: str) -> tuple[list[msgspec.Raw], list[msgspec.Raw]]:
    """Return the results of tools, and the other blocks."""
    results: list[msgspec.Raw] = []
    others: list[msgspec.Raw] = []
    for index, raw in enumerate(content):
        block = _read(_block, raw, f"{at}[{index}]")
        required = {"tool_use": ("id", "name"), "tool_result": ("tool_use_id",)}
        for field in required.get(block.type, ()):
            if not getattr(block, field):
                raise RequestError(f"{block.type} block missing required '{field}' field")
        (results if block.type == "tool_result" else others).append(raw)
    return results, others
