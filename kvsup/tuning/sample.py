"""What pairs are judged by: conversations as token ids, of which the assistant's are scored.

The built-in texts are our own, in ``texts/``: one file a kind, conversations parted by a line of
``=====``, the turns of each headed by ``### user`` and the like.
"""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import zip_longest
from typing import Any

import msgspec
from msgspec import Struct

from kvsup.errors import ConfigError
from kvsup.tuning.trial import Trial

KINDS = ("prose", "code", "dialogue", "tools")
"""Of the built-in conversations, in the order in which they alternate."""

LEAD_IN_TOKENS = 64
"""Of plain text, what stands before the first scored token of a chunk."""

CHUNK_CHARACTERS = 2000
"""Of plain text: some 500 tokens of English."""

_LONGER = "write some hundred words, or leave it out to score the built-in conversations"

_PARTING = re.compile(r"^=====\n", re.MULTILINE)
_HEADING = re.compile(r"^### (system|user|assistant|tool|tools)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in OpenAI's shape that end with the assistant's, or a plain text."""

    kind: str
    messages: tuple[dict[str, str], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    text: str = ""
    """All of it, where there are no messages."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One conversation as token ids."""

    kind: str
    tokens: tuple[int, ...]
    scored_from: int
    """Index of the first scored token; at least 1, since one must stand before it."""
    torn: tuple[int, ...] = ()
    """Indices from ``scored_from`` on of tokens that are part of a character, and not scored."""

    @property
    def scored(self) -> tuple[int, ...]:
        """Return the indices of the scored tokens."""
        return tuple(index for run in self.runs for index in run)

    @property
    def runs(self) -> tuple[range, ...]:
        """Return the indices of the scored tokens, parted where one is torn."""
        starts = (self.scored_from, *(index + 1 for index in self.torn))
        ends = (*self.torn, len(self.tokens))
        return tuple(range(*both) for both in zip(starts, ends, strict=True) if both[0] < both[1])

    @property
    def n_scored(self) -> int:
        """Return how many tokens are scored."""
        return len(self.tokens) - self.scored_from - len(self.torn)


class _Piece(Struct, frozen=True):
    id: int
    piece: str | tuple[int, ...]
    """Its text, or its bytes where they are no text."""

    @property
    def is_torn(self) -> bool:
        return not isinstance(self.piece, str)


class _Pieces(Struct, frozen=True):
    tokens: tuple[_Piece, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Passages whose kinds alternate, so that each prefix of them is a mixture too."""

    passages: tuple[Passage, ...]

    @property
    def n_scored(self) -> int:
        """Return how many tokens are scored."""
        return sum(passage.n_scored for passage in self.passages)

    @property
    def n_torn(self) -> int:
        """Return how many tokens are left out of what is scored, as parts of a character."""
        return sum(len(passage.torn) for passage in self.passages)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Return the scored tokens of each passage, as ``TokenScores.blocks`` wants them."""
        return tuple(passage.n_scored for passage in self.passages)

    @property
    def digest(self) -> str:
        """Return a SHA-256 of what is read and of what is scored."""
        sha = hashlib.sha256()
        for passage in self.passages:
            sha.update(array("q", (len(passage.tokens), passage.scored_from, *passage.tokens)))
            sha.update(array("q", passage.torn))
        return sha.hexdigest()

    def first(self, max_scored_tokens: int) -> "Sample":
        """Return a prefix with at most so many scored tokens; its last passage may be cut."""
        return Sample(tuple(_within(self.passages, max_scored_tokens)))


def built_in() -> tuple[Conversation, ...]:
    """Return the conversations that come with kvsup, kinds alternating."""
    by_kind = ([_parsed(kind, text) for text in _PARTING.split(_text(kind))] for kind in KINDS)
    return _alternating(by_kind)


def chat_prompts() -> tuple[str, ...]:
    """Return short prompts of users, for greedy answers."""
    return tuple(line for line in _text("prompts").splitlines() if line)


def from_text(text: str) -> tuple[Conversation, ...]:
    """Return a plain text in chunks of some 2000 characters, cut at the ends of lines.

    Of each chunk, the first 64 tokens are read only and the others scored.

    Raises:
        ConfigError: the text is blank.
    """
    if not text.strip():
        raise ConfigError(f"the text to score is blank: {_LONGER}")
    chunks, size = [""], 0
    for line in text.splitlines(keepends=True):
        for piece in _pieces(line):
            if size + len(piece) > CHUNK_CHARACTERS and size:
                chunks.append("")
                size = 0
            chunks[-1] += piece
            size += len(piece)
    return tuple(Conversation("text", text=chunk) for chunk in chunks if chunk.strip())


async def prepare(
    trial: Trial, conversations: Iterable[Conversation], *, max_scored_tokens: int
) -> Sample:
    """Return token ids by the model's own tokenizer and chat template.

    What stands before an answer is what the model would be given in a chat, with its tools where
    its template knows them; a model without a template gets the bare texts. Passages are cut to the
    context of the trial, and those that then have nothing to score are left out. So are tokens that
    are only a part of a character: llama-server tells no probabilities of a token that ends within
    one, and no grammar can force a token that completes none (b10434, b11434).

    Raises:
        TrialFailed: as ``Trial.ask``.
        ConfigError: nothing is left to score.
    """
    read: list[Passage] = []
    n_left = max_scored_tokens
    for conversation in conversations:
        if n_left <= 0:
            break
        passage = await _passage(trial, conversation)
        read.append(passage)
        n_left -= passage.n_scored
    passages = tuple(passage for passage in read if passage.n_scored)
    if not passages:
        raise ConfigError(_nothing(read, trial.plan.slot_tokens))
    return Sample(passages).first(max_scored_tokens)


async def prompt_of(trial: Trial, messages: Iterable[dict[str, str]], tools: object = ()) -> str:
    """Return the text that the model is given for ``messages``, up to where its answer begins.

    A model without a chat template gets the bare texts: llama-server would take ChatML for it
    (b11434), which it has never seen.
    """
    if trial.plan.file.template is None:
        return "".join(f"{message['content']}\n\n" for message in messages)
    body = {"messages": list(messages)} | ({"tools": tools} if tools else {})
    prompt: str = (await trial.ask("/apply-template", body))["prompt"]
    return prompt


async def _passage(trial: Trial, conversation: Conversation) -> Passage:
    if conversation.messages:
        *before, answer = conversation.messages
        prompt = await prompt_of(trial, before, conversation.tools)
        read = await _pieces_of(trial, prompt, parse_special=True)
        pieces = await _pieces_of(trial, prompt + answer["content"], parse_special=True)
        # The last token of the prompt may have merged with the first of the answer.
        scored_from = sum(1 for _ in _common(read, pieces))
    else:
        pieces = await _pieces_of(trial, conversation.text, parse_special=False)
        scored_from = LEAD_IN_TOKENS
    pieces = pieces[: trial.plan.slot_tokens]
    scored_from = min(max(scored_from, 1), len(pieces))
    torn = (i for i, piece in enumerate(pieces) if i >= scored_from and piece.is_torn)
    ids = tuple(piece.id for piece in pieces)
    return Passage(conversation.kind, ids, scored_from, tuple(torn))


async def _pieces_of(trial: Trial, text: str, *, parse_special: bool) -> tuple[_Piece, ...]:
    """Return tokens as llama-server itself makes them of a chat's prompt (b11434)."""
    body = {
        "content": text,
        "add_special": True,
        "parse_special": parse_special,
        "with_pieces": True,
    }
    answer: _Pieces = await trial.ask("/tokenize", body, shape=_Pieces)
    return answer.tokens


def _nothing(read: Sequence[Passage], slot_tokens: int) -> str:
    """Return why nothing of what was read is scored, and the mend."""
    longest = max(len(passage.tokens) for passage in read)
    if any(passage.torn for passage in read):
        return (
            "the text has nothing to score: this model's tokenizer takes each character apart; "
            "write in a language that it knows"
        )
    if longest >= slot_tokens:
        return (
            f"nothing is left to score within {slot_tokens} tokens of context: "
            "give the model a larger num_ctx"
        )
    return (
        f"the text has nothing to score: it has {longest} tokens, of which the first "
        f"{LEAD_IN_TOKENS} are only read; {_LONGER}"
    )


def _common(one: tuple[_Piece, ...], other: tuple[_Piece, ...]) -> Iterator[_Piece]:
    for a, b in zip(one, other, strict=False):
        if a.id != b.id:
            return
        yield a


def _within(passages: Iterable[Passage], n_left: int) -> Iterator[Passage]:
    for passage in passages:
        if n_left <= 0:
            return
        end = passage.scored[:n_left][-1] + 1
        torn = tuple(index for index in passage.torn if index < end)
        yield replace(passage, tokens=passage.tokens[:end], torn=torn)
        n_left -= passage.n_scored


def _pieces(line: str) -> Iterator[str]:
    for start in range(0, len(line), CHUNK_CHARACTERS):
        yield line[start : start + CHUNK_CHARACTERS]


def _alternating(groups: Iterable[Iterable[Conversation]]) -> tuple[Conversation, ...]:
    rounds = zip_longest(*groups)
    return tuple(one for round_ in rounds for one in round_ if one is not None)


def _parsed(kind: str, text: str) -> Conversation:
    """Return the conversation that ``text`` writes down."""
    _, *parts = _HEADING.split(text)
    turns = [(role, part.strip("\n")) for role, part in zip(parts[::2], parts[1::2], strict=True)]
    return Conversation(
        kind,
        tuple({"role": role, "content": content} for role, content in turns if role != "tools"),
        tuple(
            tool
            for role, content in turns
            if role == "tools"
            for tool in msgspec.json.decode(content)
        ),
    )


def _text(name: str) -> str:
    return resources.files("kvsup.tuning").joinpath("texts", f"{name}.txt").read_text("utf-8")
