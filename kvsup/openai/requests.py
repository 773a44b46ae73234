"""Requests of OpenAI's API: what is a 400, and what llama-server must be told otherwise.

llama-server answers without ``messages`` or with none, drops a wrong type of some fields without a
word (``stop``, ``response_format``, ``logit_bias``), and answers 500 to a message without a role
(b10434, b11434: server-common.cpp, ``oaicompat_chat_params_parse``; ran).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from kvsup.errors import RequestError
from kvsup.mending import Fault, MalformedError, Mend, Prepared, WholeMend, read
from kvsup.openai.embeddings import shorten
from kvsup.openai.errors import empty, missing, wrong
from kvsup.openai.items import mended_items
from kvsup.openai.responses import Echo, ResponseMend, echoed

T = TypeVar("T")

Json = dict[str, Any]

Int = int | float
"""llama-server takes 10.0 for 10, as Python's clients of other services send it."""

_ANY_OBJECT: Json = {"type": "json_object", "schema": {"type": "object"}}
"""JSON mode: without a schema b10434 lets any text pass (b11434 does not)."""


class _Name(msgspec.Struct, frozen=True):
    name: str


class _ToolChoice(msgspec.Struct, frozen=True):
    """A choice of tools, in the form of either API."""

    type: str | None = None
    name: str | None = None
    function: _Name | None = None
    mode: str = "auto"
    tools: "list[_ToolChoice]" = []
    allowed_tools: "_ToolChoice | None" = None

    @property
    def chosen(self) -> str | None:
        """Return the name of the one tool."""
        return self.function.name if self.function else self.name


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[msgspec.Raw] | None = None
    tool_calls: list[Json] | None = None


class _ChatTool(msgspec.Struct, frozen=True):
    type: str
    function: _Name


