"""From Ollama's requests to llama-server's (b10434, b11434): where to post, and what.

Every generation streams with ``return_progress``, whatever the client asked for: llama-server
notices that its client has left only when it writes, and then frees the slot.
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from kvsup.ollama.names import quoted
from kvsup.ollama.options import sampling_fields
from kvsup.ollama.requests import ChatRequest, GenerateRequest, InvalidFormat, Message, ToolCall

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/completion"

Turn = dict[str, object]
"""One message in OpenAI's shape."""

Prompt = str | Sequence[int] | Mapping[str, object]
"""A text, its tokens, or a text with media."""

_STREAM: Mapping[str, object] = {"stream": True, "return_progress": True, "cache_prompt": True}
_SNIFF_CHARS = 32  # 24 bytes, enough for every signature below


@dataclass(frozen=True, slots=True)
class LlamaCall:
    """One POST to a llama-server."""

    path: str
    body: dict[str, object]


def chat_body(
    request: ChatRequest,
    *,
    model: str,
    system: str | None,
    options: Mapping[str, object],
    num_ctx: int,
    history: Iterable[Turn] = (),
) -> LlamaCall:
    """Return the call that answers a chat.

    ``system``, ``history`` and ``options`` are the model's: the first stands in front unless the
    request begins with a system message of its own, the second before what the request says, the
    third lie below the request's options (server/routes.go, 0.17.4).

    Raises:
        OptionTypeError: an option has the wrong type.
        InvalidFormat: ``format`` is neither ``"json"`` nor a schema.
    """
    messages = [*history, *map(_message, request.messages)]
    if system and not any(message.role == "system" for message in request.messages[:1]):
        messages.insert(0, {"role": "system", "content": system})
    body = _chat(
        request, model, messages, sampling_fields(options, request.options, num_ctx=num_ctx)
    )
    if request.tools:
        body["tools"] = [{"type": "function", **tool} for tool in request.tools]
    return LlamaCall(CHAT_PATH, body)


def generate_body(
    request: GenerateRequest,
    *,
    model: str,
    system: str | None,
    options: Mapping[str, object],
    num_ctx: int,
    history: Iterable[Turn] = (),
) -> LlamaCall:
    """Return the call that answers a prompt: as a chat of one turn, or as it is if ``raw``.

    Raises:
        OptionTypeError: an option has the wrong type.
        InvalidFormat: ``format`` is neither ``"json"`` nor a schema.
    """
    sampling = _completion_sampling(request, options, num_ctx)
    if request.raw:
        return LlamaCall(COMPLETION_PATH, _completion(request, model, request.prompt, sampling))
    messages = generate_messages(request, system, history)
    return LlamaCall(CHAT_PATH, _chat(request, model, messages, sampling))


def generate_messages(
    request: GenerateRequest, system: str | None, history: Iterable[Turn] = ()
) -> list[Turn]:
    """Return the prompt as a chat of one turn, after the request's system text or the model's.

    The model's ``history`` lies between, unless the request goes on from a context.
    """
    system = request.system or system
    messages: list[Turn] = [{"role": "system", "content": system}] if system else []
    messages += history if request.context is None else ()
    return [*messages, {"role": "user", "content": _content(request.prompt, request.images)}]


def with_media(prompt: str, images: Sequence[str], *, marker: str) -> Prompt:
    """Return a prompt for ``/completion`` with images or sounds in it (b10434, b11434).

    Image N stands where the prompt first says ``[img-N]``. ``[img]`` and llama-server's own
    ``marker`` are the places of those that no such tag names, in order; what is left then stands in
    front. A tag that has no image for it stays text, but a marker without one, which llama-server
    would refuse, goes.
    """
    tags = re.compile(rf"\[img(?:-([0-9]{{1,9}}))?\]|{re.escape(marker)}")
    named = {int(number) for number in tags.findall(prompt) if number}
    unnamed = iter([number for number in range(len(images)) if number not in named])
    left = dict(enumerate(images))
    placed: list[str] = []

    def place(tag: re.Match[str]) -> str:
        image = left.pop(int(tag[1]) if tag[1] else next(unnamed, -1), None)
        if image is None:
            return "" if tag[0] == marker else tag[0]
        placed.append(image)
        return marker

    text = tags.sub(place, prompt)
    encoded = [image.replace("\r", "").replace("\n", "") for image in (*left.values(), *placed)]
    return {"prompt_string": marker * len(left) + text, "multimodal_data": encoded}


