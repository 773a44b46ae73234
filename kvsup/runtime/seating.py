"""Gives a new conversation an empty slot, so that it pushes no other one out of its own.

llama-server takes the slot that has most in common with a prompt, from 10 % of it on, though
another one is empty (``server_context::get_available_slot``, b11434). So two conversations with one
long system prompt take turns in one slot, and read their own parts again each time
(``docs/decisions/0020``).
"""

from collections.abc import Awaitable, Callable

from kvsup.llama.opening import opening
from kvsup.runtime.slots import TEMPLATED, Slot, Slots
from kvsup.runtime.upstream import Upstream

_MAX_KNOWN = 4096
"""Conversations known of one process; after so many, slots have long been full."""


class Seating:
    """The empty slots of one process; it looks no more once there are none."""

    def __init__(self, upstream: Upstream, slots: Slots, *, n_slots: int, n_before: int) -> None:
        """Seat conversations whose first ``n_before`` messages of a user are the model's."""
        self._upstream = upstream
        self._slots = slots
        self._n_before = n_before
        self._known: set[str] = set()
        self._may_be_empty = n_slots > 1

    async def seat(self, path: str, body: Callable[[], Awaitable[bytes]]) -> int | None:
        """Return the slot that a request should name; None where it is llama-server's choice.

        Only while nothing else runs: a request that names a slot which another one takes before it
        waits for that one's end.

        Raises:
            UpstreamError: llama-server has gone.
        """
        if not self._may_be_empty or path != TEMPLATED:
            return None
        key = opening(await body(), n_before=self._n_before)
        if key is None:
            return None
        is_new, is_first = key not in self._known, not self._known
        self._known.add(key)
        self._may_be_empty = len(self._known) < _MAX_KNOWN
        if not is_new or is_first or self._upstream.n_open:
            return None
        slots = await self._slots.all()
        empty = [slot.id for slot in slots if _is_empty(slot)]
        self._may_be_empty = bool(empty)
        is_busy = self._upstream.n_open or any(slot.is_processing for slot in slots)
        return None if is_busy or not empty else empty[0]


def _is_empty(slot: Slot) -> bool:
    return not slot.is_processing and not slot.n_prompt_tokens
