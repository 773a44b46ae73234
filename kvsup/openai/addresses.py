"""Media that a request names by an address instead of bringing them.

llama-server would fetch them, following redirects, from wherever the machine can reach (b11434,
server-common.cpp), so whoever may ask a model could read the machine's own network. Ollama refuses
them all (openai/openai.go, anthropic/anthropic.go, 2026-08).
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from kvsup.errors import RequestError

_MAYBE = re.compile(rb'"\s*https?:|\\u', re.IGNORECASE)
"""An address, or an escape that could hide one."""

_LARGE_BYTES = 1 << 20
"""To decode a body as large is quicker than to search it."""

_ADDRESS = re.compile(r"\s*https?:", re.IGNORECASE)
_MEDIA = re.compile(r"(?:input_)?(?:image|audio|video|file)(?:_url)?|document")


class _Body(msgspec.Struct, frozen=True):
    messages: Any = None
    input: Any = None


_body = msgspec.json.Decoder(_Body).decode


def names_an_address(body: bytes) -> bool:
    """Say whether a medium in ``messages`` or ``input`` of a JSON body is given by an address.

    Raises:
        RequestError: the body cannot be read.
    """
    if b"\\u" not in body and b"http" not in body.lower():
        return False
    if len(body) < _LARGE_BYTES and not _MAYBE.search(body):
        return False
    try:
        request = _body(body)
        return any(map(_is_address, _media_texts([request.messages, request.input])))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"invalid request: {error}") from error


def _media_texts(value: Any) -> Iterator[str]:
    """Yield each text within a part that is a medium, at any depth of messages and results."""
    if isinstance(value, list):
        for item in value:
            yield from _media_texts(item)
    elif isinstance(value, dict):
        kind = value.get("type")
        if isinstance(kind, str) and _MEDIA.fullmatch(kind):
            yield from _texts(value)
        else:
            yield from _media_texts(value.get("content"))
            yield from _media_texts(value.get("output"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _is_address(text: str) -> bool:
    return _ADDRESS.match(text) is not None
