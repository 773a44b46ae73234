"""Keeps the conversations of one llama-server beyond its end: slots into files, and back.

Before a request runs, the saved slot that shares most with its prompt is restored, unless a slot
holds as much. Slots are saved while nobody wants anything, and before the process is stopped. All
of it is help: whatever fails is told, and the request runs as it would have without.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import anyio

from kvsup import events
from kvsup.errors import UpstreamError
from kvsup.llama.slotfile import SlotFileError, least_share
from kvsup.plan import Plan
from kvsup.runtime.keepable import identity_of, is_useless, note_use
from kvsup.runtime.kvfiles import Entry, KVFiles
from kvsup.runtime.measured import Measured
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.seating import Seating
from kvsup.runtime.slots import CALL_S, Slot, Slots
from kvsup.runtime.tally import Tallies
from kvsup.runtime.upstream import Upstream
from kvsup.runtime.weightsums import WeightSums
from kvsup.warmth import (
    MIN_TOKENS,
    Reuse,
    Tokens,
    best,
    is_worth_waiting,
    n_common,
    n_reused,
    reread_s,
)

logger = logging.getLogger(__name__)

_LOOKS, _LET_GO_S = 50, 0.02
"""How often, and how long apart, is looked for the slot whose client has just left."""

_REST_S = 1.0
"""How long nobody has wanted anything when slots are saved."""


@dataclass(frozen=True, slots=True)
class Warmed:
    """What was done for one request."""

    prompt: Tokens
    entry: Entry | None
    """The saved slot that was restored for it."""
    n_expected: int
    """Tokens of its prompt that need not be read again."""
    is_alone: bool = False
    """Nothing else ran when it was restored, which might have taken its slot."""
    n_asked: int = 0
    """How many requests had come until then."""
    comes_twice: bool = False
    """It broke off when its prompt was read; what it finds in its slot then is no hit."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where saved slots are kept, for all models, and what came of them."""

    files: KVFiles
    sums: WeightSums
    remembered: Remembered
    tallies: Tallies = field(default_factory=Tallies)


