"""Something that happens again and again, and that many wait for."""

import math
import time

import anyio


class News:
    """``tell`` wakes all who wait now; who comes later waits for the next."""

    def __init__(self) -> None:
        self._next = anyio.Event()

    def tell(self) -> None:
        """Wake everyone who waits."""
        told, self._next = self._next, anyio.Event()
        told.set()

    async def wait(self, *, until_s: float = math.inf) -> None:
        """Wait for the next news, until a monotonic time at the latest."""
        with anyio.move_on_after(until_s - time.monotonic()):
            await self._next.wait()
