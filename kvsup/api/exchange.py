"""One request and its answer on ASGI, and the frame that notices when the client leaves.

uvicorn's ``send`` returns silently once the client is gone; only ``receive`` tells. So every
generating endpoint runs beside a task that waits for ``http.disconnect`` and then cancels it, in
the queue, in the load, in the prompt and in the stream alike.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, cast

import anyio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from kvsup.api.auth import PRIORITY
from kvsup.api.bodies import BodiesFull, BodyRoom, Share
from kvsup.api.errors import OLLAMA, ErrorShape, status_of
from kvsup.api.naming import explained
from kvsup.errors import EngineError, KvsupError, RequestError
from kvsup.runtime.keeping import Kept
from kvsup.runtime.queue import Queued

logger = logging.getLogger(__name__)

JSON = b"application/json; charset=utf-8"
NDJSON = b"application/x-ndjson"
SSE = b"text/event-stream"

CONNECTION = "kvsup.connection"
"""Member of a scope: the ``Connection`` that the request came by."""

Header = tuple[bytes, bytes]

SSE_HEADERS: tuple[Header, ...] = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""Without them a reverse proxy holds events back."""


class Connection(Protocol):
    """What a connection can do with an answer in chunks whose head was sent."""

    def put(self, data: bytes) -> bool:
        """Send a piece; return False if the client is to be waited for by ``drained``."""

    async def drained(self) -> None:
        """Wait while the client reads slowly."""

    def cut_off(self) -> None:
        """End it behind what was sent, so that the answer does not look whole."""


class Exchange:
    """A request whose body has been read, and the answer to it."""

    def __init__(self, request: Request, send: Send, share: Share) -> None:
        self.request = request
        self.body = b""
        self.is_started = False
        self.connection = cast("Connection", request.scope.get(CONNECTION))
        """Where the pieces of a stream go whose head was sent (``docs/decisions/0021``)."""
        self.beside: dict[str, int] = {}
        """What kvsup did for the request, as Ollama's last object tells it."""
        self._is_stream = False
        self._notes: list[Header] = []
        self._send = send
        self._share = share

    async def keep(self, body: bytes) -> Kept:
        """Return ``body`` kept for as long as the request may be run again; forget its own.

        Only the last one that is kept can be read.
        """
        self.body = b""
        return await self._share.keep(body)

    def note(self, text: str) -> None:
        """Tell the client, in a header, what of its request is not as it asked."""
        self._notes.append((b"x-kvsup-note", text.encode("ascii", "backslashreplace")))

    @property
    def priority(self) -> int:
        """Return the priority of the key that the request came with; 0 without one."""
        return int(self.request.scope.get(PRIORITY, 0))

    def came_through(self, queued: Queued) -> None:
        """Tell the client, in a header, that the request had to wait in the queue."""
        if queued.position:
            text = f"position={queued.position}; waited_ms={queued.waited_ms}"
            self._notes.append((b"x-kvsup-queue", text.encode()))
            self.beside |= {"queue_position": queued.position, "queued_ms": queued.waited_ms}

    def restored(self, n_tokens: int) -> None:
        """Tell the client that so much of its prompt came from a saved conversation."""
        if not self.is_started:
            self._notes.append((b"x-kvsup-restored", b"tokens=%d" % n_tokens))
        self.beside["restored_tokens"] = n_tokens

    async def start(
        self, content_type: bytes, *, status: int = 200, headers: Iterable[Header] = ()
    ) -> None:
        """Send the head of the answer."""
        self.is_started = True
        self._is_stream = content_type.startswith((SSE, NDJSON))
        fields = [(b"content-type", content_type), *headers, *self._notes]
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; waits while the client reads slowly."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(
        self,
        data: bytes,
        *,
        status: int = 200,
        content_type: bytes = JSON,
        headers: Iterable[Header] = (),
    ) -> None:
        """Send a whole answer."""
        length = (b"content-length", str(len(data)).encode())
        await self.start(content_type, status=status, headers=[length, *headers])
        await self.end(data)

    async def answer_empty(self, *, status: int = 200) -> None:
        """Send an answer without a body, and so without a type."""
        self.is_started = True
        head = {"type": "http.response.start", "status": status}
        await self._send({**head, "headers": [(b"content-length", b"0"), *self._notes]})
        await self.end()

    async def fail(self, error: KvsupError, shape: ErrorShape) -> None:
        """Tell the client what went wrong: as a status, or as the last event of a stream.

        Any other answer that has begun has no place for it, and is cut off.
        """
        status = status_of(error, shape)
        if isinstance(error, EngineError) and error.body:
            body = shape.of_engine(error.body, status)
        else:
            body = shape.body(str(error), status)
        if not self.is_started:
            await self.answer(body, status=status)
        elif self._is_stream:
            await self.end(shape.last_event(body))
        else:
            self.connection.cut_off()


Handler = Callable[[Exchange], Awaitable[None]]


class Endpoint:
    """An ASGI application around a handler: body read and bounded, client watched, errors told."""

    def __init__(
        self,
        handler: Handler,
        *,
        shape: ErrorShape = OLLAMA,
        room: BodyRoom,
    ) -> None:
        self._handler = handler
        self._shape = shape
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with self._room.share() as share:
            exchange = Exchange(Request(scope), send, share)
            try:
                exchange.body = await share.read(exchange.request, receive)
            except (RequestError, BodiesFull) as error:
                await exchange.fail(error, self._shape)
                return
            except ConnectionError:
                return
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
                await _handled(exchange, self._handler, self._shape)
                tasks.cancel_scope.cancel()


class Body:
    """A body that comes piece by piece."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_over = False

    async def next(self) -> bytes:
        """Return more of it, nothing at its end; may be cancelled and called again.

        Raises:
            ConnectionError: the client left before its end.
        """
        while not self._is_over:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client left while it sent its request")
            self._is_over = not message.get("more_body", False)
            if piece := message.get("body", b""):
                return bytes(piece)
        return b""


Upload = Callable[[Exchange, Body], Awaitable[None]]


class UploadEndpoint:
    """An ASGI application around a handler that takes a body of any size, piece by piece."""

    def __init__(self, handler: Upload, *, room: BodyRoom) -> None:
        self._handler = handler
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; where the client leaves, its body raises ``ConnectionError``."""
        with self._room.share() as share:
            exchange = Exchange(Request(scope), send, share)

            async def handle(exchange: Exchange) -> None:
                await self._handler(exchange, Body(receive))

            await _handled(exchange, handle, OLLAMA)


async def _handled(exchange: Exchange, handler: Handler, shape: ErrorShape) -> None:
    """Let ``handler`` answer, and tell what it raises."""
    try:
        await handler(exchange)
    except KvsupError as error:
        path = exchange.request.url.path
        logger.debug("%s: %s", path, error)
        await exchange.fail(explained(error, path), shape)
    except Exception as error:  # the last line: a bug must not end a stream as if it were whole
        logger.exception("%s: a bug in kvsup", exchange.request.url.path)
        await exchange.fail(KvsupError(f"internal error: {error!r}"), shape)


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
