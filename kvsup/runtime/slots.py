"""What is asked of one llama-server about its slots, and about the tokens of prompts."""

import re
from array import array
from typing import TypeVar

import anyio
import msgspec

from kvsup.runtime.upstream import Upstream
from kvsup.warmth import MIN_TOKENS, Tokens

T = TypeVar("T")

CALL_S = 60.0
"""Longest wait for one answer of llama-server about slots; it answers between two batches."""

_MIN_BODY_BYTES = 2 * MIN_TOKENS
"""A shorter one holds no prompt that is worth a look: few tokens have less than two bytes."""

_MAX_BODY_BYTES = 4 << 20
"""A larger one holds media, whose tokens are not known here, or more than is worth a look."""

_OWN_WAY = re.compile(rb'"cache_prompt"\s*:\s*false|"id_slot"|"lora"')

TEMPLATED = "/v1/chat/completions"
_PLAIN = ("/v1/completions", "/completion")


class Slot(msgspec.Struct):
    """One slot, as ``/slots`` tells."""

    id: int
    is_processing: bool
    n_prompt_tokens: int = 0


class SlotSaved(msgspec.Struct):
    """What came of a save."""

    n_saved: int
    n_written: int


class SlotRestored(msgspec.Struct):
    """What came of a restore."""

    n_restored: int


class _Prompt(msgspec.Struct):
    prompt: str | list[int] | None = None


class _Tokens(msgspec.Struct):
    tokens: list[int]


class Slots:
    """The slots of one llama-server; every call raises ``UpstreamError`` where it has gone."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def all(self) -> list[Slot]:
        """Return every slot; none where llama-server does not tell."""
        return await self._fetch("GET", "/slots", b"", list[Slot]) or []

    async def save(self, slot: int, name: str) -> SlotSaved | None:
        """Write a slot to the file ``name``; it waits while the slot is busy. None: refused."""
        return await self._act(slot, "save", name, SlotSaved)

    async def restore(self, slot: int, name: str) -> SlotRestored | None:
        """Put the file ``name`` into a slot; None where it is refused. Damage may kill (tried)."""
        return await self._act(slot, "restore", name, SlotRestored)

    async def prompt_of(self, path: str, body: bytes) -> "Tokens | None":
        """Return the tokens that a request makes its slot read; None where they are not known.

        Nor where it says itself what is done about slots.
        """
        if not _MIN_BODY_BYTES <= len(body) <= _MAX_BODY_BYTES or _OWN_WAY.search(body):
            return None
        if path == TEMPLATED:
            rendered = await self._fetch("POST", "/apply-template", body, _Prompt)
            text = rendered.prompt if rendered else None
        elif path in _PLAIN:
            try:
                text = msgspec.json.decode(body, type=_Prompt).prompt
            except msgspec.MsgspecError:
                return None
        else:
            return None
        if isinstance(text, list):
            return _as_tokens(text)
        if text is None or len(text) < MIN_TOKENS:
            return None
        asked = {"content": text, "add_special": True, "parse_special": True}
        answer = await self._fetch("POST", "/tokenize", msgspec.json.encode(asked), _Tokens)
        return _as_tokens(answer.tokens) if answer else None

    async def _act(self, slot: int, action: str, name: str, kind: type[T]) -> T | None:
        body = msgspec.json.encode({"filename": name})
        return await self._fetch("POST", f"/slots/{slot}?action={action}", body, kind)

    async def _fetch(self, method: str, target: str, body: bytes, kind: type[T]) -> T | None:
        """Return an answer; None where llama-server refuses, does not answer, or says other."""
        status, answer = 0, b""
        with anyio.move_on_after(CALL_S):
            status, answer = await self._upstream.fetch(method, target, body=body)
        if status != 200:
            return None
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.MsgspecError:
            return None


def _as_tokens(tokens: list[int]) -> "Tokens | None":
    try:
        return array("i", tokens)
    except OverflowError:  # a client's; llama-server refuses it
        return None
