"""Errors in Anthropic's shape, so that its SDKs raise the right class and tools know the text."""

from typing import Any

import msgspec

from kvsup.llama.wire import error_message

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Ollama's table (anthropic/anthropic.go, 2026-08), and Anthropic's own 413 and 504."""


def error_body(message: str, status: int, *, request_id: str | None = None) -> bytes:
    """Return the body of an answer with ``status``.

    Args:
        message: what is wrong.
        status: of the HTTP answer, which decides the type.
        request_id: ``req_`` and 24 hexadecimal digits, or None where there is none.
    """
    kind = _TYPES.get(status, "api_error")
    body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
    return msgspec.json.encode(body | ({"request_id": request_id} if request_id else {}))


def last_event(body: bytes) -> bytes:
    """Return the event that ends a broken stream, at which the SDKs raise."""
    return b"event: error\ndata: " + body + b"\n\n"


def from_engine(body: bytes, status: int, *, request_id: str | None = None) -> bytes:
    """Return llama-server's error, which is in OpenAI's shape (b10434, b11434), in Anthropic's.

    A prompt that is too long has Anthropic's own text: Claude Code shortens the conversation when
    it reads it.

    Args:
        body: ``{"error": {"code", "message", "type"}}``, or any text.
        status: of the HTTP answer.
        request_id: as for ``error_body``.
    """
    return error_body(_message(body), status, request_id=request_id)


class _Counts(msgspec.Struct, frozen=True):
    n_prompt_tokens: int
    n_ctx: int


class _TooLong(msgspec.Struct, frozen=True):
    error: _Counts


def _message(body: bytes) -> str:
    try:
        counts = msgspec.json.decode(body, type=_TooLong).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return error_message(body)
    return f"prompt is too long: {counts.n_prompt_tokens} tokens > {counts.n_ctx} maximum"
