"""JSON as Ollama writes it: compact, RFC 3339 times, nothing that clients take for a line end."""

from datetime import datetime, timezone
from functools import lru_cache

import msgspec

_encode = msgspec.json.Encoder().encode

_NS_PER_S = 1_000_000_000


def encode(value: object) -> bytes:
    """Return ``value`` as compact JSON, escaped as Go escapes it."""
    return escape(_encode(value))


def escape(text: bytes) -> bytes:
    r"""Return JSON text with ``<``, ``>``, ``&`` and Unicode's line ends as ``\u`` escapes.

    Go does so for all but U+0085. httpx, and with it ollama-python, cuts lines at that one, too
    (``str.splitlines``), so none may stand in a stream.
    """
    text = text.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
    if text.isascii():
        return text
    return (
        text.replace(b"\xe2\x80\xa8", b"\\u2028")
        .replace(b"\xe2\x80\xa9", b"\\u2029")
        .replace(b"\xc2\x85", b"\\u0085")
    )


def rfc3339(time_ns: int) -> str:
    """Return a time since the epoch in UTC, with as many of nine fraction digits as it has."""
    return stamp(time_ns).decode()


def stamp(time_ns: int) -> bytes:
    """Return ``rfc3339`` as bytes; cheap enough for every token."""
    seconds, fraction_ns = divmod(time_ns, _NS_PER_S)
    return _second(seconds) + (b".%09d" % fraction_ns).rstrip(b".0") + b"Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> bytes:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S").encode()
