"""Which HTTP status each exception becomes, and the two shapes of an error answer."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from kvsup.errors import (
    CapacityError,
    EngineError,
    InstanceError,
    KvsupError,
    ModelNotFound,
    QueueFull,
    RequestError,
    UpstreamError,
)
from kvsup.ollama.ndjson import encode
from kvsup.ollama.options import OptionTypeError
from kvsup.ollama.requests import InvalidFormat

STATUS: dict[type[KvsupError], int] = {
    RequestError: 400,
    ModelNotFound: 404,
    OptionTypeError: 500,  # Ollama's own choice (server/routes.go, 2026-08)
    InvalidFormat: 500,  # as above
    CapacityError: 503,
    QueueFull: 503,
    InstanceError: 500,
    UpstreamError: 500,
}
"""By the nearest class in the exception's line of descent."""


def status_of(error: KvsupError) -> int:
    """Return the HTTP status of an error that is found before the first byte of an answer."""
    if isinstance(error, EngineError):
        return error.status
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """How one API writes its errors."""

    body: Callable[[str, int], bytes]
    """The whole answer, from a text and a status."""
    last_event: Callable[[bytes], bytes]
    """The end of a stream that broke after its first byte, from a whole answer."""


def _openai_body(text: str, status: int) -> bytes:
    kinds = {400: "invalid_request_error", 404: "not_found_error", 503: "unavailable_error"}
    kind = kinds.get(status, "api_error")
    return msgspec.json.encode(
        {"error": {"message": text, "type": kind, "param": None, "code": None}}
    )


OLLAMA = ErrorShape(
    body=lambda text, _status: encode({"error": text}),
    last_event=lambda body: body + b"\n",
)
OPENAI = ErrorShape(body=_openai_body, last_event=lambda body: b"data: " + body + b"\n\n")
