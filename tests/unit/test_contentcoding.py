"""Request bodies that their client has compressed."""

import gzip
import zlib

import pytest
from backports import zstd

from kvsup.api.contentcoding import TooLarge, decoded
from kvsup.errors import RequestError

BODY = b'{"model": "m"}' * 50


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("", BODY),
        ("identity", BODY),
        ("zstd", zstd.compress(BODY)),
        (" ZSTD ", zstd.compress(BODY)),
        ("gzip", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
    ],
)
def test_body_is_that_before_its_coding(coding: str, packed: bytes) -> None:
    """Case and blanks of the header do not count."""
    assert decoded(packed, coding, max_bytes=len(BODY)) == BODY


@pytest.mark.parametrize("packed", [zstd.compress(BODY), gzip.compress(BODY)])
def test_body_that_unpacks_to_more_than_the_limit_is_too_large(packed: bytes) -> None:
    """A small body may not become a large one."""
    coding = "gzip" if packed.startswith(b"\x1f\x8b") else "zstd"

    with pytest.raises(TooLarge, match=f"larger than {len(BODY) - 1} bytes"):
        decoded(packed, coding, max_bytes=len(BODY) - 1)


@pytest.mark.parametrize(
    ("coding", "packed", "text"),
    [
        ("br", BODY, "'br' is not supported; send zstd or gzip"),
        ("zstd", BODY, "the body is not zstd"),
        ("gzip", BODY, "the body is not gzip"),
        ("zstd", zstd.compress(BODY)[:-4], "ends too early"),
        ("gzip", gzip.compress(BODY)[:-9], "ends too early"),
        ("zstd", b"", "ends too early"),
    ],
)
def test_body_without_the_coding_it_claims_is_refused(
    coding: str, packed: bytes, text: str
) -> None:
    """The text names the coding and what to send."""
    with pytest.raises(RequestError, match=text):
        decoded(packed, coding, max_bytes=1 << 20)