class Warmth:
    """The saved slots of one process; ``prepare`` makes it ready before anything is asked."""

    def __init__(
        self,
        plan: Plan,
        upstream: Upstream,
        measured: Measured,
        *,
        store: Store,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._plan = plan
        self._upstream = upstream
        self._slots = Slots(upstream)
        self.seating = Seating(
            upstream,
            self._slots,
            n_slots=plan.model.num_parallel,
            n_before=sum(one.role == "user" for one in plan.model.messages),
        )
        self._measured = measured
        self._files = store.files
        self._store = store
        self._emit = emit
        self._identity: str | None = None
        self._n_asked = 0
        """How many requests have come."""
        self._is_use_known = False
        self._held: list[Tokens] = []
        """What its slots hold, as far as requests tell, the last one last."""
        self._saved_tokens: dict[int, int] = {}
        """Length of each slot as it was last saved or restored."""
        self._news = anyio.Event()

    @property
    def reuse(self) -> Reuse:
        """Return what of a saved slot this model takes up."""
        return self._plan.warmth.reuse

    async def run(self) -> None:
        """Save what has grown, as often as nobody wants anything for a moment."""
        await self.prepare()
        self._news.set()  # something may have run in the meantime
        least = self._plan.model.checkpoint_after_tokens
        while self._identity is not None and least:
            await self._news.wait()
            self._news = anyio.Event()
            with anyio.move_on_after(_REST_S):
                await self._news.wait()
                continue
            while self._upstream.n_open:  # noqa: ASYNC110 - a connection that closes tells nobody
                await anyio.sleep(_REST_S)
            with suppress(UpstreamError):
                await self.save(limit_s=CALL_S, is_waited_for=False, least_new_tokens=least)

    async def prepare(self) -> None:
        """Learn what its files must be of; some seconds for weights that are new here."""
        plan = self._plan
        if plan.slot_dir is None or is_useless(plan, self._store.remembered):
            return
        try:
            self._identity = await identity_of(plan, self._store.sums)
        except OSError as error:
            logger.warning("%s: no slot is saved: %s", plan.name, error)

    async def before(self, path: str, body: Callable[[], Awaitable[bytes]]) -> Warmed | None:
        """Restore what shares most with the prompt of a request; None if it is not known.

        Raises:
            UpstreamError: llama-server has gone.
        """
        self._n_asked += 1
        if self._identity is None:
            return None
        prompt = await self._slots.prompt_of(path, await body())
        if prompt is None:
            self._held.clear()  # it will lie in some slot
            return None
        entries = self._files.entries(self._plan.name, identity=self._identity)
        n_held = max((n_reused(prompt, held, self.reuse) for held in self._held), default=0)
        place = best(prompt, [entry.tokens for entry in entries], self.reuse)
        entry = None if place is None else entries[place]
        n_kept = 0 if entry is None else n_reused(prompt, entry.tokens, self.reuse)
        if entry is None or n_kept < n_held + MIN_TOKENS or not self._is_found(n_kept, prompt):
            return Warmed(prompt, None, n_held)
        slots = await self._slots.all()
        if not await self._restore(entry, [slot for slot in slots if not slot.is_processing]):
            return Warmed(prompt, None, n_held)
        is_alone = not any(slot.is_processing for slot in slots)
        return Warmed(prompt, entry, n_kept, is_alone, self._n_asked)

    def after(self, warmed: Warmed, n_cached: int | None) -> None:
        """Take note that a request ran, and what of its prompt was in its slot, if that is known.

        A saved slot that llama-server restored but did not use is of no use to anyone. Its model is
        asked for none any more, by this process or, where this build never used one of that
        architecture, a later one.
        """
        if warmed.comes_twice:
            self._measured.tally.n_cached_tokens -= len(warmed.prompt) - warmed.n_expected
        if (entry := warmed.entry) is not None:
            n_taken = warmed.n_expected if n_cached is None else min(n_cached, warmed.n_expected)
            self._measured.tally.n_restored_tokens += n_taken
            is_used = n_taken >= warmed.n_expected // 2
            is_sure = warmed.is_alone and warmed.n_asked == self._n_asked and n_cached is not None
            if is_sure and not (is_used and self._is_use_known):
                note_use(self._plan, self._store.remembered, is_used=is_used)
                self._is_use_known = True
            if is_sure and not is_used:
                self._files.drop(entry, f"{n_cached} of {warmed.n_expected} tokens were taken up")
                self._identity = None
        self._hold(warmed.prompt)
        self._news.set()

    def is_prompt_dear(self, warmed: Warmed, *, took_s: float) -> bool:
        """Say whether what was read of a prompt in ``took_s`` is saved before its answer goes on.

        Only where a prefix can be taken up: the answer begins with a token that is dropped.
        """
        least = self._plan.model.checkpoint_after_tokens
        n_new = len(warmed.prompt) - warmed.n_expected
        if not least or n_new < least or self.reuse != "prefix":
            return False
        size_bytes = self._size_bytes(len(warmed.prompt))
        speed = n_new / max(took_s, 1e-3)
        return is_worth_waiting(n_tokens=n_new, size_bytes=size_bytes, prompt_tokens_per_s=speed)

    async def checkpoint(self, warmed: Warmed) -> Warmed:
        """Save the slot that has read a prompt, once llama-server has let it go.

        Return what is known of the same request, which comes once more.

        Raises:
            UpstreamError: llama-server has gone.
        """
        again = replace(warmed, comes_twice=True)
        for _ in range(_LOOKS):
            for slot in await self._slots.all():
                if not slot.is_processing and slot.n_prompt_tokens >= len(warmed.prompt):
                    await self._save(slot, is_waited_for=True)
                    return again
            await anyio.sleep(_LET_GO_S)
        return again

    async def save(self, *, limit_s: float, is_waited_for: bool, least_new_tokens: int = 1) -> None:
        """Save each slot that holds something new, until ``limit_s`` have passed.

        Args:
            limit_s: seconds after which it is given up.
            is_waited_for: only what is far dearer to read again than to write.
            least_new_tokens: only slots that have grown by so many.

        Raises:
            UpstreamError: llama-server has gone.
        """
        if self._identity is None:
            return
        with anyio.move_on_after(limit_s):
            for slot in await self._slots.all():
                n_new = abs(self._n_tokens(slot) - self._saved_tokens.get(slot.id, 0))
                if slot.is_processing or not self._is_unsaved(slot) or n_new < least_new_tokens:
                    continue
                if not is_waited_for or self._is_worth_waiting(self._n_tokens(slot)):
                    await self._save(slot, is_waited_for=is_waited_for)

    async def _save(self, slot: Slot, *, is_waited_for: bool) -> None:
        """Save a slot; where somebody waits, not so that it outlives a crash of the machine."""
        if self._identity is None:  # a request that ran beside has shown that it is of no use
            return
        files, part = self._files, self._files.new_part()
        started_s = time.monotonic()
        try:
            if self._size_bytes(self._n_tokens(slot)) > files.room_bytes():
                return
            files.folder_of(self._plan.name)
            answer = await self._slots.save(slot.id, part)
            if answer is None or answer.n_saved < MIN_TOKENS:
                return
            entry = await files.keep(
                part,
                model=self._plan.name,
                identity=self._identity,
                reread_s=reread_s(answer.n_saved, self._prompt_tokens_per_s),
                must_sync=not is_waited_for,
            )
        except (OSError, SlotFileError) as error:
            logger.warning("%s: a slot could not be saved: %s", self._plan.name, error)
            return
        finally:
            files.remove_part(self._plan.name, part)
        self._saved_tokens[slot.id] = answer.n_saved
        if entry is not None:
            took_s = time.monotonic() - started_s
            self._emit(events.KVSaved(self._plan.name, answer.n_saved, answer.n_written, took_s))

    async def _restore(self, entry: Entry, free: list[Slot]) -> bool:
        """Put a saved slot into one of those that are ``free``; say whether it is there."""
        if not free:
            return False
        if not await self._files.is_whole(entry):
            self._files.drop(entry, "the file was damaged")
            return False
        slot = min(free, key=self._n_tokens)
        if self._is_unsaved(slot):
            await self._save(slot, is_waited_for=True)
        started_s = time.monotonic()
        try:
            answer = await self._slots.restore(slot.id, entry.path.name)
        except UpstreamError:
            self._files.drop(entry, "llama-server did not survive it")
            raise
        if answer is None or answer.n_restored != entry.sidecar.n_tokens:
            self._files.drop(entry, "llama-server did not take it")
            return False
        self._saved_tokens[slot.id] = answer.n_restored
        self._hold(entry.tokens)
        self._files.used(entry)
        took_s = time.monotonic() - started_s
        self._emit(events.KVRestored(self._plan.name, answer.n_restored, took_s))
        return True

    def _is_found(self, n_tokens: int, prompt: Tokens) -> bool:
        """Say whether llama-server surely chooses the slot that holds so much of a prompt."""
        if self._plan.model.num_parallel == 1:
            return True
        share = least_share(self._plan.argv)
        return share is not None and n_tokens > share * len(prompt)

    def _n_tokens(self, slot: Slot) -> int:
        """Return what a slot holds; after a restore llama-server tells 0 until it is used."""
        return slot.n_prompt_tokens or self._saved_tokens.get(slot.id, 0)

    def _is_unsaved(self, slot: Slot) -> bool:
        n_tokens = self._n_tokens(slot)
        return n_tokens >= MIN_TOKENS and n_tokens != self._saved_tokens.get(slot.id)

    def _hold(self, tokens: Tokens) -> None:
        """Take note that a slot holds ``tokens`` now, in the place of what they go on with."""
        kept = [held for held in self._held if n_common(held, tokens) < len(held) // 2]
        self._held = [*kept, tokens][-self._plan.model.num_parallel :]

    def _is_worth_waiting(self, n_tokens: int) -> bool:
        return is_worth_waiting(
            n_tokens=n_tokens,
            size_bytes=self._size_bytes(n_tokens),
            prompt_tokens_per_s=self._prompt_tokens_per_s,
        )

    def _size_bytes(self, n_tokens: int) -> int:
        """Return what a slot with so many tokens takes in a file."""
        all_tokens = self._plan.slot_tokens * self._plan.model.num_parallel
        return sum(self._measured.kv_bytes or (0, 0)) * n_tokens // max(1, all_tokens)

    @property
    def _prompt_tokens_per_s(self) -> float | None:
        speeds = [s.prompt_tokens_per_s for s in self._measured.speeds if s.prompt_tokens_per_s]
        return max(speeds, default=None)
