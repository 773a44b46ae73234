"""What llama-server sends, as far as kvsup reads it (b10434, b11434).

Texts stay ``msgspec.Raw``, JSON as it came, since they are copied into the answer and never read.
Unknown keys are skipped.
"""

import json
import re

import msgspec

NOTHING = msgspec.Raw(b"null")
"""A text that is absent."""


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Counts and times of one answer; ``cache_n + prompt_n`` is the length of the prompt."""

    cache_n: int = 0
    """Prompt tokens that were in the KV cache already."""
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


class Alternative(msgspec.Struct, frozen=True, gc=False):
    """One token that could have stood at a place."""

    token: str
    logprob: float
    token_bytes: list[int] = msgspec.field(name="bytes", default_factory=list)


class Logprob(msgspec.Struct, frozen=True, omit_defaults=True):
    """One token of the answer with its probability; written with Ollama's fields and order."""

    token: str
    logprob: float
    token_bytes: list[int] = msgspec.field(name="bytes", default_factory=list)
    top_logprobs: list[Alternative] = []


class Logprobs(msgspec.Struct, frozen=True):
    """The tokens behind one piece of a chat answer."""

    content: list[Logprob] = []


class FunctionPiece(msgspec.Struct, frozen=True, gc=False):
    """The name comes once, the arguments in pieces of JSON text."""

    name: str = ""
    arguments: str = ""


class ToolCallPiece(msgspec.Struct, frozen=True, gc=False):
    """A fragment of a tool call; ``id`` and name come with the first one of an index."""

    index: int = 0
    id: str | None = None
    function: FunctionPiece = FunctionPiece()


class Delta(msgspec.Struct, frozen=True):
    """What one event adds to the message."""

    content: msgspec.Raw = NOTHING
    reasoning_content: msgspec.Raw = NOTHING
    tool_calls: list[ToolCallPiece] | None = None


class Choice(msgspec.Struct, frozen=True):
    """One answer to the prompt; kvsup never asks for more than one."""

    delta: Delta = Delta()
    finish_reason: str | None = None
    """``stop``, ``length`` or ``tool_calls`` in the last event."""
    logprobs: Logprobs | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One event of a stream, of ``/v1/chat/completions`` or of ``/completion``.

    One type for both: their keys differ, and absent ones cost nothing. A chat's last event has a
    ``finish_reason``, and ``[DONE]`` follows; a completion's has ``stop``, and nothing follows.
    """

    choices: list[Choice] = []
    """The chat route's answer; empty on the other one."""
    content: msgspec.Raw = NOTHING
    """The completion route's text, as are the fields down to ``completion_probabilities``."""
    stop: bool = False
    stop_type: str = "none"
    """``eos``, ``word``, ``limit`` or ``none``."""
    completion_probabilities: list[Logprob] = []
    timings: Timings | None = None
    """In the last event."""
    error: msgspec.Raw = NOTHING
    """``{"code", "message", "type"}``, in place of everything else; nothing follows."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """What stands around the text of an event that has nothing but a text to tell.

    The events of an answer differ in their text alone, and once a second in ``created``. So an
    event that stands in the frame of the one before is known without being decoded, and its text
    is copied. That makes Ollama's line of a token in 1.4 µs instead of 3.2, and in 0.7 instead of
    2.0 where four come together (``docs/performance.md``).
    """

    before: bytes
    after: bytes
    between: bytes
    """Parts two texts: ``after`` and ``before``."""

    @classmethod
    def of(cls, payload: bytes, key: bytes) -> "Frame | None":
        """Return the frame in ``payload`` of the text at ``key``; None as for ``around``."""
        opening = b'"%b":"' % key
        found = _match_text(payload, payload.find(opening) + len(opening))
        return cls.around(payload, key, b'"%b"' % found[0]) if found else None

    @classmethod
    def around(cls, payload: bytes, key: bytes, text: bytes) -> "Frame | None":
        """Return the frame in ``payload`` of ``text``, a JSON string with quotes, at ``key``.

        None unless ``payload`` is of one line, and has key and text in it once.
        """
        before, _, after = payload.partition(b'"%b":%b' % (key, text))
        if not after or b"\n" in payload or b'"%b":' % key in before + after:
            return None
        before = b'data: %b"%b":"' % (before, key)
        after = b'"%b\n\n' % after
        return cls(before, after, after + before)

    def texts(self, data: bytes) -> list[bytes] | None:
        """Return the JSON texts, without quotes, of ``data`` if it is events in this frame.

        None if anything else is in it, or a text is empty or no JSON.
        """
        if not (data.startswith(self.before) and data.endswith(self.after)):
            return None
        texts = data[len(self.before) : -len(self.after)].split(self.between)
        return texts if all(map(_is_text, texts)) else None


_TEXT = re.compile(
    rb"""(?!\Z) [^"\\\x00-\x1f]* (?: \\ (?:["\\/bfnrt]|u00[0-9a-f]{2}) [^"\\\x00-\x1f]* )*""",
    re.VERBOSE,
)
"""Matches what llama-server writes between quotes: of ``\\u`` only control characters."""
_is_text = _TEXT.fullmatch
_match_text = _TEXT.match


def exceeds_context(body: bytes) -> bool:
    """Say whether an error answer means that the prompt is longer than the slot's context."""
    return b'"exceed_context_size_error"' in body


def error_message(body: bytes) -> str:
    """Return the message in an error answer or event, ``{"error": {"message": …}}``.

    Whatever is no such object is returned as text.
    """
    text = body.decode(errors="replace").strip()
    try:
        error = json.loads(text)["error"]
    except (ValueError, TypeError, KeyError):
        return text or "llama-server gave no reason"
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else text
