"""Media that a request names by an address instead of bringing them.

llama-server would fetch them, following redirects, from wherever the machine can reach (b11434,
server-common.cpp), so whoever may ask a model could read the machine's own network. Ollama refuses
them all (openai/openai.go, anthropic/anthropic.go, 2026-08). kvsup refuses them as well, or fetches
images itself (``runtime/images.py``) and puts them in their place.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from kvsup.errors import RequestError

_MAYBE = re.compile(rb'"\s*https?:|\\u', re.IGNORECASE)
"""An address, or an escape that could hide one."""

_LARGE_BYTES = 1 << 20
"""To decode a body as large is quicker than to search it."""

_ADDRESS = re.compile(r"\s*https?:", re.IGNORECASE)
_MEDIA = re.compile(r"(?:input_)?(?:image|audio|video|file)(?:_url)?|document")


Image = tuple[str, str]
"""A fetched image: its media type, and its bytes in base64."""


class Addressed:
    """A request some of whose images are addresses."""

    def __init__(self, body: bytes) -> None:
        """Read the whole of ``body``.

        Raises:
            RequestError: it cannot be read, or a medium that is no image is an address.
        """
        try:
            self._request = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(f"invalid request: {error}") from error
        self._places: list[tuple[str, Callable[[Image], None]]] = []
        contents = [self._request.get("messages"), self._request.get("input")]
        n_addresses = sum(map(_is_address, _media_texts(contents)))
        for part in _media(contents):
            self._places += _image_places(part)
        if len(self._places) != n_addresses:
            raise RequestError("only images may be named by a URL; send other media as base64")

    @property
    def addresses(self) -> list[str]:
        """Return each address once, in order."""
        return list(dict.fromkeys(address for address, _ in self._places))

    def with_images(self, images: Mapping[str, Image]) -> bytes:
        """Return the body with an image of ``images`` in the place of each address."""
        for address, put in self._places:
            put(images[address])
        return msgspec.json.encode(self._request)


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
    for part in _media(value):
        yield from _texts(part)


def _media(value: Any) -> Iterator[dict[str, Any]]:
    """Yield each part that is a medium."""
    if isinstance(value, list):
        for item in value:
            yield from _media(item)
    elif isinstance(value, dict):
        kind = value.get("type")
        if isinstance(kind, str) and _MEDIA.fullmatch(kind):
            yield value
        else:
            yield from _media(value.get("content"))
            yield from _media(value.get("output"))


def _image_places(part: dict[str, Any]) -> Iterator[tuple[str, Callable[[Image], None]]]:
    """Yield the address of an image part, and what puts an image there: OpenAI's, Anthropic's."""
    if part["type"] in {"image_url", "input_image"}:
        inner = part.get("image_url")
        holder, key = (inner, "url") if isinstance(inner, dict) else (part, "image_url")

        def put(image: Image) -> None:
            holder[key] = "data:{};base64,{}".format(*image)

    else:
        inner = part.get("source")
        holder, key = (inner, "url") if isinstance(inner, dict) else ({}, "url")

        def put(image: Image) -> None:
            part["source"] = {"type": "base64", "media_type": image[0], "data": image[1]}

    address = holder.get(key)
    is_image = part["type"] in {"image_url", "input_image", "image"}
    if is_image and isinstance(address, str) and _is_address(address):
        yield address.strip(), put


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _is_address(text: str) -> bool:
    return _ADDRESS.match(text) is not None
