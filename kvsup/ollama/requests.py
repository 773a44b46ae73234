"""Ollama's request bodies, decoded as Ollama does (api/types.go, server/routes.go, 2026-08).

Any content type, the first JSON value only, unknown keys ignored, keys in any case, null as if
absent. Names are not looked at here.
"""

import json
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from msgspec import Struct

from kvsup.errors import RequestError
from kvsup.ollama.names import quoted
from kvsup.units import parse_duration

T = TypeVar("T", bound=Struct)

_THINK_LEVELS = ("high", "medium", "low", "max")
_THINK_CHOICES = '"high", "medium", "low", "max", true, or false'
_MAX_TOP_LOGPROBS = 20

_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]*={0,2}[\r\n]*", re.ASCII)
_MISMATCH = re.compile(r"Expected `(.+?)`, got `(.+?)`(?: - at `\$\.?(.*)`)?")
_INDEX = re.compile(r"\[[^\]]*\]")
_GO_KINDS = {"str": "string", "int": "number", "float": "number"}
_GO_TYPES = {"str": "string", "array": "slice", "object": "map"}


class InvalidFormat(RequestError):  # noqa: N818 - it says what is invalid
    """``format`` is neither ``"json"`` nor a schema; Ollama answers 500, after the model's 404."""


class FunctionCall(Struct, frozen=True):
    """What a tool call of an earlier answer called."""

    name: str = ""
    arguments: dict[str, object] = {}
    index: int = 0


class ToolCall(Struct, frozen=True):
    """A tool call of an earlier answer."""

    function: FunctionCall = FunctionCall()
    id: str = ""


class Message(Struct, frozen=True):
    """One turn of a chat; every field may be left out."""

    role: str = ""
    content: str = ""
    thinking: str = ""
    images: tuple[str, ...] = ()
    """Standard base64; also WAV or MP3 bytes."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


class ChatRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /api/chat``."""

    model: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, object], ...] = ()
    stream: bool = True
    format: object = None
    """As sent; ``to_llama`` says whether it is valid."""
    options: dict[str, object] = {}
    keep_alive_s: float | None = None
    think: bool | str | None = None
    """A level is one of ``high``, ``medium``, ``low``, ``max``."""
    truncate: bool = True
    shift: bool | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = False
    """``_debug_render_only`` on the wire: answer with the prompt instead of running it."""

    @property
    def is_load_only(self) -> bool:
        """Say whether the request only loads the model, or unloads it (``is_unload``)."""
        return not self.messages

    @property
    def is_unload(self) -> bool:
        """Say whether the model is to leave memory."""
        return self.is_load_only and self.keep_alive_s == 0


class GenerateRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /api/generate``."""

    model: str = ""
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: tuple[int, ...] | None = None
    """Tokens that it goes on from: even with none it does not begin with the model's messages."""
    raw: bool = False
    images: tuple[str, ...] = ()
    stream: bool = True
    format: object = None
    options: dict[str, object] = {}
    keep_alive_s: float | None = None
    think: bool | str | None = None
    truncate: bool = True
    shift: bool | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = False
    """``_debug_render_only`` on the wire: answer with the prompt instead of running it."""

    @property
    def is_load_only(self) -> bool:
        """Say whether the request only loads the model, or unloads it (``is_unload``)."""
        return not self.prompt

    @property
    def is_unload(self) -> bool:
        """Say whether the model is to leave memory."""
        return self.is_load_only and self.keep_alive_s == 0


class EmbedRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /api/embed``."""

    model: str = ""
    input: object = None
    """As sent, since its type is checked after the model's name: see ``texts``."""
    truncate: bool = True
    dimensions: int = 0
    """Length to which vectors are cut; 0 or less leaves them."""
    options: dict[str, object] = {}
    keep_alive_s: float | None = None

    def texts(self) -> tuple[str, ...]:
        """Return the texts to embed; none means that the model is only loaded.

        Raises:
            RequestError: the input is neither a text nor a list of texts.
        """
        if self.input is None or self.input == "":
            return ()
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RequestError("invalid input type")
        return tuple(texts)


class EmbeddingsRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /api/embeddings``, the older route for one text."""

    model: str = ""
    prompt: str = ""
    options: dict[str, object] = {}
    keep_alive_s: float | None = None

    @property
    def is_load_only(self) -> bool:
        """Say whether the request only loads the model."""
        return not self.prompt


class ShowRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /api/show``; ``name`` is accepted for ``model``."""

    model: str = ""
    verbose: bool = False
    system: str = ""
    options: dict[str, object] = {}


def decode_chat(body: bytes) -> ChatRequest:
    """Return the request in ``body``.

    Raises:
        RequestError: it is no JSON, a field has the wrong type, or a value is out of range.
    """
    fields = fields_of(body)
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [_message(message) for message in messages]
    if isinstance(tools := fields.get("tools"), list):
        fields["tools"] = [_folded(tool) for tool in tools]
    _prepare_run(fields)
    return _checked(converted(fields, ChatRequest))


