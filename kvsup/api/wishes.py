"""What a request to an API without such fields wants of kvsup: which model, and how it is run.

``keep_alive``, ``options`` and ``kv_cache_type`` may stand in the body, where llama-server skips
what it does not know, or in headers, which a body's member overrules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kvsup.errors import RequestError
from kvsup.fitting import Asked
from kvsup.ollama.options import OptionTypeError, checked, load_time_options
from kvsup.openai import forms
from kvsup.units import parse_duration_setting

KEEP_ALIVE = "x-kvsup-keep-alive"
OPTIONS = "x-kvsup-options"
KV_CACHE_TYPE = "x-kvsup-kv-cache-type"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one request wants of kvsup."""

    model: str | None
    asked: Asked
    options: Mapping[str, object]
    """All of them, by Ollama's names, in their types."""
    keep_alive_s: float | None
    has_tools: bool = False
    """Whether it offers the model tools."""
    n_answers: int = 1
    """How many answers to one prompt: llama-server starts on them with as many slots free."""


class _Body(msgspec.Struct):
    model: str | None = None
    keep_alive: str | float | None = None
    options: dict[str, Any] | None = None
    kv_cache_type: str | None = None
    tools: msgspec.Raw = msgspec.Raw(b"[]")
    n: Any = None
    n_cmpl: Any = None


_NO_TOOLS = (b"[]", b"null")

_body = msgspec.json.Decoder(_Body).decode
_options = msgspec.json.Decoder(dict[str, Any]).decode


def read_wishes(body: bytes, headers: Mapping[str, str]) -> Wishes:
    """Return what a request wants.

    Raises:
        RequestError: the body is no JSON object, or a wish has the wrong type.
    """
    content_type = headers.get("content-type", "")
    try:
        if forms.is_form(content_type):
            own = _Body(model=_form_model(body, content_type))
        else:
            own = _body(_utf8(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"invalid request: {error}") from error
    given = {**_header_options(headers), **(own.options or {})}
    if own.kv_cache_type is not None:
        given["kv_cache_type"] = own.kv_cache_type
    keep_alive = headers.get(KEEP_ALIVE) if own.keep_alive is None else own.keep_alive
    try:
        return Wishes(
            model=own.model,
            asked=Asked(**load_time_options(given)),
            options=checked(given),
            n_answers=_n_answers(own.n_cmpl or own.n),
            has_tools=b"".join(bytes(own.tools).split()) not in _NO_TOOLS,
            keep_alive_s=None if keep_alive is None else parse_duration_setting(keep_alive),
        )
    except (OptionTypeError, ValueError) as error:
        raise RequestError(str(error)) from error


def _header_options(headers: Mapping[str, str]) -> dict[str, Any]:
    try:
        given = _options(headers[OPTIONS]) if OPTIONS in headers else {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"header {OPTIONS}: {error}") from error
    if KV_CACHE_TYPE in headers:
        given["kv_cache_type"] = headers[KV_CACHE_TYPE]
    return given


def _form_model(form: bytes, content_type: str) -> str | None:
    fields = forms.text_fields(form, content_type)
    return form[fields["model"]].decode().strip() if "model" in fields else None


def _utf8(body: bytes) -> bytes:
    """Return ``body``; msgspec does not look at texts that it skips, and others would stumble."""
    if not body.isascii():
        body.decode()
    return body


def _n_answers(asked: object) -> int:
    return max(1, int(asked)) if isinstance(asked, (int, float)) and asked == asked // 1 else 1
