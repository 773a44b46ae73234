"""Requests that two readers could take for different ones, as bytes on a real connection."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.sockets import connect, hear, request, say
from tests.running import RunningKvsup

MODEL = """
model = "{path}"
num_ctx = 256
threads = 1
"""

BODY = b'{"model":"m"}'
CHUNKED = ["POST /api/show HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked"]
EVIL = b"GET /kvsup/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""What a smuggler hides in another request."""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file, whose log must stay empty of all this."""
    folder = tmp_path_factory.mktemp("framing") / "kvsup"
    models = {"m": MODEL.format(path=smollm2)}
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert "Traceback" not in running.log()
    assert "malformed" not in running.log()
    assert "Invalid HTTP" not in running.log()


def chunked(data: bytes, *fields: str) -> bytes:
    """Return a request with a body in the given chunks."""
    return "\r\n".join((*CHUNKED, *fields, "", "")).encode() + data


@pytest.mark.parametrize(
    "sent",
    [
        request("POST /api/show", BODY, "Content-Length: 13"),
        request("POST /api/show", BODY, "Content-Length: 5"),
        request("POST /api/show", BODY + EVIL, "Transfer-Encoding: chunked"),
        request("POST /api/show", b"0\r\n\r\n" + EVIL, "Transfer-Encoding: chunked"),
        request("POST /api/show", b"0\r\n\r\n" + EVIL, "Transfer-Encoding: \x0bchunked"),
        request("POST /api/show", b"0\r\n\r\n" + EVIL, "Transfer-Encoding : chunked"),
        request("POST /api/show", BODY, "X: a\r\n Content-Length: 0"),
        request("POST /api/show", BODY, "X: a\nContent-Length: 0"),
        request("POST /api/show", BODY, "X: a\rContent-Length: 0"),
        request("POST /api/show", BODY, "X: a\0b"),
        request("POST /api/show", BODY, "Host: evil.example"),
        request("POST http://evil.example/api/show", BODY),
        request("CONNECT localhost:80"),
        request("CONNECT /api/version"),
        request("CONNECT http://localhost/api/version"),
        request("GET localhost:80"),
        request("GET /api/version#fragment"),
        request("GET /api/version\0"),
        request("POST /api/show", BODY).replace(b"\r\n", b"\n"),
        b"GET /api/version\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 64,
        *(
            chunked(data)
            for data in (
                b"0xd\r\n" + BODY + b"\r\n0\r\n\r\n",
                b"+d\r\n" + BODY + b"\r\n0\r\n\r\n",
                b" d\r\n" + BODY + b"\r\n0\r\n\r\n",
                b"-1\r\n" + BODY + b"\r\n0\r\n\r\n",
                b"d\n" + BODY + b"\r\n0\r\n\r\n",
                b"d\r\n" + BODY + b"\n0\r\n\r\n",
                b"d;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n",
                b"1000000000000000d\r\n" + BODY + b"\r\n0\r\n\r\n",
                b"fffffffffffffffff\r\n" + BODY,
                b"c\r\n" + BODY + b"\r\n0\r\n\r\n",
                b"\r\n" + BODY,
                b"d\r\n" + BODY + b"\r\n0\n\n",
            )
        ),
    ],
)
def test_request_of_two_readings_is_400_and_ends_the_connection(
    kvsup: RunningKvsup, sent: bytes
) -> None:
    """One answer, nothing of what hides behind it, and a text that says why."""
    heard = say(kvsup, sent)

    assert heard.statuses == [400]
    assert b"connection: close" in heard.data
    assert b"malformed request: " in heard.body or b"TLS" in heard.body


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/api/chat", {"error"}),
        ("/v1/chat/completions", {"error"}),
        ("/v1/messages", {"type", "error", "request_id"}),
    ],
)
def test_refused_head_is_told_in_the_shape_of_its_api(
    kvsup: RunningKvsup, path: str, keys: set[str]
) -> None:
    """A text in Ollama's, an object in the others'."""
    error = json.loads(say(kvsup, request(f"POST {path}", BODY, "Content-Length: 13")).body)

    assert set(error) == keys
    assert isinstance(error["error"], str if path.startswith("/api") else dict)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize("n_bytes", [70_000, 2_000_000])
def test_head_that_is_too_large_is_431(kvsup: RunningKvsup, path: str, n_bytes: int) -> None:
    """However much follows, the answer is heard."""
    heard = say(kvsup, request(f"POST {path}", BODY, "X: " + "a" * n_bytes))

    assert heard.statuses == [431]
    assert b"larger than 65536 bytes" in heard.body


def test_head_that_is_as_large_as_it_may_be_is_read(kvsup: RunningKvsup) -> None:
    """Cookies of other programs on localhost come along."""
    heard = say(kvsup, request("GET /api/version", b"", "Cookie: " + "a" * 64_000))

    assert heard.statuses == [200]


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n" + request("POST /api/show", BODY),
        request("POST http://LOCALHOST/api/show", BODY),
        request("POST /api/show", BODY, "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        *(
            request("POST /api/show", BODY, f"{name}: h2c", is_last=False).replace(
                b"Host:", b"Connection: close, Upgrade\r\nHost:"
            )
            for name in ("Upgrade", "UPGRADE", "uPGRADE")
        ),
        chunked(
            b"d\r\n" + BODY + b"\r\n0\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
            "Connection: close",
        ),
        request("POST /api/show", BODY, "Expect: 100-continue").replace(b"100-", b"x-"),
        chunked(b"d;ext=1\r\n" + BODY + b"\r\n0\r\n\r\n", "Connection: close"),
        chunked(b"000d\r\n" + BODY + b"\r\n0\r\nX-Api-Key: a\r\n\r\n", "Connection: close"),
        chunked(b"1\r\n{\r\nC\r\n" + BODY[1:] + b"\r\n0\r\n\r\n", "Connection: close"),
    ],
)
def test_request_that_is_only_unusual_is_served(kvsup: RunningKvsup, sent: bytes) -> None:
    """An empty line before it, its own host in the target, an offer, extensions and trailers."""
    heard = say(kvsup, sent)

    assert heard.statuses == [200]
    assert b"model_info" in heard.data


@pytest.mark.parametrize("n_bytes", [1, 2, 7])
def test_request_in_pieces_of_any_size_is_read(kvsup: RunningKvsup, n_bytes: int) -> None:
    """No line end, length or chunk is lost between two packets."""
    sent = request("POST /api/show", BODY, is_last=False)
    sent += request("GET /api/version", is_last=False)
    chunks = b"5\r\n" + BODY[:5] + b"\r\n8\r\n" + BODY[5:] + b"\r\n0\r\n\r\n"
    sent += chunked(chunks, "Connection: close")
    with closing(connect(kvsup)) as connection:
        for at in range(0, len(sent), n_bytes):
            connection.send(sent[at : at + n_bytes])
        heard = hear(connection)

    assert heard.statuses == [200, 200, 200]


def test_requests_sent_ahead_are_answered_in_order(kvsup: RunningKvsup) -> None:
    """Each head among them is judged."""
    first = request("GET /api/version", is_last=False)

    assert say(kvsup, first * 3 + request("GET /nothing")).statuses == [200, 200, 200, 404]
    assert say(kvsup, first + request("GET /", b"", "X : y") + first).statuses == [200, 400]


def test_request_behind_chunks_in_one_piece_is_not_read(kvsup: RunningKvsup) -> None:
    """Its head could not be judged: the connection ends, and the client asks again on another."""
    heard = say(kvsup, chunked(b"d\r\n" + BODY + b"\r\n0\r\n\r\n") + EVIL)

    assert heard.statuses == [200]
    assert b"model_info" in heard.data


@pytest.mark.parametrize("data", [b"d;" + b"a" * 400_000, b"0\r\nX: " + b"a" * 400_000])
def test_chunks_without_a_body_in_them_do_not_go_on_for_ever(
    kvsup: RunningKvsup, data: bytes
) -> None:
    """An extension or a trailer is bounded as heads are."""
    assert say(kvsup, chunked(data)).statuses == [400]


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat", "/nothing", "/v1/completions"])
def test_body_over_its_bound_is_413_before_it_is_sent(kvsup: RunningKvsup, path: str) -> None:
    """Its announced length is enough; what was sent meanwhile does not cost the answer."""
    heard = say(kvsup, request(f"POST {path}", b"x" * 300_000, length=101 << 20, is_last=False))

    assert heard.statuses == [404 if path == "/nothing" else 413]
    if path != "/nothing":
        assert b"larger than 104857600 bytes" in heard.body


@pytest.mark.parametrize(
    "path",
    [
        "/upstream/m/v1/%0d%0aX-Evil:%20a%0d%0a%0d%0a", "/v1/%0d%0a%0d%0aGET%20/evil", "/v1/%00",
        "/upstream/m/health%20HTTP/1.1%0d%0a%0d%0a",
    ],
)  # fmt: skip
def test_path_with_line_ends_is_no_second_request_to_llama_server(
    kvsup: RunningKvsup, path: str
) -> None:
    """It goes on as it was sent, and llama-server knows no such path."""
    heard = say(kvsup, request(f"POST {path}", BODY))

    assert heard.statuses == [404]
