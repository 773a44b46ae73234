"""Requests of Anthropic's API: Ollama's checks, and what llama-server is asked in their place."""

from typing import Any

import msgspec
from msgspec import UNSET

from kvsup.anthropic.chat import CHAT, COUNT, Block, Request, chat_request, decode_request
from kvsup.anthropic.messages import MessageFold, MessageStream
from kvsup.errors import RequestError
from kvsup.mending import Fault, Instead, MalformedError, Prepared, WholeMend, read

_REQUIRED: dict[str, tuple[str, ...]] = {
    "tool_use": ("id", "name"),
    "tool_result": ("tool_use_id",),
}
"""What a block of a kind must have (anthropic/anthropic.go, 2026-08)."""


def prepare(path: str, body: bytes) -> Prepared:
    """Return the chat that is asked in place of the request, and what mends its answer.

    Args:
        path: of the URL, ``/v1/messages`` or ``/v1/messages/count_tokens``.
        body: the request's JSON.

    Raises:
        RequestError: the request is one that Ollama or Anthropic answers with 400.
    """
    request = _read(body)
    is_message = path == "/v1/messages"
    if is_message and (request.max_tokens is None or request.max_tokens < 1):
        raise RequestError("max_tokens is required and must be positive")
    if not request.messages:
        raise RequestError("messages is required")
    _check(request)
    chat = msgspec.json.encode(chat_request(request))
    if not is_message:
        return Prepared(make_mend=lambda _n_ctx: WholeMend(_counted), instead=Instead(COUNT, chat))
    kind = MessageStream if request.stream else MessageFold
    model, stops = request.model or "", request.stop_sequences or ()
    return Prepared(
        make_mend=lambda _n_ctx: kind(model, stops),
        instead=Instead(CHAT, chat, is_folded=not request.stream),
    )


def _read(body: bytes) -> Request:
    try:
        found = read(decode_request, body)
    except MalformedError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(found, Fault):
        return found
    if not found.param and found.got:
        raise RequestError(f"the body must be an object, but is {found.got}")
    if not found.param:
        raise RequestError(f"invalid request: {found.expected}")
    if not found.expected:
        raise RequestError(f"{found.param}: Field required")
    got = f", not {found.got}" if found.got else ""
    raise RequestError(f"{found.param}: Input should be {found.expected}{got}")


def _check(request: Request) -> None:
    for index, turn in enumerate(request.messages or []):
        if turn.content is UNSET and turn.role != "assistant":
            raise RequestError(f"messages[{index}].content: Field required")
        for block in turn.content if isinstance(turn.content, list) else ():
            _check_block(block)
    choice = request.tool_choice
    names = [tool.name for tool in request.tools or []]
    if choice is not None and choice.type == "tool" and choice.name not in names:
        raise RequestError(f"tool_choice: there is no tool '{choice.name}' in tools")
    wanted = request.format
    if wanted is None:
        return
    if wanted.type != "json_schema":
        raise RequestError(f"output_config.format.type: '{wanted.type}' is not 'json_schema'")
    if wanted.schema is None:
        raise RequestError("output_config.format.schema: Field required")
    if request.messages and request.messages[-1].role == "assistant":
        raise RequestError("output_config.format: the last message cannot be the assistant's")


def _check_block(block: Block) -> None:
    for field in _REQUIRED.get(block.type, ()):
        if not getattr(block, field):
            raise _lacks(block, field)
    if block.type == "text" and block.text is None:
        raise _lacks(block, "text")


def _lacks(block: Block, field: str) -> RequestError:
    return RequestError(f"{block.type} block missing required '{field}' field")


def _counted(answer: dict[str, Any]) -> dict[str, Any]:
    """Return Anthropic's count; a chat's says of what kind of object it is."""
    return {"input_tokens": answer["input_tokens"]}