class _ResponseTool(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None


class _Sampling(msgspec.Struct, frozen=True):
    """What all requests for text have."""

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: Int | None = None
    seed: Int | None = None
    n: Int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    logit_bias: Json | list[msgspec.Raw] | None = None


class _Chat(_Sampling, frozen=True):
    messages: list[_Message] | None = None
    max_completion_tokens: Int | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: str | _ToolChoice | None = None
    response_format: Json | None = None
    stream_options: Json | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None


class _Completion(_Sampling, frozen=True):
    prompt: str | list[msgspec.Raw] | Json | None = None


class _Embedding(msgspec.Struct, frozen=True):
    model: str | None = None
    input: str | list[msgspec.Raw] | Json | None = None
    content: Any = None
    """llama-server's own name for it."""
    encoding_format: str | None = "float"
    dimensions: int | None = None


class _Format(msgspec.Struct, frozen=True):
    type: str = "text"
    name: str | None = None
    strict: bool | None = None
    schema: Json | None = None


class _Text(msgspec.Struct, frozen=True):
    format: _Format | None = None


class _Response(_Sampling, frozen=True):
    input: str | list[msgspec.Raw] | None = None
    instructions: str | None = None
    max_output_tokens: Int | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: str | _ToolChoice | None = None
    text: _Text | None = None
    reasoning: Json | None = None
    metadata: Json | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Int | None = None


_chat_tool, _response_tool = (
    msgspec.json.Decoder(_ChatTool).decode,
    msgspec.json.Decoder(_ResponseTool).decode,
)
_chat, _completion, _embedding, _response = (
    msgspec.json.Decoder(_Chat).decode,
    msgspec.json.Decoder(_Completion).decode,
    msgspec.json.Decoder(_Embedding).decode,
    msgspec.json.Decoder(_Response).decode,
)


def prepare(path: str, body: bytes, *, now_s: int = 0) -> Prepared:
    """Return what the request needs beyond being passed on.

    Args:
        path: of the URL, such as ``/v1/responses``.
        body: the request's JSON.
        now_s: when the request came, in seconds since 1970; a response says it was created then.

    Raises:
        RequestError: the request is one that OpenAI answers with 400.
    """
    if path in {"/v1/chat/completions", "/v1/chat/completions/input_tokens"}:
        return _prepare_chat(_read(_chat, body))
    if path == "/v1/completions":
        return _prepare_completion(_read(_completion, body))
    if path == "/v1/embeddings":
        return _prepare_embedding(_read(_embedding, body))
    if path == "/v1/responses/input_tokens":
        return Prepared(_response_members(_read(_response, body)))
    if path != "/v1/responses":
        return Prepared({})
    request = _read(_response, body)
    forced = _response_members(request)
    members, is_streamed = echoed(body), request.stream

    def make_mend(n_ctx_tokens: int) -> Mend:
        """By the context a response that filled it is told from one that ended by itself."""
        echo = Echo(members, created_s=now_s, n_ctx_tokens=n_ctx_tokens)
        return ResponseMend(echo) if is_streamed else WholeMend(echo.whole)

    return Prepared(forced, make_mend)


def _read(decode: Callable[[Any], T], raw: bytes | msgspec.Raw, at: str = "") -> T:
    try:
        found = read(decode, raw, at)
    except MalformedError as error:
        raise RequestError(f"We could not parse the JSON body of your request: {error}") from error
    if isinstance(found, Fault):
        raise wrong(found)
    if isinstance(found, _Sampling) and isinstance(found.logit_bias, dict):
        _check_bias(found.logit_bias)
    return found


def _check_bias(biases: Json) -> None:
    """OpenAI's bounds; numbers far beyond make llama-server abort with a grammar (b11434)."""
    for bias in biases.values():
        if isinstance(bias, (int, float)) and not -100 <= bias <= 100:
            raise RequestError(
                f"Invalid value for 'logit_bias': got {bias}, but numbers go from -100 to 100."
            )


def _prepare_chat(request: _Chat) -> Prepared:
    if request.messages is None:
        raise missing("messages")
    if not request.messages:
        raise empty("messages")
    tools = request.tools or []
    names = [
        _read(_chat_tool, raw, f"tools[{index}]").function.name for index, raw in enumerate(tools)
    ]
    forced = _chosen_tools(request.tool_choice, tools, names)
    wanted = request.response_format or {}
    if wanted.get("type") == "json_object" and not wanted.get("schema"):
        forced["response_format"] = _ANY_OBJECT
    return Prepared(forced)


def _prepare_completion(request: _Completion) -> Prepared:
    if request.prompt is None:
        raise missing("prompt")
    return Prepared({})


def _prepare_embedding(request: _Embedding) -> Prepared:
    if request.input is None and request.content is None:
        raise missing("input")
    if request.input == []:
        raise empty("input")
    forced: Json = {}
    encoding = (request.encoding_format or "float").lower()
    if encoding not in {"float", "base64"}:
        raise RequestError(
            f"Invalid value for 'encoding_format' = {request.encoding_format}. "
            "Supported values: ['float', 'base64']."
        )
    if encoding != request.encoding_format:
        forced["encoding_format"] = encoding
    if request.dimensions is None:
        return Prepared(forced)
    if request.dimensions < 1:
        raise RequestError(
            "Invalid 'dimensions': integer below minimum value. "
            f"Expected a value >= 1, but got {request.dimensions} instead."
        )
    change = partial(shorten, dimensions=request.dimensions)
    return Prepared(forced, lambda _n_ctx: WholeMend(change))


def _response_members(request: _Response) -> Json:
    """Return what ``convert_responses_to_chatcmpl`` (server-chat.cpp) leaves out or stumbles over.

    Other members of the body go on as they are, so ``response_format`` does too. ``top_logprobs``
    without ``logprobs``, which this API does not have, is refused.
    """
    if request.input is None:
        raise missing("input")
    if request.input == []:
        raise empty("input")
    tools = request.tools or []
    names = [
        _tool_name(_read(_response_tool, raw, f"tools[{index}]"), index)
        for index, raw in enumerate(tools)
    ]
    forced = _chosen_tools(request.tool_choice, tools, names)
    if isinstance(request.input, list) and (items := mended_items(request.input)) is not None:
        forced["input"] = items
    if request.text is not None and request.text.format is not None:
        forced |= _response_format(request.text.format)
    if request.top_logprobs is not None:
        forced["top_logprobs"] = None
    return forced


def _tool_name(tool: _ResponseTool, index: int) -> str:
    """Return the name of a function; tools that OpenAI itself would run have none."""
    if tool.type == "function" and tool.name is None:
        raise missing(f"tools[{index}].name")
    return tool.name or ""


def _response_format(wanted: _Format) -> Json:
    if wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        return {"response_format": _ANY_OBJECT}
    if wanted.type != "json_schema":
        raise RequestError(
            f"Invalid value for 'text.format.type': '{wanted.type}'. "
            "Supported values are: 'text', 'json_object', and 'json_schema'."
        )
    if wanted.schema is None:
        raise missing("text.format.schema")
    schema = {"name": wanted.name, "strict": wanted.strict, "schema": wanted.schema}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _chosen_tools(
    choice: str | _ToolChoice | None, tools: list[msgspec.Raw], names: list[str]
) -> Json:
    """Return what makes llama-server obey a choice that is an object, which it takes for "auto".

    It knows only the words (b10434, b11434: ``oaicompat_chat_params_parse``), so a named tool is
    required by leaving it alone in the list.
    """
    if not isinstance(choice, _ToolChoice):
        return {}
    if choice.type == "allowed_tools":
        allowed = choice.allowed_tools or choice
        mode, wanted = allowed.mode, allowed.tools
    elif choice.type == "function":
        mode, wanted = "required", [choice]
    else:
        return {}
    chosen = [entry.chosen for entry in wanted]
    for name in chosen:
        if name not in names:
            raise RequestError(
                f"Invalid value for 'tool_choice': there is no tool '{name}' in 'tools'."
            )
    kept = [raw for raw, name in zip(tools, names, strict=True) if name in chosen]
    return {"tool_choice": mode, "tools": kept}
