"""What Ollama's documented answers look like, as types that forbid anything else.

They are those of its server at 2026-08 (``api/types.go``): a field that is zero, empty or null
there is absent. Fields that only kvsup has are marked as such. ``contract_openai.py``,
``contract_responses.py`` and ``contract_anthropic.py`` hold the other APIs.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(gt=0)]
Text = Annotated[str, Meta(min_length=1)]
Time = Annotated[datetime, Meta(tz=True)]
Vector = Annotated[list[float], Meta(min_length=1)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Closed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An object that has these members and no other."""


class Typed(Closed, tag_field="type"):
    """One that its ``type`` tells from others."""


class Failure(Closed, kw_only=True):
    """Every error."""

    error: Text


class Progress(Closed, kw_only=True):
    """The last line of a pull, a push or a creation."""

    status: Literal["success"]


class Function(Closed, kw_only=True):
    """A call, with arguments as an object."""

    index: Count
    name: Text
    arguments: dict[str, Any]


class ToolCall(Closed, kw_only=True):
    """One call of a message; ``index`` is kvsup's, for a client that reads it there."""

    id: Text
    function: Function
    index: Count | UnsetType = UNSET


class Message(Closed, kw_only=True):
    """A message or a piece of one; content is a text, never null."""

    role: Literal["assistant"]
    content: str
    thinking: Text | UnsetType = UNSET
    tool_calls: Annotated[list[ToolCall], Meta(min_length=1)] | UnsetType = UNSET


class _Piece(Closed, kw_only=True):
    model: Text
    created_at: Time
    done: bool
    logprobs: list[dict[str, Any]] | UnsetType = UNSET


class _End(_Piece, kw_only=True):
    done_reason: Literal["stop", "length", "load", "unload"]
    total_duration: Positive | UnsetType = UNSET
    load_duration: Positive | UnsetType = UNSET
    prompt_eval_count: Positive | UnsetType = UNSET
    prompt_eval_duration: Positive | UnsetType = UNSET
    eval_count: Positive | UnsetType = UNSET
    eval_duration: Positive | UnsetType = UNSET
    kvsup: dict[str, int] | UnsetType = UNSET


class ChatPiece(_Piece, kw_only=True):
    """A line of ``/api/chat`` that is not the last."""

    message: Message


class ChatEnd(_End, kw_only=True):
    """The last line of ``/api/chat``, or its whole answer."""

    message: Message


class GeneratePiece(_Piece, kw_only=True):
    """A line of ``/api/generate`` that is not the last."""

    response: str
    thinking: Text | UnsetType = UNSET


class GenerateEnd(_End, kw_only=True):
    """The last line of ``/api/generate``, or its whole answer."""

    response: str
    thinking: Text | UnsetType = UNSET
    context: Annotated[list[int], Meta(min_length=1)] | UnsetType = UNSET


class Embed(Closed, kw_only=True):
    """``/api/embed``."""

    model: Text
    embeddings: list[Vector]
    total_duration: Positive | UnsetType = UNSET
    load_duration: Positive | UnsetType = UNSET
    prompt_eval_count: Positive | UnsetType = UNSET


class OldEmbedding(Closed, kw_only=True):
    """``/api/embeddings``."""

    embedding: list[float]


class Details(Closed, kw_only=True):
    """What a listing says of the weights."""

    parent_model: str
    format: Literal["gguf"]
    family: Text
    families: list[str] | None
    parameter_size: Text
    quantization_level: Text


class TagDetails(Details, kw_only=True):
    """In ``/api/tags`` also two lengths."""

    context_length: Positive | UnsetType = UNSET
    embedding_length: Positive | UnsetType = UNSET


class Tag(Closed, kw_only=True):
    """An entry of ``/api/tags``."""

    name: Text
    model: Text
    modified_at: Time
    size: Positive
    digest: Digest
    details: TagDetails
    capabilities: list[str] | UnsetType = UNSET


class Tags(Closed, kw_only=True):
    """``/api/tags``."""

    models: list[Tag]


class Running(Closed, kw_only=True):
    """An entry of ``/api/ps``; those from ``kv_cache_type`` on are kvsup's."""

    name: Text
    model: Text
    size: Positive
    digest: Digest
    details: Details
    expires_at: Time
    size_vram: Count
    context_length: Positive
    kv_cache_type: Text
    kv_bytes: dict[str, Count]
    kv_warnings: list[Text] | UnsetType = UNSET
    given_up: list[Text] | UnsetType = UNSET
    kept: dict[str, Count] | UnsetType = UNSET
    cache_hit_rate: float | UnsetType = UNSET


class Ps(Closed, kw_only=True):
    """``/api/ps``."""

    models: list[Running]


class Tensor(Closed, kw_only=True):
    """A tensor of ``/api/show``."""

    name: Text
    type: Text
    shape: list[Positive]


class Turn(Closed, kw_only=True):
    """One of the messages of ``/api/show``."""

    role: Literal["system", "user", "assistant"]
    content: str


class Show(Closed, kw_only=True):
    """``/api/show``."""

    modelfile: Text
    template: Text
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: Time
    license: Text | UnsetType = UNSET
    parameters: Text | UnsetType = UNSET
    system: Text | UnsetType = UNSET
    messages: list[Turn] | UnsetType = UNSET
    projector_info: dict[str, Any] | UnsetType = UNSET
    tensors: list[Tensor] | UnsetType = UNSET


def sse_events(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name, empty if it has none, and the data of each event of a stream."""
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.split("\n") if line]
        fields = {name: value for name, _, value in lines}
        if fields:
            yield fields.pop("event", ""), fields.pop("data")
            assert not fields, block


def ndjson_lines(text: str) -> list[str]:
    """Return the lines of a stream; each ends in a newline and none is blank."""
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    assert all(json.loads(line) for line in lines)
    return lines
