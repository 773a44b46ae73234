"""The last lines of a child's log, within a bound, and readers that follow it."""

from collections import deque
from collections.abc import AsyncIterator

import anyio

MAX_BYTES = 512 << 10
"""Kept per instance; older lines go first."""


class Logbook:
    """A ring of lines by bytes; a slow reader loses lines, never the child its pace."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._n_bytes = 0
        self._n_dropped = 0
        self._grown = anyio.Event()

    def append(self, line: str) -> None:
        """Add a line and wake the readers."""
        self._lines.append(line)
        self._n_bytes += len(line) + 1
        while self._n_bytes > MAX_BYTES:
            self._n_bytes -= len(self._lines.popleft()) + 1
            self._n_dropped += 1
        grown, self._grown = self._grown, anyio.Event()
        grown.set()

    def tail(self, n_lines: int) -> list[str]:
        """Return the last ``n_lines``."""
        return list(self._lines)[-n_lines:] if n_lines else []

    async def follow(self, n_lines: int) -> AsyncIterator[str]:
        """Yield the last ``n_lines``, then each new one as it comes; never ends."""
        position = self._n_dropped + max(0, len(self._lines) - n_lines)
        while True:
            if position < self._n_dropped:
                yield f"… {self._n_dropped - position} lines dropped"
                position = self._n_dropped
            for line in list(self._lines)[position - self._n_dropped :]:
                yield line
                position += 1
            if position >= self._n_dropped + len(self._lines):
                await self._grown.wait()
