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


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

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

    Raises:
        TooLarge: it would have more than ``max_bytes``.
        RequestError: the coding is another, or ``body`` does not have it.
    """
    coding = coding.strip().lower()
    if coding in {"", "identity"}:
        return body
    if coding not in _DECOMPRESSORS:
        raise RequestError(f"content-encoding {coding!r} is not supported; send zstd or gzip")
    decompressor = _DECOMPRESSORS[coding]()
    try:
        unpacked = decompressor.decompress(body, max_bytes + 1)
    except (zlib.error, zstd.ZstdError) as error:
        raise RequestError(f"the body is not {coding}: {error}") from error
    if len(unpacked) > max_bytes:
        raise TooLarge(max_bytes)
    if not decompressor.eof:
        raise RequestError(f"the body is not {coding}: it ends too early")
    return unpacked
