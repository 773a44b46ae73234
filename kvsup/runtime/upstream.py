"""Talk to one llama-server over its UNIX socket: one connection a request, bytes as they come.

A small client of our own on ``asyncio.Protocol`` and httptools, since every token of every stream
passes here and a general client costs several times as much (``docs/decisions/0004``).
b11434 closes the connection after each stream although it announces ``Keep-Alive: max=100``, so
connections are never reused and there is no race with its closing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import httptools

from kvsup.errors import NotListening, UpstreamError
from kvsup.llama.heartbeat import PING, is_of_the_loop
from kvsup.restart import Exit

HIGH_WATER_BYTES = 256 << 10
"""Unread bytes of one response after which reading from llama-server pauses."""

_REFUSALS = (ConnectionRefusedError, FileNotFoundError)

Sink = Callable[[bytes], bool]
"""Takes a piece of a body; returns False once it can take no more for now."""

Headers = Sequence[tuple[bytes, bytes]]

Body = bytes | Callable[[], Awaitable[bytes]]
"""A callable gives it when it is sent, so that none keeps it while the answer comes."""


class Response(asyncio.Protocol):
    """One response: its head once ``stream`` has yielded it, its body by ``read`` or ``pour``."""

    def __init__(self, upstream: "Upstream", *, is_of_the_loop: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self._upstream = upstream
        self._is_of_the_loop = is_of_the_loop
        self.since_s = time.monotonic()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.head: asyncio.Future[None] = loop.create_future()
        self.transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._is_paused = False
        self._is_complete = False
        self._error: UpstreamError | None = None
        self._reader: asyncio.Future[bool] | None = None
        """Whom ``read`` or ``pour`` has waiting; True once there is something to look at."""
        self._sink: Sink | None = None

    async def read(self) -> bytes:
        """Return all body bytes that have come since the last call; empty at the end.

        Raises:
            UpstreamError: llama-server closed the connection before the body was complete.
        """
        while not self._unread:
            if self._is_complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._news()
        return self._taken()

    async def pour(self, sink: Sink) -> bool:
        """Give ``sink`` what has come of the body and then each piece as it comes.

        It is called where the bytes are read, so that no task is woken for a token
        (``docs/decisions/0021``).

        Returns:
            Whether there may be more, for a sink that could take no more; False at the end.

        Raises:
            UpstreamError: as ``read``.
            Exception: what ``sink`` raised; it is not called again.
        """
        while True:
            if self._unread:
                if not sink(self._taken()):
                    return True
            elif self._is_complete:
                return False
            elif self._error is not None:
                raise self._error
            else:
                self._sink = sink
                try:
                    if not await self._news():
                        return True
                finally:
                    self._sink = None

    async def read_all(self) -> bytes:
        """Return the whole body that is still to be read; raises as ``read``."""
        parts = []
        while part := await self.read():
            parts.append(part)
        return b"".join(parts)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; called by asyncio."""
        self.transport = transport  # type: ignore[assignment]  # a UNIX socket has a Transport

    def data_received(self, data: bytes) -> None:
        """Parse what came; called by asyncio."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(UpstreamError(f"llama-server sent no HTTP: {error}"))
            self.abort()
        if self._sink is not None and self._unread:
            self._give(self._sink, self._unread)
        if self._unread_bytes > HIGH_WATER_BYTES and not self._is_paused and self.transport:
            self._is_paused = True
            self.transport.pause_reading()
        if self._sink is None or self._is_complete or self._error is not None:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reader, unless the response was complete; called by asyncio."""
        if not self._is_complete:
            reason = f": {exc}" if exc else ""
            self._fail(UpstreamError(f"llama-server closed the connection mid-answer{reason}"))
        self._wake()

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header; called by the parser."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Let ``stream`` yield; called by the parser."""
        self.status = self._parser.get_status_code()
        if not self.head.done():
            self.head.set_result(None)

    def on_body(self, body: bytes) -> None:
        """Keep one piece of the body; called by the parser."""
        if self._is_of_the_loop and self.status == 200 and body != PING:
            self._upstream.n_reads += 1
        self._unread.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        """Mark the end; called by the parser."""
        self._is_complete = True

    @property
    def is_awaited(self) -> bool:
        """Say whether the loop owes more; not while a slow reader is why it has not come."""
        is_over = self._is_complete or self._is_paused or self._error is not None
        return self._is_of_the_loop and not is_over

    def post(self, request: bytes) -> None:
        """Send the request, unless the connection is gone already, as ``head`` then tells."""
        if self.transport is not None and not self.transport.is_closing():  # uvloop would raise
            self.transport.write(request)

    def abort(self) -> None:
        """Close at once; llama-server takes that as its client leaving."""
        if self.transport is not None:
            self.transport.abort()

    def _fail(self, error: UpstreamError) -> None:
        self._error = self._error or error
        if not self.head.done():
            self.head.set_exception(self._error)

    def _taken(self) -> bytes:
        """Return all that has not been read, and let more come."""
        chunks, self._unread, self._unread_bytes = self._unread, [], 0
        if self._is_paused and self.transport is not None:
            self._is_paused = False
            self.transport.resume_reading()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _give(self, sink: Sink, unread: list[bytes]) -> None:
        data = unread[0] if len(unread) == 1 else b"".join(unread)
        unread.clear()
        self._unread_bytes = 0
        try:
            if not sink(data):
                self._wake(has_news=False)
        except Exception as error:  # noqa: BLE001 - it is for whoever pours
            self._sink = None
            if self._reader is not None and not self._reader.done():
                self._reader.set_exception(error)

    async def _news(self) -> bool:
        self._reader = asyncio.get_running_loop().create_future()
        return await self._reader

    def _wake(self, *, has_news: bool = True) -> None:
        reader, self._reader, self._sink = self._reader, None, None
        if reader is not None and not reader.done():
            reader.set_result(has_news)


