"""Request bodies that their client has compressed."""

import gzip
import random
import zlib
from collections.abc import Callable

import pytest
from backports import zstd

from kvsup.api.contentcoding import TooLarge, decoded
from kvsup.errors import RequestError

BODY = b'{"model": "m"}' * 50
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}


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


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("n_parts", [2, 300])
def test_body_in_several_members_or_frames_is_whole(coding: str, n_parts: int) -> None:
    """Encoders of streams write one for each piece, also for an empty one."""
    pack = PACKERS[coding]
    parts = [bytes([i % 256]) * (i % 3) * 1000 for i in range(n_parts)]

    unpacked = decoded(b"".join(map(pack, parts)), coding, max_bytes=1 << 20)

    assert unpacked == b"".join(parts)


@pytest.mark.parametrize("coding", PACKERS)
def test_large_body_that_does_not_shrink_is_whole(coding: str) -> None:
    """What is read piece by piece loses nothing between them."""
    body = random.Random(0).randbytes(300_000)
    pack = PACKERS[coding]

    assert decoded(pack(body) + pack(BODY), coding, max_bytes=1 << 20) == body + BODY


def test_frame_that_zstd_says_to_skip_is_nothing() -> None:
    """Encoders put what they like into it (RFC 8878, 3.1.2)."""
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"

    assert decoded(skippable + zstd.compress(BODY), "zstd", max_bytes=len(BODY)) == BODY


@pytest.mark.parametrize("coding", PACKERS)
def test_limit_is_that_of_all_members_together(coding: str) -> None:
    """Otherwise many of them would pass what one may not."""
    packed = PACKERS[coding](BODY) * 2

    assert decoded(packed, coding, max_bytes=2 * len(BODY)) == BODY * 2
    with pytest.raises(TooLarge):
        decoded(packed, coding, max_bytes=2 * len(BODY) - 1)


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("garbage", [b"\x00", b"garbage", BODY])
def test_body_with_something_else_behind_it_is_refused(coding: str, garbage: bytes) -> None:
    """Nothing that was sent is dropped in silence."""
    with pytest.raises(RequestError, match=f"the body is not {coding}"):
        decoded(PACKERS[coding](BODY) + garbage, coding, max_bytes=1 << 20)


@pytest.mark.parametrize("coding", PACKERS)
def test_number_of_members_is_bounded(coding: str) -> None:
    """Each takes time, also where it holds nothing."""
    with pytest.raises(RequestError, match="more than 10000 parts"):
        decoded(PACKERS[coding](b"") * 10_001, coding, max_bytes=1 << 20)
