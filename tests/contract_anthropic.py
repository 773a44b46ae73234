"""What Anthropic's messages look like, as types that forbid anything else, told by their type.

As the official Python package reads them (anthropic 2.13).
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from tests.contract import Closed, Count, Positive, Text, Typed


class TextBlock(Typed, tag="text"):
    """A text."""

    text: str


class ThinkingBlock(Typed, tag="thinking"):
    """A thought."""

    thinking: str
    signature: str


class ToolUseBlock(Typed, tag="tool_use"):
    """A call."""

    id: Text
    name: Text
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class AnthropicUsage(Closed):
    """Tokens of a message; those that were cached are not among the input's."""

    input_tokens: Count
    output_tokens: Count
    cache_creation_input_tokens: Count | UnsetType = UNSET
    cache_read_input_tokens: Count | UnsetType = UNSET


class AnthropicMessage(Closed):
    """``/v1/messages``, whole or as it begins."""

    id: Text
    type: Literal["message"]
    role: Literal["assistant"]
    model: Text
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: AnthropicUsage


class TokenCount(Closed):
    """``/v1/messages/count_tokens``."""

    input_tokens: Positive


class AnthropicProblem(Closed):
    """What went wrong."""

    type: Text
    message: Text


class AnthropicFailure(Closed):
    """Every error of ``/v1/messages``."""

    type: Literal["error"]
    error: AnthropicProblem
    request_id: Annotated[str, Meta(pattern=r"^req_")]


class MessageStart(Typed, tag="message_start"):
    """The first event."""

    message: AnthropicMessage


class BlockStart(Typed, tag="content_block_start"):
    """A block begins."""

    index: Count
    content_block: Block


class TextPiece(Typed, tag="text_delta"):
    """A piece of a text."""

    text: str


class ThinkingPiece(Typed, tag="thinking_delta"):
    """A piece of a thought."""

    thinking: str


class SignaturePiece(Typed, tag="signature_delta"):
    """The end of a thought."""

    signature: str


class InputPiece(Typed, tag="input_json_delta"):
    """A piece of the arguments of a call."""

    partial_json: str


class BlockDelta(Typed, tag="content_block_delta"):
    """A piece of a block."""

    index: Count
    delta: TextPiece | ThinkingPiece | SignaturePiece | InputPiece


class BlockStop(Typed, tag="content_block_stop"):
    """A block is whole."""

    index: Count


class MessageChange(Closed):
    """Why a message ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Typed, tag="message_delta"):
    """The message is whole."""

    delta: MessageChange
    usage: AnthropicUsage


class MessageStop(Typed, tag="message_stop"):
    """The last event."""


class Ping(Typed, tag="ping"):
    """Nothing yet."""


MessageEvent = (
    MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping
)
