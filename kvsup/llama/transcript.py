"""What a client has had of a stream of llama-server, over all processes that it came from.

Three shapes of events are read (tools/server/server-task.cpp, ``to_json_oaicompat_chat``,
``to_json_oaicompat``, ``to_json_non_oaicompat``; b10434, b11434): ``/v1/chat/completions``,
``/v1/completions``, and ``/completion`` with its other names. Streams of all other routes are
opaque: kvsup knows whether anything came and whether it has ended, and no more.
"""

import re
from dataclasses import dataclass, field
from io import StringIO

import msgspec

from kvsup.llama.wire import Frame

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
NATIVE = frozenset({"/completion", "/completions", "/infill"})

DONE = b"[DONE]"
DATA = b"data: "

IDENTITY = ("id", "created", "model", "system_fingerprint")
"""The members that are the same in all events of a stream of ``/v1``, but for ``created``."""

_ENDS = (
    b"data: [DONE]",
    b'data: {"error":',
    b"event: error",
    b"event: response.completed",
    b"event: response.incomplete",
    b"event: response.failed",
    b"event: message_stop",
)
_PRELUDES = (b"event: response.created\n", b"event: response.in_progress\n")
"""What ``/v1/responses`` says before anything is generated."""

_RESPONSE_ID = re.compile(rb'"response":\{"id":("[^"]*")')


class _Function(msgspec.Struct, frozen=True):
    name: str = ""
    arguments: str = ""


class _Call(msgspec.Struct, frozen=True):
    index: int = 0
    id: str | None = None
    function: _Function = _Function()


class _Delta(msgspec.Struct, frozen=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct, frozen=True):
    """One choice of an event of ``/v1``; ``text`` is of completions, ``delta`` of chats."""

    index: int = 0
    delta: _Delta = _Delta()
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Progress(msgspec.Struct, frozen=True):
    total: int = 0
    cache: int = 0
    processed: int = 0
    time_ms: float = 0.0


class _Timings(msgspec.Struct, frozen=True):
    predicted_n: int = 0
    predicted_ms: float = 0.0


class _Event(msgspec.Struct, frozen=True):
    id: str | None = None
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    choices: list[_Choice] | None = None
    index: int = 0
    content: str = ""
    tokens: list[int] = []
    stop: bool | None = None
    stop_type: str = "none"
    tokens_predicted: int = 0
    tokens_evaluated: int | None = None
    completion_probabilities: list[msgspec.Raw] = []
    prompt_progress: _Progress | None = None
    timings: _Timings | None = None
    error: msgspec.Raw | None = None


_REASONING = b"reasoning_content"

_MAX_TEXTS = 1024
"""How many texts wait to be read; they are read sooner where anybody asks."""

_decode = msgspec.json.Decoder(_Event).decode


def prelude(event: bytes) -> tuple[bytes, bytes] | None:
    """Return the kind of an event that comes before anything is generated, and its response's id.

    None for all other events.
    """
    found = _RESPONSE_ID.search(event) if event.startswith(_PRELUDES) else None
    return (event.partition(b"\n")[0], found[1]) if found else None


@dataclass(slots=True)
class ToolCall:
    """One tool call as far as it was delivered; a later name is the whole name, grown longer."""

    id: str | None = None
    name: str = ""
    arguments: StringIO = field(default_factory=StringIO)