def decode_generate(body: bytes) -> GenerateRequest:
    """Return the request in ``body``; raises as ``decode_chat``."""
    fields = fields_of(body)
    _check_images(fields)
    _prepare_run(fields)
    return _checked(converted(fields, GenerateRequest))


def decode_embed(body: bytes) -> EmbedRequest:
    """Return the request in ``body``; raises as ``decode_chat``."""
    return converted(fields_of(body), EmbedRequest)


def decode_embeddings(body: bytes) -> EmbeddingsRequest:
    """Return the request in ``body``; raises as ``decode_chat``."""
    return converted(fields_of(body), EmbeddingsRequest)


def decode_show(body: bytes) -> ShowRequest:
    """Return the request in ``body``; raises as ``decode_chat``."""
    return converted(named_fields(body), ShowRequest)


def named_fields(body: bytes) -> dict[str, object]:
    """Return the object in ``body``, with ``name`` for ``model`` where that is not there."""
    fields = fields_of(body)
    if not fields.get("model") and "name" in fields:
        fields["model"] = fields["name"]
    return fields


def fields_of(body: bytes) -> dict[str, object]:
    """Return the first JSON value of ``body``, an object, with keys folded and nulls dropped."""
    text = body.decode(errors="replace").lstrip(" \t\r\n")
    if not text:
        raise RequestError("missing request body")
    try:
        value, _ = _JSON.raw_decode(text)
        if "\\u" in text:
            value = _without_lone_surrogates(value)
    except json.JSONDecodeError as error:
        raise RequestError(_syntax_text(text, error)) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"invalid JSON: {error}") from error
    fields = _folded(value)
    if not isinstance(fields, dict):
        raise RequestError(f"json: cannot unmarshal {_go_kind(value)} into Go value of type object")
    fields["keep_alive_s"] = _keep_alive_s(fields.pop("keep_alive", None))
    if isinstance(options := fields.get("options"), dict):
        fields["options"] = {key: item for key, item in options.items() if item is not None}
    return fields


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


_JSON = json.JSONDecoder(parse_constant=_not_a_number)


def _syntax_text(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text) or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    return f"invalid character {text[error.pos]!r} in request body, offset {error.pos}"


def _folded(value: object) -> object:
    """Return an object with lower-case keys and without nulls, null as an empty object."""
    if isinstance(value, dict):
        return {key.lower(): item for key, item in value.items() if item is not None}
    return {} if value is None else value


def _without_lone_surrogates(value: object) -> object:
    """Replace halves of UTF-16 pairs, as Go does; they could not be written out again."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {
            _without_lone_surrogates(key): _without_lone_surrogates(item)
            for key, item in value.items()
        }
    return value


def _message(value: object) -> object:
    message = _folded(value)
    if not isinstance(message, dict):
        return message
    _check_images(message)
    if isinstance(role := message.get("role"), str):
        message["role"] = role.lower()
    if isinstance(calls := message.get("tool_calls"), list):
        message["tool_calls"] = [_tool_call(call) for call in calls]
    return message


def _tool_call(value: object) -> object:
    call = _folded(value)
    if isinstance(call, dict) and "function" in call:
        call["function"] = _folded(call["function"])
    return call


def _check_images(fields: Mapping[str, object]) -> None:
    images = fields.get("images")
    for image in images if isinstance(images, list) else ():
        if not isinstance(image, str):
            continue
        match = _BASE64.match(image)
        end = match.end() if match else 0
        length = len(image) - image.count("\n") - image.count("\r")
        if end < len(image) or length % 4:
            raise RequestError(f"illegal base64 data at input byte {end}")


def _prepare_run(fields: dict[str, object]) -> None:
    """Check what needs more than a type."""
    fields["debug_render_only"] = fields.pop("_debug_render_only", False)
    think = fields.get("think")
    if isinstance(think, str) and think not in _THINK_LEVELS:
        raise RequestError(f"invalid think value: {quoted(think)} (must be {_THINK_CHOICES})")
    if think is not None and not isinstance(think, (bool, str)):
        raise RequestError(f"think must be a boolean or string ({_THINK_CHOICES})")


def _keep_alive_s(value: object) -> float | None:
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise RequestError(str(error)) from error


R = TypeVar("R", ChatRequest, GenerateRequest)


def _checked(request: R) -> R:
    if not 0 <= request.top_logprobs <= _MAX_TOP_LOGPROBS:
        raise RequestError("top_logprobs must be between 0 and 20")
    return request


def converted(fields: dict[str, object], kind: type[T]) -> T:
    """Return a request with these fields; raises as ``decode_chat``."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise RequestError(_mismatch_text(str(error), kind.__name__)) from error


def _mismatch_text(text: str, struct: str) -> str:
    """Return Go's words for a wrong type."""
    match = _MISMATCH.search(text)
    if match is None:
        return text
    wanted, got, path = match.groups()
    field = f"{struct}.{_INDEX.sub('', path or '')}"
    kind, go_type = _GO_KINDS.get(got, got), _GO_TYPES.get(wanted, wanted)
    return f"json: cannot unmarshal {kind} into Go struct field {field} of type {go_type}"


def _go_kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "number"
