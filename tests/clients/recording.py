"""A proxy before kvsup that writes down what each client sends, for ``tests/golden/requests``.

    KVSUP_RECORD_REQUESTS=tests/golden/requests pytest tests/clients

``tests/e2e/test_recorded_requests.py`` replays what was recorded, without the clients.
"""

import base64
import http.client
import json
import os
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.clients.asking import COPY, ENDLESS

KEPT = re.compile(
    r"accept|content-type|transfer-encoding|user-agent|authorization|x-api-key|anthropic-.*"
)
"""Headers that can change an answer. The keys of these clients are no secrets: "none"."""

HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})

TEST = re.compile(r"test_(node)\.py::\w+\[(\w+)\]|test_(\w+)\.py")
"""A client is a file of tests; of those in Node each is a parameter of one test."""

NOT_REPLAYED = frozenset({ENDLESS, COPY})
"""Models whose requests take too long, or need one that came before."""

Recorded = dict[str, Any]
"""``method``, ``path`` with query, ``headers`` in lower case, ``body`` or ``body_base64``."""


class Recorder:
    """The proxy on a port of its own; each client's requests, one of each shape, at the end."""

    def __init__(self, url: str, folder: Path) -> None:
        self.address = urlsplit(url).netloc
        self.folder = folder
        self.by_client: dict[str, dict[str, Recorded]] = defaultdict(dict)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def keep(self, recorded: Recorded) -> None:
        """Note a request under the client whose test runs now, unless its shape is known."""
        members = json.loads(recorded.get("body") or "{}")
        is_of_kvsup = recorded["path"].startswith("/kvsup/")
        if is_of_kvsup or str(members.get("model")).partition(":")[0] in NOT_REPLAYED:
            return
        if found := TEST.search(os.environ.get("PYTEST_CURRENT_TEST", "")):
            client = "_".join(part for part in found.groups() if part)
            self.by_client[client].setdefault(_shape(recorded), recorded)

    def __enter__(self) -> "Recorder":  # noqa: PYI034 - typing.Self is of Python 3.11
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.folder.mkdir(parents=True, exist_ok=True)
        for client, requests in self.by_client.items():
            text = json.dumps([*requests.values()], indent=1, ensure_ascii=False)
            (self.folder / f"{client}.json").write_text(text + "\n")


class _Server(ThreadingHTTPServer):
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        super().__init__(("127.0.0.1", 0), _Forwarder)


class _Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self._body()
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.recorder.keep(
            {
                "method": self.command,
                "path": self.path,
                "headers": {k: v for k, v in headers.items() if KEPT.fullmatch(k)},
                **_written(body),
            }
        )
        self._forward({k: v for k, v in headers.items() if k not in HOP}, body)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        chunks = []
        while n_bytes := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(n_bytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _forward(self, headers: dict[str, str], body: bytes) -> None:
        connection = http.client.HTTPConnection(self.server.recorder.address)
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            self.send_response_only(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in HOP:
                    self.send_header(key, value)
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            while data := answer.read1():
                self.wfile.write(data)
                self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            connection.close()


def _written(body: bytes) -> dict[str, str]:
    """Return the body as it came if it is JSON or empty; a form can be UTF-8 by chance."""
    try:
        json.loads(body or "null")
    except ValueError:
        return {"body_base64": base64.b64encode(body).decode()}
    return {"body": body.decode()}


def _shape(recorded: Recorded) -> str:
    """Return what makes a request another one: everything but texts and numbers."""
    body = json.loads(recorded.get("body") or "null")
    head = [recorded["method"], recorded["path"], recorded["headers"].get("content-type")]
    return json.dumps([*head, _shape_of(body)], sort_keys=True)


def _shape_of(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _shape_of(part, name) for name, part in value.items()}
    if isinstance(value, list):
        shapes = {json.dumps(_shape_of(part), sort_keys=True) for part in value}
        return sorted(shapes)
    if isinstance(value, bool) or value is None or key in {"model", "name", "type", "role"}:
        return value
    return type(value).__name__
