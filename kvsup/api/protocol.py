"""uvicorn's protocol (0.54), made fit for clients that are slow, wrong or hostile.

It reads one head as a whole and judges it, hands the parser no byte more than that request has,
and gives a client a bounded time: for the head, for each part of the body, and for taking what was
sent. What it refuses it says in the shape of the API that the request was for, and then it goes on
reading for a moment, since a connection that is closed on unread bytes loses the answer.
"""

import asyncio
import http
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kvsup.api.errors import shape_for
from kvsup.api.exchange import CONNECTION
from kvsup.api.heads import MAX_HEAD_BYTES, BadHead, has_bare_line_feed, read_head

logger = logging.getLogger(__name__)

MIN_BODY_RATE_BYTES = 1024
"""What must come of a body in each second."""

_LINGER_S = 10.0
_MAX_BESIDE_BODY_BYTES = 64 << 10
"""Longest run of chunk extensions or trailers without a byte of the body between them."""

_MAX_TOLD = 32
"""Connections over the limit that are told so; more are closed without a word."""

_OFFER = re.compile(rb"(\r\n)upgrade:", re.IGNORECASE)
_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client is waited for."""

    client_timeout_s: float
    """For a whole head, and for the next part of a body; infinite: for ever."""
    slow_reader_timeout_s: float
    """For any of an answer to be taken; infinite: for ever."""


class Door:
    """Lets in as many connections as there are file descriptors for, and says so once if more come.

    Every request needs further ones, so at the limit itself nothing would work any more.
    """

    def __init__(self, max_connections: int, *, max_files: int) -> None:
        self._max_connections = max_connections
        self._max_files = max_files
        self._has_told = False

    def n_over(self, n_open: int) -> int:
        """Return by how many ``n_open`` connections are too many; negative where there is room."""
        if n_open > self._max_connections and not self._has_told:
            self._has_told = True
            logger.warning(
                "%d connections are open, no more are let in: this process may open %d files; "
                "raise LimitNOFILE of its unit, or ulimit -n",
                n_open - 1,
                self._max_files,
            )
        if n_open < self._max_connections * 0.9:
            self._has_told = False
        return n_open - self._max_connections


class Protocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *arguments: Any, patience: Patience, door: Door, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._patience = patience
        self._door = door
        self._unread = b""
        """What came and has not been parsed: a part of a head, or what follows a request."""
        self._searched_bytes = 0
        self._body_left: int | None = 0
        """Bytes of the body that are still to come; None where it comes in chunks."""
        self._path = ""
        self._is_in_message = False
        self._is_in_body = False
        self._keeps_alive = True
        self._is_deaf = False
        """What comes is read and dropped until the client closes."""
        self._beside_body_bytes = 0
        self._body_due_s = 0.0
        """When the body is late, unless more of it comes before."""
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let a client in, or tell it that there is no room."""
        super().connection_made(transport)
        n_over = self._door.n_over(len(self.connections))
        if n_over <= 0:
            self._wait(self._head_is_late)
        elif n_over <= _MAX_TOLD:
            self._refuse(503, "too many connections, please try again", linger_s=1.0)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._stop_waiting()
        self._watch_reader(is_stalled=False)
        self._unset_keepalive_if_required()
        self._unread = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._unset_keepalive_if_required()
        if self._is_deaf:
            return
        self._unread += data
        self._read_on()

    def pause_writing(self) -> None:
        """Wait for a client that takes nothing more, within bounds."""
        super().pause_writing()
        self._watch_reader(is_stalled=True)

    def resume_writing(self) -> None:
        """Go on: the client has taken some."""
        super().resume_writing()
        self._watch_reader(is_stalled=False)

    # What uvicorn calls.

    def shutdown(self) -> None:
        """End once what is being answered is answered."""
        if self._is_deaf:
            self.transport.close()
        super().shutdown()

    def on_response_complete(self) -> None:
        """Turn to the next request; what is left of one that was answered early is dropped."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._is_in_message:
            self._linger(_LINGER_S)
        elif self._unread:
            self._unset_keepalive_if_required()
            self.loop.call_soon(self._read_on)

    # What an exchange calls.

    def put(self, data: bytes) -> bool:
        """Send a piece of an answer in chunks; return whether the client can take more now."""
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self.flow.write_paused

    async def drained(self) -> None:
        """Wait while the client reads slowly."""
        await self.flow.drain()

    def cut_off(self) -> None:
        """End the connection behind what was sent of an answer that has no end."""
        self.cycle.disconnected = True
        self.transport.close()

    # What httptools calls.

    def on_message_begin(self) -> None:
        """Refuse to read a head that has not been judged, behind a body in chunks."""
        if self._is_in_body:
            raise _Unjudged
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]  # ours

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; trailers are nobody's."""
        if not self._is_in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._is_in_body = True
        super().on_headers_complete()
        self._is_in_message = True
        # An answer before the end of the body must not close on what is still unread.
        self._keeps_alive, self.cycle.keep_alive = self.cycle.keep_alive, True

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._beside_body_bytes = 0
        paid_s = len(body) / MIN_BODY_RATE_BYTES
        self._body_due_s = min(self._body_due_s + paid_s, self._due_s())
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is here; the next bytes are a head."""
        self._is_in_message = False
        self.cycle.keep_alive = self.cycle.keep_alive and self._keeps_alive
        self._stop_waiting()
        super().on_message_complete()

    # Reading.

    def _read_on(self) -> None:
        while self._unread and not self._is_deaf and not self.transport.is_closing():
            if self._is_in_message:
                self._read_body()
            elif self.cycle is not None and not self.cycle.response_complete:
                if len(self._unread) > MAX_HEAD_BYTES:  # nobody sends ahead as much as this
                    self.transport.abort()
                return
            elif not self._read_head():
                if self._late is None:
                    self._wait(self._head_is_late)
                return

    def _read_body(self) -> None:
        n_bytes = len(self._unread) if self._body_left is None else self._body_left
        part, self._unread = self._unread[:n_bytes], self._unread[n_bytes:]
        if self._body_left is not None:
            self._body_left -= len(part)
        self._beside_body_bytes += len(part)
        self._parse(part)
        if self._is_in_message and (
            self._body_left == 0 or self._beside_body_bytes > _MAX_BESIDE_BODY_BYTES
        ):
            self._refuse(400, "malformed request: its body has no end")

    def _read_head(self) -> bool:
        """Parse a head; return False if it is not complete yet, or refused."""
        self._unread = self._unread.lstrip(b"\r\n") if not self._searched_bytes else self._unread
        start = max(0, self._searched_bytes - len(_END) + 1)
        end = self._unread.find(_END, start)
        self._searched_bytes = len(self._unread)
        if end < 0 and len(self._unread) <= MAX_HEAD_BYTES:
            if self._unread[:1] == b"\x16":
                self._refuse(400, "this is TLS; kvsup speaks plain HTTP: use http://")
            elif has_bare_line_feed(self._unread, start=start):
                self._refuse(400, "malformed request: a line does not end in CR LF")
            return False
        if not 0 <= end <= MAX_HEAD_BYTES:
            self._path = self._unread.partition(b" ")[2].partition(b" ")[0].decode("latin-1")
            self._refuse(431, f"the head of the request is larger than {MAX_HEAD_BYTES} bytes")
            return False
        head, self._unread = self._unread[:end], self._unread[end + len(_END) :]
        self._searched_bytes = 0
        self._is_in_body = False
        try:
            judged = read_head(head)
        except BadHead as error:
            self._path = error.path
            self._refuse(error.status, f"malformed request: {error}")
            return False
        self._path, self._body_left = judged.path, judged.body_bytes
        self._beside_body_bytes = 0
        self._body_due_s = self._due_s()
        self._stop_waiting()
        # Java's client offers HTTP/2 with its first request, and uvicorn then loses its body.
        self._parse(_OFFER.sub(rb"\1x-offered:", head) + _END)
        if self._is_in_message and not self._is_deaf:
            self._wait(self._body_is_late)
        return True

    def _parse(self, part: bytes) -> None:
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Unjudged):
                self._refuse(400, "malformed request: its target is no path")
                return
            # Sent behind chunks in one piece: the client will ask again on another connection.
            self._is_deaf = True
            self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            self._refuse(400, f"malformed request: {error}")

    # Waiting.

    def _wait(self, then: Callable[[], None]) -> None:
        self._stop_waiting()
        if self._patience.client_timeout_s < float("inf"):
            self._late = self.loop.call_later(self._patience.client_timeout_s, then)

    def _due_s(self) -> float:
        """Return until when a client is waited for that has done all it must."""
        return self.loop.time() + self._patience.client_timeout_s

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        self._late = None
        if self._unread:
            self._refuse(408, "the head of the request did not come in time")
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        self._late = None
        if self.flow.read_paused:  # it is we who do not read
            self._body_due_s = self._due_s()
        if self._body_due_s > self.loop.time():
            self._late = self.loop.call_at(self._body_due_s, self._body_is_late)
        else:
            self._refuse(408, "the body of the request did not come in time")

    def _watch_reader(self, *, is_stalled: bool) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if is_stalled and self._patience.slow_reader_timeout_s < float("inf"):
            self._stalled = self.loop.call_later(
                self._patience.slow_reader_timeout_s, self._give_up_reader
            )

    def _give_up_reader(self) -> None:
        logger.info(
            "a client took none of its answer for %g s and was cut off",
            self._patience.slow_reader_timeout_s,
        )
        self.transport.abort()

    # Refusing.

    def _refuse(self, status: int, text: str, *, linger_s: float = _LINGER_S) -> None:
        """Answer what cannot be a request, or can no longer be one, and close."""
        cycle = self.cycle if self._is_in_message else None
        if cycle is not None:
            has_begun = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if has_begun:
                self.transport.abort()
                return
        body = shape_for(self._path).body(text, status)
        phrase = http.HTTPStatus(status).phrase
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._linger(linger_s)

    def _linger(self, linger_s: float) -> None:
        """Send no more, and drop what comes, until the client closes or the time is over."""
        self._stop_waiting()
        self._unset_keepalive_if_required()
        self._is_deaf = True
        self._unread = b""
        self.transport.write_eof()
        self._late = self.loop.call_later(linger_s, self.transport.close)


class _Unjudged(Exception):  # noqa: N818 - it says what is
    """A second request follows one in chunks."""
