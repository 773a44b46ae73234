"""Reading the body of a request, and keeping it: one within its bound, all within theirs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread
from starlette.requests import Request
from starlette.types import Receive

from kvsup.api.contentcoding import TooLarge, decoded
from kvsup.api.jsonlimits import FEW_BYTES, check_json
from kvsup.errors import CapacityError
from kvsup.runtime.keeping import Keeping, Kept
from kvsup.units import format_bytes


class BodiesFull(CapacityError):  # noqa: N818 - it says what is
    """The bodies of all requests together take as much memory as they may."""


class BodyRoom:
    """How much memory bodies take: each from its first byte until its request has ended.

    One that lies in a file of ``folder`` takes none. One that is still coming after ``patience_s``
    gives way to others, so that a few slow clients keep nobody out.
    """

    def __init__(
        self, *, max_body_bytes: int, max_bodies_bytes: int, patience_s: float, folder: Path
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self._patience_s = patience_s
        self._coming: dict[Share, float] = {}
        """Those whose bodies are still coming, and when each began."""
        self.keeping = Keeping(folder)
        self._max_bodies_bytes = max_bodies_bytes
        self.held_bytes = 0
        self.unpacking = anyio.Lock()
        """Held while a body is unpacked, since it can be counted only then: one at a time."""

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Yield the share of one request, which is given back on leaving."""
        share = Share(self)
        try:
            yield share
        finally:
            share.close()

    def take(self, n_bytes: int) -> None:
        """Count bytes in; those that come slowly give way to them, the largest first.

        Raises:
            BodiesFull: there is no room for them.
        """
        while self.held_bytes + n_bytes > self._max_bodies_bytes and (slow := self._slow()):
            largest = max(slow, key=lambda share: share.n_bytes)
            del self._coming[largest]
            largest.give_way()
        if self.held_bytes + n_bytes > self._max_bodies_bytes:
            raise BodiesFull(
                f"request bodies take {format_bytes(self.held_bytes)} together, and "
                f"{format_bytes(self._max_bodies_bytes)} is the most; please try again "
                "(max_bodies_memory in kvsup.toml)"
            )
        self.held_bytes += n_bytes

    @contextmanager
    def arrival(self, share: "Share") -> Iterator[None]:
        """Let the body of ``share`` come."""
        self._coming[share] = anyio.current_time()
        try:
            yield
        finally:
            self._coming.pop(share, None)

    def _slow(self) -> list["Share"]:
        started_s = anyio.current_time() - self._patience_s
        return [
            share for share, at_s in self._coming.items() if at_s <= started_s and share.n_bytes
        ]


class Share:
    """What one request holds of the room."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self.n_bytes = 0
        self._arrival = anyio.CancelScope()
        self._kept: Kept | None = None

    def grow(self, n_bytes: int) -> None:
        """Count bytes in; raises as ``BodyRoom.take``."""
        self._room.take(n_bytes)
        self.n_bytes += n_bytes

    async def keep(self, body: bytes) -> Kept:
        """Return ``body`` kept until the request ends, or another is kept in its place.

        The caller holds no other: what lies on disk is counted out, and what had to stay in memory
        counted in.

        Raises:
            BodiesFull: it does not lie on disk, and there is no room for it.
        """
        kept = await self._room.keeping.keep(body)
        if self._kept is not None:
            self._kept.close()
        self._kept = kept
        self._hold(0 if kept.is_on_disk else len(body))
        return kept

    def give_way(self) -> None:
        """Let the body go that is still coming."""
        self._arrival.cancel()
        self._hold(0)

    def close(self) -> None:
        """Forget the body."""
        if self._kept is not None:
            self._kept.close()
        self._hold(0)

    def _hold(self, n_bytes: int) -> None:
        """Count so many bytes in place of those before; raises as ``BodyRoom.take`` for more."""
        if n_bytes > self.n_bytes:
            self._room.take(n_bytes - self.n_bytes)
        else:
            self._room.held_bytes -= self.n_bytes - n_bytes
        self.n_bytes = n_bytes

    async def read(self, request: Request, receive: Receive) -> bytes:
        """Return the body of ``request``, decoded and checked.

        Raises:
            TooLarge: it is larger than ``max_body``, as sent or decoded.
            BodiesFull: there is no room for it now, or no longer.
            RequestError: it is not coded as it says, nests too deep or holds too many values.
            ConnectionError: the client left before its end.
        """
        with self._arrival, self._room.arrival(self):
            body = await self._received(request, receive)
        if self._arrival.cancel_called:
            raise BodiesFull(
                "the request body came slowly, and others needed its room; please try again "
                "(max_bodies_memory in kvsup.toml)"
            )
        if coding := request.headers.get("content-encoding", ""):
            unpack = partial(decoded, body, coding, max_bytes=self._room.max_body_bytes)
            async with self._room.unpacking:
                body = await to_thread.run_sync(unpack)
                self.grow(len(body))
        if len(body) <= FEW_BYTES:
            check_json(body)
        else:
            await to_thread.run_sync(check_json, body)
        return body

    async def _received(self, request: Request, receive: Receive) -> bytes:
        max_bytes = self._room.max_body_bytes
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > max_bytes:
            raise TooLarge(max_bytes)
        chunks = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client left while it sent its request")
            chunk = message.get("body", b"")
            if len(chunks) + len(chunk) > max_bytes:
                raise TooLarge(max_bytes)
            self.grow(len(chunk))
            chunks += chunk
            more = message.get("more_body", False)
        return bytes(chunks)
