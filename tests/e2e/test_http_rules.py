"""Ollama's rules for requests, framing, routes, CORS and Host, byte for byte on raw HTTP.

What a client of Ollama is refused stands in ``test_ollama_errors.py``; here is how it is said.
"""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.running import RunningKvsup

SMOLLM2 = """
model = "{path}"
num_ctx = 512
threads = 1
[options]
num_predict = 3
temperature = 0
"""

LOCAL = "http://localhost:3000"
JSON = "application/json; charset=utf-8"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

POST_ONLY = (
    "/api/show", "/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/pull",
    "/api/push", "/api/create", "/api/copy", "/api/me", "/api/signout", "/v1/chat/completions",
    "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/audio/transcriptions",
    "/v1/messages",
)  # fmt: skip
ROUTES = {
    **dict.fromkeys(("/", "/api/version", "/api/tags"), ("GET", "HEAD")),
    **dict.fromkeys(("/api/status", "/api/ps"), ("GET",)),
    **dict.fromkeys(POST_ONLY, ("POST",)),
    "/api/delete": ("DELETE",),
    "/api/blobs/sha256:" + "0" * 64: ("HEAD", "POST"),
}
"""Every route of ``server/routes.go`` that is not of Ollama's own cloud, and its methods."""

EMPTY = {
    "POST /api/generate": (404, "model '' not found"),
    "POST /api/chat": (400, "model is required"),
    "POST /api/embed": (404, "model '' not found"),
    "POST /api/embeddings": (400, "model is required"),
    "POST /api/show": (400, "model is required"),
    "DELETE /api/delete": (400, "model is required"),
    "POST /api/copy": (400, 'source "" is invalid'),
    "POST /api/pull": (400, "invalid model name"),
    "POST /api/push": (400, "model is required"),
    "POST /api/create": (400, "invalid model name"),
}
"""Every route that reads JSON, and what it says to a request without fields."""


@dataclass(frozen=True)
class Answer:
    """An answer as it came."""

    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def type(self) -> str | None:
        """Return its content type."""
        return self.headers["content-type"]

    def cors(self) -> list[str]:
        """Return the names of what it says to browsers."""
        return [name for name in self.headers if name.lower().startswith("access-control")]


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file."""
    models = {"smollm2": SMOLLM2.format(path=smollm2)}
    folder = tmp_path_factory.mktemp("rules") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert running.children() == []


def _send(kvsup: RunningKvsup, route: str, body: object = None, **headers: str) -> Answer:
    """Send a method and a path with exactly these headers, Host and Content-Length beside them.

    ``host`` replaces what Host would be; a body that is no bytes goes as JSON.
    """
    method, _, path = route.partition(" ")
    address = urlsplit(kvsup.url).netloc
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = HTTPConnection(address, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", headers.pop("host", address))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if content is not None and "transfer_encoding" not in headers:
            connection.putheader("Content-Length", str(len(content)))
        connection.endheaders(content)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def _raw(kvsup: RunningKvsup, request: bytes) -> bytes:
    """Send bytes and return every byte that comes until the server closes."""
    address = urlsplit(kvsup.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# 1.1 Decoding requests


def test_body_without_a_type_and_a_length_is_read_whole(kvsup: RunningKvsup) -> None:
    """Clients in Go and Node send chunks; a missing type is no 415."""
    chunks = b'8\r\n{"model"\r\na\r\n:"smollm2"\r\n1\r\n}\r\n0\r\n\r\n'

    answer = _send(kvsup, "POST /api/show", chunks, transfer_encoding="chunked")

    assert answer.status == 200
    assert "model_info" in json.loads(answer.body)


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags", "/api/ps"])
def test_get_with_a_body_does_not_read_it(kvsup: RunningKvsup, path: str) -> None:
    """What comes with a question for a list is nothing."""
    answer = _send(kvsup, f"GET {path}", b"{no json")

    assert answer.status == 200


@pytest.mark.parametrize("route", EMPTY)
@pytest.mark.parametrize("body", [b"", b" \r\n\t", b'{"a":', b"{a}", b"[]", b'"x"', b'{"model":7}'])
def test_body_that_is_missing_or_wrong_is_400_on_each_route(
    kvsup: RunningKvsup, route: str, body: bytes
) -> None:
    """Blanks are no body either; cut, malformed or of a wrong type is told in Go's words."""
    if route == "POST /api/copy":
        body = body.replace(b"model", b"source")

    answer = _send(kvsup, route, body)

    assert (answer.status, answer.type) == (400, JSON)
    assert list(json.loads(answer.body)) == ["error"]
    if not body.strip():
        assert answer.body == b'{"error":"missing request body"}'


