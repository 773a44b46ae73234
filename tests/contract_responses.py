"""What OpenAI's Responses look like, as types that forbid anything else, told by their type.

As the official Python package reads them (openai 3.57), with thoughts as llama-server and Ollama
tell them.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from tests.contract import Closed, Count, Positive, Text, Typed

Seconds = Annotated[float, Meta(gt=1_700_000_000)]
"""Since 1970, and not a time that nobody set."""


class OutputText(Typed, tag="output_text"):
    """A text of a message."""

    text: str
    annotations: list[Any]
    logprobs: list[Any]


class ReasoningText(Typed, tag="reasoning_text"):
    """A thought as it was thought."""

    text: str


class SummaryText(Typed, tag="summary_text"):
    """A thought as Ollama tells it."""

    text: str


class MessageItem(Typed, tag="message"):
    """A message of the output."""

    id: Text
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class ReasoningItem(Typed, tag="reasoning"):
    """A thought of the output."""

    id: Text
    summary: list[SummaryText]
    content: list[ReasoningText] | UnsetType = UNSET
    encrypted_content: str | UnsetType | None = UNSET
    status: Literal["in_progress", "completed", "incomplete"] | UnsetType = UNSET


class CallItem(Typed, tag="function_call"):
    """A call of the output."""

    id: Text
    call_id: Text
    name: Text
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"]


Item = MessageItem | ReasoningItem | CallItem
Part = OutputText | ReasoningText | SummaryText


class ResponseUsage(Closed):
    """Tokens of a response."""

    input_tokens: Count
    output_tokens: Count
    total_tokens: Positive
    input_tokens_details: dict[str, int]
    output_tokens_details: dict[str, int]


class Incomplete(Closed):
    """Why a response ended before its end."""

    reason: Literal["max_output_tokens", "content_filter"]


class Response(Closed):
    """``/v1/responses``, whole or within an event; what it was asked for is echoed."""

    id: Text
    object: Literal["response"]
    created_at: Seconds
    completed_at: Seconds | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: Text
    output: list[Item]
    usage: ResponseUsage | None
    error: dict[str, Any] | None
    incomplete_details: Incomplete | None
    background: bool
    instructions: str | None
    max_output_tokens: Positive | None
    max_tool_calls: Positive | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any] | None
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: Count
    top_p: float | None
    truncation: Literal["auto", "disabled"]
    user: str | None


class _Event(Typed):
    sequence_number: Count


class _Placed(_Event):
    item_id: Text
    output_index: Count


class _InPart(_Placed):
    content_index: Count


class Created(_Event, tag="response.created"):
    """The first event."""

    response: Response


class InProgress(_Event, tag="response.in_progress"):
    """The second event."""

    response: Response


class Completed(_Event, tag="response.completed"):
    """The last event; ``timings`` are llama-server's."""

    response: Response
    timings: dict[str, float] | UnsetType = UNSET


class Cut(_Event, tag="response.incomplete"):
    """The last event of a response that a limit has cut."""

    response: Response
    timings: dict[str, float] | UnsetType = UNSET


class ItemAdded(_Event, tag="response.output_item.added"):
    """An item begins."""

    output_index: Count
    item: Item


class ItemDone(_Event, tag="response.output_item.done"):
    """An item is whole."""

    output_index: Count
    item: Item


class PartAdded(_InPart, tag="response.content_part.added"):
    """A part of an item begins."""

    part: Part


class PartDone(_InPart, tag="response.content_part.done"):
    """A part of an item is whole."""

    part: Part


class TextDelta(_InPart, tag="response.output_text.delta"):
    """A piece of a text."""

    delta: str
    logprobs: list[Any]


class TextDone(_InPart, tag="response.output_text.done"):
    """A whole text."""

    text: str
    logprobs: list[Any]


class ThoughtDelta(_InPart, tag="response.reasoning_text.delta"):
    """A piece of a thought."""

    delta: str


class ThoughtDone(_InPart, tag="response.reasoning_text.done"):
    """A whole thought."""

    text: str


class _InSummary(_Placed):
    summary_index: Count


class SummaryPartAdded(_InSummary, tag="response.reasoning_summary_part.added"):
    """A part of a summary begins."""

    part: SummaryText


class SummaryPartDone(_InSummary, tag="response.reasoning_summary_part.done"):
    """A part of a summary is whole."""

    part: SummaryText


class SummaryDelta(_InSummary, tag="response.reasoning_summary_text.delta"):
    """A piece of a summary."""

    delta: str


class SummaryDone(_InSummary, tag="response.reasoning_summary_text.done"):
    """A whole summary."""

    text: str


class ArgumentsDelta(_Placed, tag="response.function_call_arguments.delta"):
    """A piece of the arguments of a call."""

    delta: str


class ArgumentsDone(_Placed, tag="response.function_call_arguments.done"):
    """The whole arguments of a call."""

    name: Text
    arguments: str


ResponseEvent = (
    Created | InProgress | Completed | Cut | ItemAdded | ItemDone | PartAdded | PartDone
    | TextDelta | TextDone | ThoughtDelta | ThoughtDone | SummaryPartAdded | SummaryPartDone
    | SummaryDelta | SummaryDone | ArgumentsDelta | ArgumentsDone
)  # fmt: skip
