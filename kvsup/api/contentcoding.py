"""Request bodies that their client has compressed: Ollama takes zstd on ``/v1`` (2026-08)."""

import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Protocol

from kvsup.errors import RequestError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class TooLarge(RequestError):  # noqa: N818 - it says what is
    """A body is larger than ``max_body``, as sent or decompressed."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"request body is larger than {max_bytes} bytes")


_ANY_HEADER = 32 + zlib.MAX_WBITS
_PIECE_BYTES = 16 * 1024
_MAX_MEMBERS = 10_000  # an empty one takes 10 µs


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _inflate() -> _Decompressor:
    return zlib.decompressobj(_ANY_HEADER)


_DECOMPRESSORS: Mapping[str, Callable[[], _Decompressor]] = {
    "zstd": zstd.ZstdDecompressor,
    "gzip": _inflate,
    "x-gzip": _inflate,
    "deflate": _inflate,
}


def decoded(body: bytes, coding: str, *, max_bytes: int) -> bytes:
    """Return ``body`` without its content coding: zstd, gzip or deflate; empty for none.

    It may come in several gzip members or zstd frames one behind the other, as encoders of streams
    write them.

    Raises:
        TooLarge: it would have more than ``max_bytes``.
        RequestError: the coding is another, or ``body`` does not have it from end to end.
    """
    coding = coding.strip().lower()
    if coding in {"", "identity"}:
        return body
    if coding not in _DECOMPRESSORS:
        raise RequestError(f"content-encoding {coding!r} is not supported; send zstd or gzip")
    try:
        return _unpacked(body, _DECOMPRESSORS[coding], max_bytes)
    except (zlib.error, zstd.ZstdError, _Malformed) as error:
        raise RequestError(f"the body is not {coding}: {error}") from error


class _Malformed(Exception):  # noqa: N818 - it says what is
    pass


def _unpacked(body: bytes, start: Callable[[], _Decompressor], max_bytes: int) -> bytes:
    unpacked = bytearray()
    decompressor, n_members, at = start(), 1, 0
    while at < len(body):
        if decompressor.eof:
            decompressor, n_members = start(), n_members + 1
        if n_members > _MAX_MEMBERS:
            raise _Malformed(f"it has more than {_MAX_MEMBERS} parts")
        # in pieces, because each member copies what is behind it in its piece
        piece = body[at : at + _PIECE_BYTES]
        unpacked += decompressor.decompress(piece, max_bytes + 1 - len(unpacked))
        if len(unpacked) > max_bytes:
            raise TooLarge(max_bytes)
        at += len(piece) - len(decompressor.unused_data)
    if not decompressor.eof:
        raise _Malformed("it ends too early")
    return bytes(unpacked)