@pytest.mark.parametrize("route", EMPTY)
@pytest.mark.parametrize("body", [b"null", b"{}"])
def test_body_of_null_or_an_empty_object_has_no_fields(
    kvsup: RunningKvsup, route: str, body: bytes
) -> None:
    """It is a request without a name, with the words of its route."""
    status, text = EMPTY[route]

    answer = _send(kvsup, route, body)

    assert (answer.status, json.loads(answer.body)) == (status, {"error": text})


def test_json_escapes_what_html_would_read(kvsup: RunningKvsup) -> None:
    """Go's encoder writes <, > and & as escapes, and no blanks."""
    error = _send(kvsup, "POST /api/chat", {"model": "smollm2", "think": "<a&b>"})
    shown = _send(kvsup, "POST /api/show", {"model": "smollm2", "system": "<a&b>"})

    assert error.body.startswith(rb'{"error":"invalid think value: \"\u003ca\u0026b\u003e\" (must')
    assert rb'"system":"\u003ca\u0026b\u003e"' in shown.body
    assert not re.search(rb"[<>&]", error.body + shown.body)


# 1.2 Framing and Content-Type


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("GET /api/version", None),
        ("GET /api/tags", None),
        ("GET /api/ps", None),
        ("POST /api/show", {}),
        ("POST /api/show", {"model": "gone"}),
        ("POST /api/generate", {"prompt": "x", "model": "gone"}),
        ("POST /api/generate", {}),
        ("POST /api/generate", {"keep_alive": 0, "stream": True}),
        ("POST /api/chat", {"stream": True}),
        ("POST /api/generate", {"prompt": "x", "stream": False}),
        ("POST /api/chat", {"messages": [{"role": "user", "content": "x"}], "stream": False}),
    ],
)
def test_answer_that_is_no_stream_is_one_object(
    kvsup: RunningKvsup, route: str, body: dict[str, object] | None
) -> None:
    """JSON with its charset, no newline at its end; loads and unloads, too."""
    answer = _send(kvsup, route, body if body is None else {"model": "smollm2", **body})

    assert answer.type == JSON
    assert isinstance(json.loads(answer.body), dict)
    assert answer.body.endswith(b"}")


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize("stream", [True, None])
def test_stream_is_chunked_lines_without_blank_ones(
    kvsup: RunningKvsup, path: str, stream: object
) -> None:
    """Each object ends in one newline; null streams as well."""
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "smollm2", "stream": stream, "prompt": "Hi", "messages": messages}

    answer = _send(kvsup, f"POST {path}", body)

    assert (answer.status, answer.type) == (200, "application/x-ndjson")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["content-length"] is None
    lines = answer.body.split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line)["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_stream_sends_its_objects_one_by_one(kvsup: RunningKvsup) -> None:
    """A chunk of HTTP never ends within a line."""
    content = b'{"model":"smollm2","prompt":"Count.","raw":true,"options":{"num_predict":8}}'
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"

    answer = _raw(kvsup, head.encode() + b"Connection: close\r\n\r\n" + content)

    _, _, rest = answer.partition(b"\r\n\r\n")
    sizes = 0
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunk, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        assert chunk.endswith(b"\n") or not chunk
        sizes += 1
    assert sizes > 2


def test_copy_and_delete_answer_nothing(kvsup: RunningKvsup) -> None:
    """200 without a body or a type; the name is there, then gone."""
    copied = _send(kvsup, "POST /api/copy", {"source": "smollm2", "destination": "twin"})
    there = _send(kvsup, "POST /api/show", {"model": "twin"})
    deleted = _send(kvsup, "DELETE /api/delete", {"model": "twin"})
    gone = _send(kvsup, "POST /api/show", {"model": "twin"})

    for answer in (copied, deleted):
        assert (answer.status, answer.body, answer.type) == (200, b"", None)
    assert (there.status, gone.status) == (200, 404)


# 1.3 Routes


@pytest.mark.parametrize(("path", "allowed"), ROUTES.items())
def test_route_answers_its_methods_and_names_them_to_others(
    kvsup: RunningKvsup, path: str, allowed: tuple[str, ...]
) -> None:
    """A wrong method is 405 in plain text with ``Allow``; a right one gets to the route."""
    for method in METHODS:
        answer = _send(kvsup, f"{method} {path}", b"" if method in {"POST", "DELETE"} else None)

        if method in allowed:
            assert answer.status != 405
            assert answer.body != b"404 page not found"
            continue
        assert answer.status == 405
        assert set((answer.headers["allow"] or "").split(", ")) == set(allowed)
        assert answer.body == (b"" if method == "HEAD" else b"405 method not allowed")
        assert answer.type == "text/plain"


@pytest.mark.parametrize(
    "route",
    ["GET /nothing", "POST /api/web_search", "GET /api/", "GET /v1", "POST //api/chat"],
)
def test_unknown_path_is_the_404_page(kvsup: RunningKvsup, route: str) -> None:
    """Plain text, without a charset."""
    answer = _send(kvsup, route)

    assert (answer.status, answer.type) == (404, "text/plain")
    assert answer.body == b"404 page not found"


@pytest.mark.parametrize(
    ("route", "status"),
    [
        ("GET /api/tags", 301),
        ("GET /v1/models", 301),
        ("HEAD /api/tags", 307),
        ("POST /api/chat", 307),
        ("POST /v1/chat/completions", 307),
    ],
)
def test_slash_too_many_redirects_to_the_path_without_it(
    kvsup: RunningKvsup, route: str, status: int
) -> None:
    """A GET may become permanent, others keep method and body; the query stays."""
    answer = _send(kvsup, f"{route}/?a=1", b"{}" if route.startswith("POST") else None)

    target = urlsplit(answer.headers["location"] or "")
    assert answer.status == status
    assert (target.path, target.query) == (route.partition(" ")[2], "a=1")
    assert target.netloc in {"", urlsplit(kvsup.url).netloc}


# 1.4 CORS and Host


@pytest.mark.parametrize("origin", ["chrome-extension://abc", "null", "", "moz-extension://x"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_origin_that_is_not_listed_is_403_with_nothing(
    kvsup: RunningKvsup, method: str, origin: str
) -> None:
    """No body, no type, whatever the method; extensions must be listed."""
    answer = _send(kvsup, f"{method} /api/version", origin=origin)

    assert (answer.status, answer.body, answer.type) == (403, b"", None)
    assert answer.cors() == []


@pytest.mark.parametrize("path", ["/api/chat", "/nothing"])
def test_preflight_says_exactly_what_ollama_says(kvsup: RunningKvsup, path: str) -> None:
    """Field by field, on any path."""
    first = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,"

    answer = _send(kvsup, f"OPTIONS {path}", origin=LOCAL, access_control_request_method="POST")

    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == LOCAL
    assert answer.headers["access-control-max-age"] == "43200"
    methods = answer.headers["access-control-allow-methods"]
    assert methods == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    named = answer.headers["access-control-allow-headers"] or ""
    assert named.startswith(first + "X-Stainless-Arch,X-Stainless-Async,")
    assert named.count(",") == 17
    varies = ", ".join(answer.headers.get_all("vary") or [])
    assert varies == "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
    assert len(answer.cors()) == 4


def test_origin_is_judged_before_the_host_and_the_host_before_the_route(
    kvsup: RunningKvsup,
) -> None:
    """A preflight is answered whatever the Host; a page that is allowed may read the 403."""
    preflight = _send(kvsup, "OPTIONS /nothing", host="evil.example", origin=LOCAL)
    allowed = _send(kvsup, "GET /nothing", host="evil.example", origin=LOCAL)
    foreign = _send(kvsup, "GET /nothing", host="evil.example")

    assert preflight.status == 204
    assert (allowed.status, allowed.body) == (403, b"")
    assert allowed.headers["access-control-allow-origin"] == LOCAL
    assert (foreign.status, foreign.body, foreign.type) == (403, b"", None)
    assert foreign.headers["content-length"] == "0"


def test_host_of_the_machine_s_own_name_is_served(kvsup: RunningKvsup) -> None:
    """As a person would type it, in any case, with a port."""
    name = socket.gethostname()

    for host in (name, f"{name.upper()}:11434"):
        assert _send(kvsup, "GET /api/version", host=host).status == 200


def test_request_of_http_1_0_without_a_host_is_served(kvsup: RunningKvsup) -> None:
    """No Host is the empty one."""
    answer = _raw(kvsup, b"GET / HTTP/1.0\r\n\r\n")

    assert answer.split(b"\r\n")[0].endswith(b" 200 OK")
    assert answer.endswith(b"\r\n\r\nOllama is running")


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("localhost:11434", "/nothing", 204),
        ("box.local", "/api/chat", 204),
        ("127.0.0.1", "/api/chat", 405),
        ("127.0.0.1:11434", "/nothing", 404),
    ],
)
def test_options_without_an_origin_is_204_for_a_name_and_routed_for_an_address(
    kvsup: RunningKvsup, host: str, path: str, status: int
) -> None:
    """A quirk of Ollama's check of the Host."""
    answer = _send(kvsup, f"OPTIONS {path}", host=host)

    assert answer.status == status
    assert answer.cors() == []
