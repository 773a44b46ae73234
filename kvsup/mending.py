"""What the APIs beside Ollama's share: a prepared request, a mended answer, faults of a body."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from kvsup.errors import RequestError

T = TypeVar("T")

_FAULT = re.compile(
    r"Expected `(?P<expected>[^`]+)`, got `(?P<got>[^`]+)`(?: - at `\$(?P<at>.*)`)?"
)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`(?: - at `\$(?P<at>.*)`)?")

_WORDS = {
    "int": "an integer",
    "int | float": "an integer",
    "float": "a decimal",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


class Mend(Protocol):
    """Changes the bytes of one answer with status 200; one object an attempt."""

    def feed(self, data: bytes) -> bytes:
        """Return what to send for ``data``, empty if nothing yet."""

    def finish(self) -> bytes:
        """Return what to send at the end."""


@dataclass(frozen=True, slots=True)
class Instead:
    """Another request of llama-server's that does what the client's own cannot."""

    path: str
    body: bytes
    """JSON, to which the model's settings are still added."""
    is_folded: bool = False
    """Whether it is answered with a stream that the mend makes one JSON object of."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a request needs beyond being passed on."""

    forced: Mapping[str, object] = field(default_factory=dict)
    """Members to append to the request's object, where they win over the client's own.

    Values that msgspec encodes: some are ``msgspec.Raw``, the client's own JSON.
    """
    make_mend: Callable[[int], Mend] | None = None
    """Makes what mends the answer of an instance with so many tokens of context for one request.

    None where the answer's bytes stay untouched.
    """
    instead: Instead | None = None
    """What is sent in place of the request; None where that goes where it came to."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong with a decoded body."""

    param: str
    """Where it is, such as ``messages[0].role``; empty for the body itself."""
    expected: str
    """What should stand there, in words; empty where something is missing."""
    got: str = ""
    """What stands there, in words; empty where nothing does."""


class MalformedError(RequestError):
    """A body is no JSON."""


def read(decode: Callable[[Any], T], raw: bytes | msgspec.Raw, at: str = "") -> T | Fault:
    """Return what ``decode`` makes of ``raw``, or what is wrong with it.

    Args:
        decode: a decoder of msgspec.
        raw: the JSON.
        at: where ``raw`` stands in the body, such as ``messages[0]``.

    Raises:
        MalformedError: it is no JSON.
    """
    try:
        return decode(raw)
    except msgspec.ValidationError as error:
        return _fault(str(error), at)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedError(str(error)) from error
    except RecursionError as error:
        raise MalformedError("the JSON is nested too deeply") from error


def _fault(text: str, at: str) -> Fault:
    """Return the fault that msgspec describes in ``text``."""
    if found := _MISSING.match(text):
        return Fault(_joined(at, found["at"] or "", f".{found['name']}"), "")
    if found := _FAULT.match(text):
        expected = found["expected"].removesuffix(" | null")
        words = _WORDS.get(expected) or " or ".join(_word(part) for part in expected.split(" | "))
        return Fault(_joined(at, found["at"] or ""), words, _word(found["got"]))
    return Fault(at, text)


def _word(name: str) -> str:
    return _WORDS.get(name, name)


def _joined(*parts: str) -> str:
    return "".join(parts).removeprefix(".")


class WholeMend:
    """Changes an answer that is one JSON object; what is none passes as it came."""

    def __init__(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._change = change
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """Keep ``data``; return nothing."""
        self._pieces.append(data)
        return b""

    def finish(self) -> bytes:
        """Return the changed object."""
        data = b"".join(self._pieces)
        try:
            answer = msgspec.json.decode(data)
        except msgspec.DecodeError:
            return data
        return msgspec.json.encode(self._change(answer)) if isinstance(answer, dict) else data
