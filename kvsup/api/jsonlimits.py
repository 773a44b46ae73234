"""Bounds on JSON that a decoder would pay for: how deep it nests, how many values it holds.

A decoder of C code neither yields to the event loop nor stops, so what is too much must be found
before, by means that are quick at any size: text is counted and cut by C code, with no recursion.
"""

import re
from array import array
from itertools import accumulate

from kvsup.errors import RequestError

MAX_DEPTH = 128
"""Arrays and objects within each other; the schemas and conversations of clients have some 20."""

MAX_VALUES = 1_000_000
"""Values in one body: some 0.2 s of decoding. A prompt of a million tokens still passes."""

_CONTAINER_VALUES = 4
"""An array or object costs a decoder, and the collector of garbage, as much as so many numbers."""

FEW_BYTES = 1 << 20
"""A body as small as this cannot hold too many values."""

_FIRST = re.compile(rb"[^ \t\r\n\xef\xbb\xbf]")
"""Finds what stands behind the blanks, and the byte order mark, that decoders skip."""

_STEPS = bytes(1 if byte in b"[{" else 255 if byte in b"]}" else 0 for byte in range(256))
"""What each byte does to the depth, as a signed byte."""
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def check_json(body: bytes) -> None:
    """Raise if ``body`` is JSON that nests too deep or holds too much; whatever else passes.

    Raises:
        RequestError: it does.
    """
    first = _FIRST.search(body)
    if first is None or first[0] not in {b"[", b"{"}:
        return
    if len(body) <= FEW_BYTES and body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    bare = _without_escapes(body)
    if bare.count(b'"') > 2 * MAX_VALUES:
        raise _too_many()
    structure = b"".join(bare.split(b'"')[::2])
    n_opened = structure.count(b"[") + structure.count(b"{")
    if n_opened * _CONTAINER_VALUES + structure.count(b",") > MAX_VALUES:
        raise _too_many()
    if n_opened > MAX_DEPTH:
        steps = array("b", structure.translate(_STEPS, _NO_BRACKETS))
        # Behind twice as many as were opened, the depth is below zero.
        if max(accumulate(steps[: 2 * n_opened])) > MAX_DEPTH:
            raise RequestError(f"the body nests deeper than {MAX_DEPTH} levels")


def _without_escapes(body: bytes) -> bytes:
    """Return ``body`` without backslashes and quotes that are escaped: each quote is a real one."""
    if b"\\" not in body:
        return body
    return body.replace(b"\\\\", b"").replace(b'\\"', b"")


def _too_many() -> RequestError:
    return RequestError(f"the body holds more than {MAX_VALUES} values")
