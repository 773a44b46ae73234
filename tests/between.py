"""Stands between kvsup and a registry: slow, and with the faults that a real one won't produce."""

import http.client
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple

_PIECE_BYTES = 64 << 10


class Fault(NamedTuple):
    """What becomes of one request instead of its answer."""

    status: int = 0
    """Answered without asking the registry; 0: it is asked."""
    headers: tuple[tuple[str, str], ...] = ()
    """Beside those of the answer; one of them again takes its place."""
    body: bytes = b""
    cut_after_bytes: int | None = None
    """The answer breaks off there."""
    whole: bool = False
    """The registry is asked without the range."""


class Seen(NamedTuple):
    """A request that came."""

    method: str
    path: str
    range: str
    authorization: str


Rule = Callable[[Seen], Fault | None]


class Between:
    """A proxy on loopback to one registry."""

    def __init__(self, upstream: str = "") -> None:
        self.seen: list[Seen] = []
        self.n_sent_bytes = 0
        """Of bodies, to kvsup."""
        self.rate_bytes_s = 0.0
        """Over all connections; 0: as fast as it goes."""
        self.rules: list[Rule] = []
        """The first that has something for a request decides."""
        self._upstream = upstream
        self._lock = threading.Lock()
        self._free_s = 0.0
        between = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments: object) -> None:
                """Print nothing."""

            def handle_one(self) -> None:
                between._handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_one  # noqa: N815 - its names

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> "Between":  # noqa: PYI034 - typing.Self is of Python 3.11
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.rate_bytes_s = 0.0
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges that were asked for, each as first byte and last."""
        found = [seen.range.removeprefix("bytes=").split("-") for seen in self.seen if seen.range]
        return [(int(first), int(last)) for first, last in found]

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        headers = handler.headers
        seen = Seen(
            handler.command,
            handler.path,
            headers.get("range", ""),
            headers.get("authorization", ""),
        )
        self.seen.append(seen)
        length = int(headers.get("content-length", "0"))
        body = handler.rfile.read(length)
        fault = next((found for rule in self.rules if (found := rule(seen))), Fault())
        try:
            if fault.status:
                self._answer(handler, fault.status, list(fault.headers), fault.body, fault)
                return
            asked = {k: v for k, v in headers.items() if not (fault.whole and k.lower() == "range")}
            with closing(http.client.HTTPConnection(self._upstream)) as upstream:
                upstream.request(handler.command, handler.path, body, asked)
                with upstream.getresponse() as answer:
                    replaced = {name.lower() for name, _ in fault.headers}
                    kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in replaced]
                    self._answer(handler, answer.status, [*kept, *fault.headers], answer, fault)
        except OSError:
            handler.close_connection = True

    def _answer(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        body: "bytes | http.client.HTTPResponse",
        fault: Fault,
    ) -> None:
        handler.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            handler.send_header(name, value)
        if isinstance(body, bytes) and "content-length" not in names:
            handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        n_sent = 0
        while (
            piece := body[n_sent : n_sent + _PIECE_BYTES]
            if isinstance(body, bytes)
            else body.read(_PIECE_BYTES)
        ):
            if fault.cut_after_bytes is not None and n_sent + len(piece) > fault.cut_after_bytes:
                handler.wfile.write(piece[: fault.cut_after_bytes - n_sent])
                handler.close_connection = True
                return
            self._wait(len(piece))
            handler.wfile.write(piece)
            n_sent += len(piece)
            self.n_sent_bytes += len(piece)

    def _wait(self, n_bytes: int) -> None:
        if not self.rate_bytes_s:
            return
        with self._lock:
            now_s = time.monotonic()
            self._free_s = max(self._free_s, now_s) + n_bytes / self.rate_bytes_s
            wait_s = self._free_s - now_s
        time.sleep(wait_s)