@dataclass(slots=True)
class Answer:
    """One choice, as far as it was delivered."""

    content: StringIO = field(default_factory=StringIO)
    """The text: of the message, or of the completion."""
    reasoning: StringIO = field(default_factory=StringIO)
    calls: dict[int, ToolCall] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    """Ids, which only ``/completion`` tells; a character of several tokens shows its last one."""
    n_tokens: int = 0
    """How many were generated; a chat shows only those that gave text."""
    n_silent: int = 0
    """How many of them came after the last text and gave none: the end, the start of a stop word.

    A chat does not show them.
    """
    n_logprobs: int = 0
    has_role: bool = False
    finish_reason: str | None = None

    @property
    def has_all_token_ids(self) -> bool:
        """Say whether ``tokens`` are all that were generated."""
        return 0 < len(self.tokens) == self.n_tokens

    @property
    def n_spoken(self) -> int:
        """Return how many tokens the delivered text is of."""
        return self.n_tokens - self.n_silent

    @property
    def is_empty(self) -> bool:
        """Say whether nothing that matters was delivered."""
        return not (
            self.content.tell()
            or self.reasoning.tell()
            or self.calls
            or self.tokens
            or self.n_logprobs
            or self.finish_reason
        )

    def add(self, choice: _Choice) -> None:
        """Read what an event of ``/v1`` adds."""
        delta = choice.delta
        self.has_role |= delta.role is not None
        self.content.write(delta.content or choice.text or "")
        self.reasoning.write(delta.reasoning_content or "")
        for piece in delta.tool_calls or ():
            call = self.calls.setdefault(piece.index, ToolCall())
            call.id = call.id or piece.id
            call.name = piece.function.name or call.name
            call.arguments.write(piece.function.arguments)
        self.n_logprobs += len(choice.logprobs.content or ()) if choice.logprobs else 0
        self.finish_reason = choice.finish_reason or self.finish_reason
        if choice.finish_reason is not None:
            return
        if choice.text is not None:
            self._count(1, is_silent=not choice.text)
        elif delta.content or delta.reasoning_content or delta.tool_calls:
            self._count(1, is_silent=False)

    def add_native(self, event: _Event) -> None:
        """Read what an event of ``/completion`` adds."""
        self.content.write(event.content)
        self.tokens += event.tokens
        self.n_logprobs += len(event.completion_probabilities)
        if event.stop is False:
            self._count(event.tokens_predicted - self.n_tokens, is_silent=not event.content)
        else:  # response_fields may leave it out of the last event
            self.finish_reason = event.stop_type

    def add_texts(self, key: bytes, text: str, n: int) -> None:
        """Read ``n`` events of ``/v1`` that have nothing but a part of ``text`` at ``key``."""
        (self.reasoning if key == _REASONING else self.content).write(text)
        self._count(n, is_silent=False)

    def _count(self, n: int, *, is_silent: bool) -> None:
        self.n_tokens += n
        self.n_silent = self.n_silent + n if is_silent else 0


