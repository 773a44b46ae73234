"""Which HTTP status each exception becomes, and the three shapes of an error answer."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from kvsup.anthropic import errors as anthropic_errors
from kvsup.api.contentcoding import TooLarge
from kvsup.api.naming import CloudDisabled
from kvsup.errors import (
    CapacityError,
    ConfigError,
    EngineError,
    InstanceError,
    KvsupError,
    ModelNotFound,
    QueueFull,
    RequestError,
    Unsupported,
    UpstreamError,
)
from kvsup.llama.wire import error_message
from kvsup.ollama.gotemplate import TemplateError
from kvsup.ollama.ndjson import encode
from kvsup.ollama.options import OptionTypeError
from kvsup.ollama.requests import InvalidFormat
from kvsup.openai import errors as openai_errors

STATUS: dict[type[KvsupError], int] = {
    RequestError: 400,
    ModelNotFound: 404,
    CloudDisabled: 403,
    TooLarge: 413,
    OptionTypeError: 500,  # Ollama's own choice (server/routes.go, 2026-08)
    InvalidFormat: 500,  # as above
    TemplateError: 500,  # as above
    Unsupported: 501,
    CapacityError: 503,
    ConfigError: 400,
    InstanceError: 500,
    UpstreamError: 500,
}
"""By the nearest class in the exception's line of descent."""


def status_of(error: KvsupError, shape: "ErrorShape") -> int:
    """Return the HTTP status of an error that is found before the first byte of an answer."""
    if isinstance(error, EngineError):
        return error.status
    if isinstance(error, QueueFull):
        return shape.queue_full_status
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """How one API writes its errors."""

    body: Callable[[str, int], bytes]
    """The whole answer, from a text and a status."""
    last_event: Callable[[bytes], bytes]
    """The end of a stream that broke after its first byte, from a whole answer."""
    of_engine: Callable[[bytes, int], bytes]
    """The whole answer, from llama-server's and a status."""
    queue_full_status: int
    """By which its clients know that they should try again later."""


def _request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


OLLAMA = ErrorShape(
    body=lambda text, _status: encode({"error": text}),
    last_event=lambda body: body + b"\n",
    of_engine=lambda body, _status: encode({"error": error_message(body)}),
    queue_full_status=503,
)
OPENAI = ErrorShape(
    body=openai_errors.error_body,
    last_event=openai_errors.last_event,
    of_engine=openai_errors.from_engine,
    queue_full_status=429,
)
ANTHROPIC = ErrorShape(
    body=lambda text, status: anthropic_errors.error_body(text, status, request_id=_request_id()),
    last_event=anthropic_errors.last_event,
    of_engine=lambda body, status: anthropic_errors.from_engine(
        body, status, request_id=_request_id()
    ),
    queue_full_status=529,
)


def shape_for(path: str) -> ErrorShape:
    """Return the shape of the API that ``path`` belongs to."""
    if path.startswith(("/api/", "/kvsup")):
        return OLLAMA
    return ANTHROPIC if path.startswith("/v1/messages") else OPENAI
