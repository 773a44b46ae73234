"""Errors in OpenAI's shape, so that its SDKs raise the right class and fill it.

The SDKs choose the class by the HTTP status and read ``message``, ``type``, ``param`` and ``code``
(openai 2 and 3, ``_client.py``, ``_exceptions.py``).
"""

import re
from typing import Any

import msgspec

from kvsup.errors import RequestError
from kvsup.llama.wire import error_message
from kvsup.mending import Fault

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}

_CODES = {401: "invalid_api_key", 403: "insufficient_permissions", 404: "model_not_found"}

_OPENINGS = {
    "Missing required parameter:": "missing_required_parameter",
    "Invalid type for": "invalid_type",
    "Invalid value for": "invalid_value",
    "Invalid": "invalid_value",
}
"""How the text of an error about a parameter begins, and its code."""

_ABOUT = re.compile(rf"(?P<opening>{'|'.join(_OPENINGS)}) '(?P<param>[^']+)'")


def error_body(message: str, status: int) -> bytes:
    """Return the body of an answer with ``status``; ``param`` and ``code`` as the text tells.

    Args:
        message: what is wrong; of the texts in this file the parameter is read.
        status: of the HTTP answer.
    """
    about = _ABOUT.match(message) if status == 400 else None
    code = _OPENINGS[about["opening"]] if about is not None else _CODES.get(status)
    if status == 404 and not message.startswith("model '"):
        code = None
    error = {
        "message": message,
        "type": _TYPES.get(status, "api_error"),
        "param": about["param"] if about is not None else None,
        "code": code,
    }
    return msgspec.json.encode({"error": error})


def last_event(body: bytes) -> bytes:
    """Return the event that ends a broken stream; the SDKs raise ``APIError`` at ``error``."""
    return b"data: " + body + b"\n\n"


def from_engine(body: bytes, status: int) -> bytes:
    """Return llama-server's error in OpenAI's shape.

    Its ``code`` is the HTTP status as a number (b10434, b11434), which the SDKs' types forbid. A
    prompt that is too long has OpenAI's ``context_length_exceeded``, which agents look for before
    they shorten it, and keeps ``n_prompt_tokens`` and ``n_ctx``.

    Args:
        body: ``{"error": {"code", "message", "type"}}``, or any text.
        status: of the HTTP answer, which decides the type.
    """
    answer = error_body(error_message(body), status)
    error = _error_of(body)
    if error.get("type") != "exceed_context_size_error":
        return answer
    counts: dict[str, Any] = {
        key: error[key] for key in ("n_prompt_tokens", "n_ctx") if key in error
    }
    mended = {**_error_of(answer), "code": "context_length_exceeded", **counts}
    return msgspec.json.encode({"error": mended})


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        error = msgspec.json.decode(body)["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, IndexError):
        return {}
    return error if isinstance(error, dict) else {}


def missing(param: str) -> RequestError:
    """Return the error of a parameter that must be there."""
    return RequestError(f"Missing required parameter: '{param}'.")


def empty(param: str) -> RequestError:
    """Return the error of a list that needs an element."""
    return RequestError(
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, "
        "but got an empty array instead."
    )


def wrong(fault: Fault) -> RequestError:
    """Return the error of what a decoder found."""
    if not fault.param:
        return RequestError(f"The body must be an object, but is {fault.got}.")
    if not fault.expected:
        return missing(fault.param)
    if not fault.got:
        return RequestError(f"Invalid value for '{fault.param}': {fault.expected}")
    return RequestError(
        f"Invalid type for '{fault.param}': expected {fault.expected}, but got {fault.got} instead."
    )