class Transcript:
    """Reads the complete events of a stream as they were delivered."""

    def __init__(self, path: str, *, n_answers: int = 1) -> None:
        """Make an empty one.

        Args:
            path: the route.
            n_answers: how many answers a stream of ``/completion`` holds; those of ``/v1`` say
                their end.
        """
        self._is_opaque = path not in NATIVE and path not in {CHAT, TEXT}
        self._answers: dict[int, Answer] = {}
        self._texts: list[bytes] = []
        """Those of the last events, as JSON without quotes, which wait to be read together."""
        self.identity: dict[str, object] = {}
        """The members ``IDENTITY`` of the first event."""
        self.prompt_tokens: int | None = None
        """The length of the prompt, where an event told."""
        self.cached_tokens: int | None = None
        self.processed_tokens = -1
        """How much of the prompt the last progress event said was read; -1 before any."""
        self.prompt_ms = 0.0
        self.predicted_ms = 0.0
        self.n_closings = 0
        """How many events without choices, which hold the counts, were delivered."""
        self.has_continued = False
        """Whether a part of it is a continuation, which a replay would not say."""
        self.is_complete = False
        self.has_events = False
        """Whether any event was delivered, comments aside."""
        self._has_delivered_opaque = False
        self.preludes: dict[bytes, bytes] = {}
        """Which of them ``/v1/responses`` has sent, and the id that they gave the response."""
        self._frame: Frame | None = None
        """Of the last event, if it had nothing but a text at ``_framed``: an index and a key."""
        self._framed = (0, b"")
        self._is_native = path in NATIVE
        self._n_answers = n_answers

    @property
    def answers(self) -> dict[int, Answer]:
        """Return the choices by their index."""
        self._read_texts()
        return self._answers

    @property
    def is_opaque(self) -> bool:
        """Say whether nobody can read it: another route, or what is no event."""
        self._read_texts()
        return self._is_opaque

    @property
    def has_delivered_opaque(self) -> bool:
        """Say whether anything was delivered that nobody can read."""
        self._read_texts()
        return self._has_delivered_opaque

    @property
    def has_delivered(self) -> bool:
        """Say whether anything that matters was delivered: not roles, not progress."""
        return self.has_delivered_opaque or any(not a.is_empty for a in self.answers.values())

    @property
    def n_tokens(self) -> int:
        """Return how many tokens were delivered, of all choices."""
        return sum(answer.n_tokens for answer in self.answers.values())

    def answer(self, index: int) -> Answer:
        """Return the choice with this index."""
        return self.answers.setdefault(index, Answer())

    def add(self, block: bytes) -> None:
        """Read complete events, each with its blank line."""
        found = None if self._frame is None else self._frame.texts(block)
        if found is None:
            self._read_texts()
            self._add_events(block)
            return
        self._texts += found
        if len(self._texts) >= _MAX_TEXTS:
            self._read_texts()

    def _read_texts(self) -> None:
        """Read the events that stood in the frame since the last call."""
        texts, self._texts = self._texts, []
        if not texts:
            return
        index, key = self._framed
        try:
            text = msgspec.json.decode(b'"%b"' % b"".join(texts), type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._is_opaque = self._has_delivered_opaque = True
        else:
            self._answers.setdefault(index, Answer()).add_texts(key, text, len(texts))

    def _add_events(self, block: bytes) -> None:
        last: tuple[bytes, _Event] | None = None
        for event in block.split(b"\n\n"):
            if not event or event.startswith(b":"):
                continue
            self.has_events = True
            self.is_complete |= event.startswith(_ENDS)
            if self._is_opaque:
                self._add_opaque(event)
            elif event.startswith(DATA) and (payload := event[6:]) != DONE:
                read = self._add_payload(payload)
                last = None if read is None else (payload, read)
        self._frame = None if last is None else self._frame_of(*last)

    def _add_opaque(self, event: bytes) -> None:
        if found := prelude(event):
            self.preludes.setdefault(*found)
        else:
            self._has_delivered_opaque = True

    def _add_payload(self, payload: bytes) -> _Event | None:
        """Read one event of an answer; return it unless it is of something else."""
        try:
            event = _decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._is_opaque = self._has_delivered_opaque = True
            return None
        if event.error is not None:
            return None
        if not self.identity:
            members = {name: getattr(event, name) for name in IDENTITY}
            self.identity = {name: value for name, value in members.items() if value is not None}
        if event.timings is not None:
            self.predicted_ms = event.timings.predicted_ms
        if event.tokens_evaluated is not None:
            self.prompt_tokens = event.tokens_evaluated
        if event.prompt_progress is not None:
            self._add_progress(event.prompt_progress)
            return None
        self.n_closings += event.choices == []
        for choice in event.choices or ():
            self.answer(choice.index).add(choice)
        if self._is_native:
            self.answer(event.index).add_native(event)
            n_ended = sum(answer.finish_reason is not None for answer in self._answers.values())
            self.is_complete |= n_ended >= self._n_answers
        return event

    def _frame_of(self, payload: bytes, event: _Event) -> Frame | None:
        """Return the frame of an event that has nothing but the text of one choice to tell."""
        choices = event.choices or ()
        if len(choices) != 1 or event.timings is not None:
            return None
        choice, delta = choices[0], choices[0].delta
        if choice.finish_reason is not None or choice.logprobs or delta.tool_calls:
            return None
        texts = {
            b"text": choice.text,
            b"content": delta.content,
            _REASONING: delta.reasoning_content,
        }
        keys = [key for key, text in texts.items() if text]
        if len(keys) != 1:
            return None
        self._framed = (choice.index, keys[0])
        return Frame.of(payload, keys[0])

    def _add_progress(self, progress: _Progress) -> None:
        self.prompt_tokens = progress.total
        if self.cached_tokens is None:
            self.cached_tokens = progress.cache
        self.processed_tokens = max(self.processed_tokens, progress.processed)
        self.prompt_ms = progress.time_ms