class Upstream:
    """The HTTP side of one llama-server process; a restarted one gets a new ``Upstream``."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.end: Exit | None = None
        """How its process ended; None until that is known."""
        self.n_reads = 0
        """How many pieces of good answers its loop has sent: proof that it runs."""
        self._open: set[Response] = set()
        self._is_over = False
        """Its process is gone or told to end: who listens on ``socket`` from now on is another."""

    @property
    def n_open(self) -> int:
        """Return how many connections are open."""
        return len(self._open)

    @property
    def is_awaited(self) -> bool:
        """Say whether its loop owes an answer."""
        return any(response.is_awaited for response in self._open)

    def awaited_s(self, now_s: float) -> float:
        """Return how long the oldest answer that its loop owes has been awaited; 0: none is."""
        return max((now_s - r.since_s for r in self._open if r.is_awaited), default=0.0)

    @asynccontextmanager
    async def stream(
        self, method: str, target: str, *, headers: Headers = (), body: Body = b""
    ) -> AsyncIterator[Response]:
        """Send a request and yield its response once the head has come; close it on leaving.

        Raises:
            NotListening: nobody takes the connection; or it would be another process, after
                ``close_all``.
            UpstreamError: it broke before the head, or this process has no file left.
        """
        self._check_not_over()
        try:
            _, response = await asyncio.get_running_loop().create_unix_connection(
                lambda: Response(self, is_of_the_loop=is_of_the_loop(target)), self.socket
            )
        except _REFUSALS as error:
            raise NotListening(f"llama-server does not listen on {self.socket}: {error}") from error
        except OSError as error:  # out of files, for one: it says nothing of llama-server
            raise UpstreamError(f"cannot connect to {self.socket}: {error}") from error
        self._open.add(response)
        try:
            self._check_not_over()
            response.post(
                _request(method, target, headers, body if isinstance(body, bytes) else await body())
            )
            await response.head
            yield response
        finally:
            self._open.discard(response)
            response.head.cancel()
            response.abort()

    async def fetch(self, method: str, target: str, *, body: bytes = b"") -> tuple[int, bytes]:
        """Return status and whole body of a small control call.

        Raises:
            UpstreamError: as ``stream`` and ``Response.read``.
        """
        async with self.stream(method, target, body=body) as response:
            return response.status, await response.read_all()

    def close_all(self) -> None:
        """Close every connection, and open no more.

        An open one keeps a stopping llama-server alive (b11434), and a later one would reach its
        successor, which has the same socket and may still be loading.
        """
        self._is_over = True
        for response in list(self._open):
            response.abort()

    def _check_not_over(self) -> None:
        if self._is_over:
            raise NotListening(f"the llama-server of {self.socket} has ended")


def _request(method: str, target: str, headers: Headers, body: bytes) -> bytes:
    head = [f"{method} {target} HTTP/1.1\r\nhost: localhost\r\n".encode("latin-1")]
    head += [b"%b: %b\r\n" % header for header in headers]
    if body or method in {"POST", "PUT", "PATCH"}:
        head.append(b"content-length: %d\r\n" % len(body))
    return b"".join((*head, b"\r\n", body))
