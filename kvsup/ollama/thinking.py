"""Thinking parted from the text of an answer that llama-server gives as it is.

``/completion`` does not look for thoughts as the chat route does. Rules as in Ollama
(thinking/parser.go, 2026-08): only what begins with the opening tag is a thought, blanks behind
either tag are eaten, and if the prompt ends in the opening tag the answer begins with a thought.
"""

import msgspec

from kvsup.ollama.ndjson import encode
from kvsup.ollama.pieces import Answer, Piece

OPENING, CLOSING = "<think>", "</think>"
"""The tags of nearly all models that think."""


class ThoughtSplitter:
    """Parts the pieces of one answer."""

    def __init__(self, opening: str = OPENING, closing: str = CLOSING, *, prompt: str = "") -> None:
        self._opening = opening
        self._closing = closing
        self._part = self._skip_blanks_then_think if _ends_in(prompt, opening) else self._look
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Return what of the answer so far is new thought, and what is new content."""
        self._held += text
        thought, content, part = "", "", None
        while part is not self._part:
            part = self._part
            more_thought, more_content = part()
            thought += more_thought
            content += more_content
        return thought, content

    def finish(self) -> tuple[str, str]:
        """Return what was held back since a tag could have begun in it."""
        held, self._held = self._held, ""
        return (held, "") if self._part == self._think else ("", held)

    # One of these is the present part; each takes from what is held, and may name the next.

    def _look(self) -> tuple[str, str]:
        text = self._held.lstrip()
        if text.startswith(self._opening):
            self._held = text[len(self._opening) :]
            self._part = self._skip_blanks_then_think
        elif not self._opening.startswith(text):
            self._part = self._pass
        return "", ""

    def _skip_blanks_then_think(self) -> tuple[str, str]:
        self._held = self._held.lstrip()
        if self._held:
            self._part = self._think
        return "", ""

    def _think(self) -> tuple[str, str]:
        thought, tag, rest = self._held.partition(self._closing)
        if tag:
            self._held = rest
            self._part = self._skip_blanks_then_pass
            return thought, ""
        end = len(self._held) - _overlap(self._held, self._closing)
        thought, self._held = self._held[:end], self._held[end:]
        return thought, ""

    def _skip_blanks_then_pass(self) -> tuple[str, str]:
        self._held = self._held.lstrip()
        if self._held:
            self._part = self._pass
        return "", ""

    def _pass(self) -> tuple[str, str]:
        content, self._held = self._held, ""
        return "", content


class PartedAnswer(Answer):
    """The answer of a route that does not part thoughts from content, parted here."""

    def __init__(self, splitter: ThoughtSplitter, *, top_logprobs: int) -> None:
        super().__init__(top_logprobs=top_logprobs)
        self._splitter = splitter

    def texts(self, data: bytes) -> list[bytes] | None:  # noqa: ARG002 - each text must be looked at
        """Return None: the short cut is not for these answers."""
        return None

    def feed(self, data: bytes) -> list[Piece]:
        """Return the pieces of the events that ``data`` completes; raises as ``Answer.feed``."""
        return [parted for piece in super().feed(data) if (parted := self._parted(piece))]

    def finish(self) -> list[Piece]:
        """Return what was held back; raises as ``Answer.finish``."""
        pieces = super().finish()
        thought, content = self._splitter.finish()
        if thought or content:
            pieces.insert(0, Piece(encode(content), encode(thought)))
        return pieces

    def _parted(self, piece: Piece) -> Piece | None:
        thought, content = self._splitter.feed(msgspec.json.decode(piece.content, type=str))
        if not (thought or content or piece.logprobs):
            return None
        return Piece(encode(content), encode(thought), piece.calls, piece.logprobs)


def _ends_in(prompt: str, opening: str) -> bool:
    return prompt.rstrip().endswith(opening)


def _overlap(text: str, tag: str) -> int:
    """Return how many of the last characters of ``text`` may begin ``tag``."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if tag.startswith(text[-n:])), 0)