def completion_body(
    request: GenerateRequest,
    prompt: Prompt,
    *,
    model: str,
    options: Mapping[str, object],
    num_ctx: int,
) -> LlamaCall:
    """Return the call that goes on after ``prompt``, which replaces the request's own.

    Raises as ``generate_body``.
    """
    sampling = _completion_sampling(request, options, num_ctx)
    return LlamaCall(COMPLETION_PATH, _completion(request, model, prompt, sampling))


def _completion_sampling(
    request: GenerateRequest, options: Mapping[str, object], num_ctx: int
) -> dict[str, object]:
    """Return the sampling fields; 0 tokens are no limit here, where a chat makes one (Ollama)."""
    sampling = sampling_fields(options, request.options, num_ctx=num_ctx)
    if sampling["n_predict"] == 0:
        del sampling["n_predict"]
    return sampling


def _chat(
    request: ChatRequest | GenerateRequest,
    model: str,
    messages: list[Turn],
    sampling: Mapping[str, object],
) -> dict[str, object]:
    body: dict[str, object] = {"model": model, "messages": messages, **_STREAM, **sampling}
    if request.think is not None:
        body["chat_template_kwargs"] = _template_kwargs(request.think)
    schema = _schema(request.format)
    if schema is not None:
        body["response_format"] = (
            {"type": "json_schema", "json_schema": {"name": "schema", "schema": schema}}
            if schema
            else {"type": "json_object", "schema": {"type": "object"}}  # b10434 wants a schema
        )
    if request.logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = max(request.top_logprobs, 1)
    return body


def _completion(
    request: GenerateRequest,
    model: str,
    prompt: Prompt,
    sampling: Mapping[str, object],
) -> dict[str, object]:
    body: dict[str, object] = {"model": model, "prompt": prompt, **_STREAM, **sampling}
    schema = _schema(request.format)
    if schema is not None:
        body["json_schema"] = schema or {"type": "object"}
    if request.logprobs:
        body["n_probs"] = max(request.top_logprobs, 1)
    return body


def _template_kwargs(think: bool | str) -> dict[str, object]:  # noqa: FBT001 - as the API has it
    if isinstance(think, bool):
        return {"enable_thinking": think}
    return {"enable_thinking": True, "reasoning_effort": think}


def _schema(value: object) -> dict[str, object] | None:
    """Return the schema that ``format`` asks for: empty for any object, None for no constraint."""
    if value is None or value == "":
        return None
    if value == "json":
        return {}
    if isinstance(value, dict):
        return value
    raw = quoted(msgspec.json.encode(value).decode())
    raise InvalidFormat(f'invalid format: {raw}; expected "json" or a valid JSON Schema object')


def _message(message: Message) -> Turn:
    """Return a turn in OpenAI's shape; earlier thinking isn't sent."""
    turn: Turn = {
        "role": message.role,
        "content": _content(message.content, message.images),
    }
    if message.tool_calls:
        turn["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.tool_name:
        turn["name"] = message.tool_name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _tool_call(call: ToolCall) -> dict[str, object]:
    function = call.function
    arguments = msgspec.json.encode(function.arguments).decode()
    wire: dict[str, object] = {
        "index": function.index,
        "type": "function",
        "function": {"name": function.name, "arguments": arguments},
    }
    return {"id": call.id, **wire} if call.id else wire


def _content(text: str, images: Sequence[str]) -> str | list[dict[str, object]]:
    """Return a text, or parts if there are images or sounds."""
    if not images:
        return text
    parts: list[dict[str, object]] = [{"type": "text", "text": text}] if text else []
    return parts + [_medium(image) for image in images]


def _medium(text: str) -> dict[str, object]:
    """Return the part for one base64 text, by the signature of its bytes."""
    encoded = text.replace("\r", "").replace("\n", "")
    head = base64.b64decode(encoded[:_SNIFF_CHARS])
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}
    if head[:3] == b"ID3" or head[:2] in {b"\xff\xfb", b"\xff\xf3", b"\xff\xf2"}:
        return {"type": "input_audio", "input_audio": {"data": encoded, "format": "mp3"}}
    return {
        "type": "image_url",
        "image_url": {"url": f"data:{_image_type(head)};base64,{encoded}"},
    }


def _image_type(head: bytes) -> str:
    if head.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if head.startswith(b"GIF8"):
        return "image/gif"
    if head.startswith(b"RIFF"):
        return "image/webp"
    return "image/bmp" if head.startswith(b"BM") else "image/png"
