"""A child's output, thinned where it comes faster than anyone could read it.

What is read line by line costs the event loop some 10 µs a line, so a child that prints 100 MB a
second would hold up every stream, or be held up itself by a full pipe. Past a pace its output is
only counted and dropped; the last piece before a pause or the end is kept, since a child that dies
or hangs says why in its last lines.
"""

from collections.abc import AsyncIterator, Callable

BURST_BYTES = 8 << 20
"""Read in full at any speed: the log of a large load has some 1 MB."""

PACE_BYTES = 1 << 20
"""Read in full of each second."""


class Pace:
    """How much may be read in full at a time; it fills up again as time passes."""

    def __init__(self, now_s: float) -> None:
        self._left_bytes = float(BURST_BYTES)
        self._at_s = now_s

    def admits(self, n_bytes: int, now_s: float) -> bool:
        """Count ``n_bytes`` and return True if there is room for them."""
        filled = self._left_bytes + (now_s - self._at_s) * PACE_BYTES
        self._left_bytes = min(float(BURST_BYTES), filled)
        self._at_s = now_s
        if n_bytes > max(0.0, self._left_bytes):
            return False
        self._left_bytes -= n_bytes
        return True


async def paced(
    parts: AsyncIterator[bytes], *, kept: bytes | None, clock: Callable[[], float]
) -> AsyncIterator[tuple[int, bytes]]:
    """Yield each of ``parts`` with the number of lines that were dropped before it.

    Args:
        parts: output as it comes, cut anywhere; an empty one where nothing comes for a moment.
        kept: a part that holds this is never dropped.
        clock: returns seconds.
    """
    pace = Pace(clock())
    n_dropped, held = 0, b""
    async for part in parts:
        if pace.admits(len(part), clock()) or (kept is not None and kept in part):
            if held:
                yield n_dropped, held
                n_dropped, held = 0, b""
            if part:
                yield 0, part
        else:
            n_dropped += held.count(b"\n")
            held = part
    if held:
        yield n_dropped, held
