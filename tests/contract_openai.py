"""What OpenAI's answers look like, Responses apart, as types that forbid anything else.

As the official Python package reads them (openai 3.57). Fields that only llama-server has are
marked as such (b11434).
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from tests.contract import Closed, Count, Positive, Text, Vector


class OpenAIProblem(Closed, kw_only=True):
    """What went wrong."""

    message: Text
    type: Text
    param: str | None
    code: str | None


class OpenAIFailure(Closed, kw_only=True):
    """Every error of ``/v1`` but those of ``/v1/messages``."""

    error: OpenAIProblem


class Model(Closed, kw_only=True):
    """A model of ``/v1/models``."""

    id: Text
    object: Literal["model"]
    created: Positive
    owned_by: Text


class ModelList(Closed, kw_only=True):
    """``/v1/models``."""

    object: Literal["list"]
    data: list[Model]


class Usage(Closed, kw_only=True):
    """Tokens of an answer."""

    prompt_tokens: Count
    total_tokens: Positive
    completion_tokens: Count | UnsetType = UNSET
    prompt_tokens_details: dict[str, int] | UnsetType = UNSET
    completion_tokens_details: dict[str, int] | UnsetType = UNSET


class CalledFunction(Closed, kw_only=True):
    """A call with arguments as text; in a stream each comes in pieces."""

    name: Text | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class OpenAICall(Closed, kw_only=True):
    """One call of a message, or a piece of it."""

    function: CalledFunction
    index: Count | UnsetType = UNSET
    id: Text | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class OpenAIMessage(Closed, kw_only=True):
    """A message or a delta; the name of the thought is llama-server's, or Ollama's."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[OpenAICall] | UnsetType = UNSET


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Choice(Closed, kw_only=True):
    """A choice of a whole chat completion."""

    index: Count
    message: OpenAIMessage
    finish_reason: FinishReason
    logprobs: dict[str, Any] | UnsetType | None = UNSET


class ChunkChoice(Closed, kw_only=True):
    """A choice of a chunk."""

    index: Count
    delta: OpenAIMessage
    finish_reason: FinishReason | None
    logprobs: dict[str, Any] | UnsetType | None = UNSET


class TextChoice(Closed, kw_only=True):
    """A choice of a text completion."""

    index: Count
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: dict[str, Any] | None


class _Completion(Closed, kw_only=True):
    id: Text
    created: Positive
    model: Text
    system_fingerprint: Text
    usage: Usage | UnsetType | None = UNSET
    timings: dict[str, float] | UnsetType = UNSET
    """llama-server's."""


class ChatCompletion(_Completion, kw_only=True):
    """``/v1/chat/completions``, whole."""

    object: Literal["chat.completion"]
    choices: Annotated[list[Choice], Meta(min_length=1)]


class ChatChunk(_Completion, kw_only=True):
    """``/v1/chat/completions``, an event."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]


class TextCompletion(_Completion, kw_only=True):
    """``/v1/completions``, whole or an event."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class OpenAIEmbedding(Closed, kw_only=True):
    """A vector: numbers, or the same in base64; then llama-server says so."""

    object: Literal["embedding"]
    index: Count
    embedding: Vector | Text
    encoding_format: Literal["base64"] | UnsetType = UNSET


class OpenAIEmbeddings(Closed, kw_only=True):
    """``/v1/embeddings``."""

    object: Literal["list"]
    model: Text
    data: list[OpenAIEmbedding]
    usage: Usage


class Transcription(Closed):
    """``/v1/audio/transcriptions``; ``type`` is llama-server's, and Ollama has only the text."""

    text: str
    type: Literal["transcript.text.done"] | UnsetType = UNSET
    usage: dict[str, Any] | UnsetType = UNSET
