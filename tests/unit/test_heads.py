"""Heads of requests: what is one, what could be two, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.api.heads import BadHead, Head, has_bare_line_feed, read_head


def _head(*fields: bytes, line: bytes = b"POST /api/chat HTTP/1.1", host: bool = True) -> bytes:
    return b"\r\n".join((line, *((b"Host: localhost",) if host else ()), *fields))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (_head(), Head("/api/chat", 0)),
        (_head(b"content-LENGTH:  13 \t"), Head("/api/chat", 13)),
        (_head(b"Content-Length: 007"), Head("/api/chat", 7)),
        (_head(b"Transfer-Encoding: Chunked"), Head("/api/chat", None)),
        (_head(b"X-Empty:", b"X: \xff\xe4", b"X: b"), Head("/api/chat", 0)),
        (_head(b"X-Content-Length: 5", b"X: a content-length: 5"), Head("/api/chat", 0)),
        (_head(line=b"GET / HTTP/1.0", host=False), Head("/", 0)),
        (_head(line=b"GET /a?b=/c?d HTTP/1.1"), Head("/a", 0)),
        (_head(line=b"OPTIONS * HTTP/1.1"), Head("*", 0)),
        (_head(line=b"GET http://LocalHost/v1/models?x HTTP/1.1"), Head("/v1/models", 0)),
        (_head(line=b"GET /%00%0d%0a HTTP/1.1"), Head("/%00%0d%0a", 0)),
    ],
)
def test_head_says_its_path_and_how_long_its_body_is(head: bytes, expected: Head) -> None:
    """As clients write it: any case, blanks around values, any bytes in fields of no importance."""
    assert read_head(head) == expected


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (_head(b"Content-Length: 3", b"Content-Length: 3"), "2 fields content-length"),
        (_head(b"Content-Length: 3", b"content-length: 4"), "2 fields content-length"),
        (_head(b"Content-Length: 3", b"Transfer-Encoding: chunked"), "and a transfer-encoding"),
        (_head(b"Transfer-Encoding: chunked", b"Content-Length: 0"), "and a transfer-encoding"),
        (_head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"), "2 fields transfer-enc"),
        *(
            (_head(b"Content-Length: " + value), "content-length is no length")
            for value in (b"", b"+3", b"-3", b"3, 3", b"3 3", b"0x3", b"3.0", b"\xb2", b"9" * 19)
        ),
        *(
            (_head(b"Transfer-Encoding: " + value), "transfer-encoding is not chunked")
            for value in (b"", b"gzip, chunked", b"chunked, identity", b"xchunked", b"chunked;a=b")
        ),
        (
            _head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"),
            "HTTP/1.0 has no transfer-encoding",
        ),
        (_head(b"Host: evil.example"), "2 fields host"),
        (_head(host=False), "no field host"),
        (_head(line=b"GET http://evil.example/ HTTP/1.1"), "names another host"),
        (_head(line=b"GET http://a@localhost/ HTTP/1.1"), "names another host"),
        (_head(line=b"GET http://localhost/ HTTP/1.0", host=False), "names another host"),
        (_head(line=b"GET http://localhost HTTP/1.1"), "is no path"),
        (_head(line=b"GET ftp://localhost/ HTTP/1.1"), "is no path"),
        (_head(line=b"GET localhost:80 HTTP/1.1"), "is no path"),
        (_head(line=b"CONNECT localhost:80 HTTP/1.1"), "asks for a tunnel"),
        (_head(line=b"CONNECT /a HTTP/1.1"), "asks for a tunnel"),
        (_head(line=b"GET * HTTP/1.1"), "is no path"),
        (_head(line=b"GET a HTTP/1.1"), "is no path"),
        (_head(line=b"GET /a#b HTTP/1.1"), "fragment"),
        (_head(b" folded"), "goes on in a second line"),
        (_head(b"\tfolded"), "goes on in a second line"),
        (_head(b"Content-Length : 3"), "blank before the colon"),
        (_head(b"X\t: 3"), "blank before the colon"),
        (_head(b"X: \x00"), "control character"),
        (_head(b"X: \x7f"), "control character"),
        (_head(b": x"), "no name"),
        (_head(b"x"), "no name"),
        (_head(b""), "no name"),
        (_head(b"X\x00: 3"), "no name"),
        (_head("É: 3".encode()), "no name"),
        (_head(b"X: a\nContent-Length: 3"), "does not end in CR LF"),
        (_head(b"X: a\rContent-Length: 3"), "does not end in CR LF"),
        (b"GET / HTTP/1.1\nHost: localhost", "does not end in CR LF"),
        *(
            (_head(line=line), "first line is not")
            for line in (
                b"", b"GET /", b"GET / HTTP/1.2", b"GET  / HTTP/1.1", b"GET\t/ HTTP/1.1",
                b"GET /a b HTTP/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET / http/1.1",
                b"GET /\x7f HTTP/1.1", b"GET /\xe4 HTTP/1.1", b"G(T / HTTP/1.1", b"/ HTTP/1.1",
            )
        ),
    ],
)  # fmt: skip
def test_head_that_leaves_a_doubt_is_refused_with_its_reason(head: bytes, text: str) -> None:
    """One reader would see another request than the next."""
    with pytest.raises(BadHead, match=text) as caught:
        read_head(head)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "line", [b"PRI * HTTP/2.0", b"GET / HTTP/1", b"GET / HTTP/2", b"GET / HTTP/0.9"]
)
def test_other_version_is_505(line: bytes) -> None:
    """So a client knows that it should speak another one."""
    with pytest.raises(BadHead) as caught:
        read_head(line)
    assert caught.value.status == 505


@pytest.mark.parametrize(
    "head", [_head(b"Content-Length: x"), _head(b"Host: b"), _head(b"X : a"), _head(host=False)]
)
def test_refusal_of_a_head_knows_its_path(head: bytes) -> None:
    """By it the answer has the shape of its API."""
    with pytest.raises(BadHead) as caught:
        read_head(head)
    assert caught.value.path == "/api/chat"


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_head_of_any_bytes_is_read_or_refused(start: bytes, end: bytes) -> None:
    """Nothing else is raised; what is read has no line end within."""
    for head in (start, start + b" /" + end + b" HTTP/1.1\r\nHost: a", _head(start + b":" + end)):
        try:
            read = read_head(head)
        except BadHead:
            continue
        assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")
        assert read.body_bytes is None or read.body_bytes >= 0


@pytest.mark.parametrize("n_bytes", range(1, 8))
def test_line_end_that_is_cut_by_arrival_is_one(n_bytes: int) -> None:
    """Wherever a packet ends."""
    head = b"GET / \r\nX: y\r\n"

    assert not any(has_bare_line_feed(head[:end], start=max(0, end - n_bytes)) for end in range(14))
    assert has_bare_line_feed(b"ab\n", start=2)
