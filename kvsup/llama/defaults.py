"""A model's own settings under requests that go to llama-server as they came.

A member put in front of a request's own is a default: of members with the same name llama-server
takes the last (nlohmann::json, b11434). One put behind is an order. Nothing else of the body is
read or written anew, except that a system text has to stand within ``messages``, and what the
model says before within ``messages`` or ``input``.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from kvsup.errors import RequestError

Members = Mapping[str, object]

_CHAT = "/v1/chat/completions"
_RESPONSES = "/v1/responses"
_LIMITS = {
    _CHAT: "max_tokens",
    "/v1/completions": "max_tokens",
    _RESPONSES: "max_output_tokens",
}
"""What the limit of tokens is called: ``n_predict`` would win over the client's own."""

_NATIVE = frozenset({"/completion", "/completions", "/infill"})

_SYSTEM_ROLES = {"system", "developer"}


_Members = dict[str, msgspec.Raw]
_NULL = msgspec.Raw(b"null")


class _Turn(msgspec.Struct):
    role: str | None = None


class _Chat(msgspec.Struct):
    messages: list[msgspec.Raw] = []


class _Responses(msgspec.Struct):
    input: str | list[msgspec.Raw] | None = None


def sampling_members(path: str, fields: Members) -> dict[str, object]:
    """Return the sampling ``fields`` as members for ``path``: none where nothing is generated."""
    if path in _NATIVE:
        return dict(fields)
    if path not in _LIMITS:
        return {}
    limit = _LIMITS[path]
    return {limit if name == "n_predict" else name: value for name, value in fields.items()}


def with_members(body: bytes, *, first: Members, last: Members) -> bytes:
    """Return the JSON object ``body`` with members in front of its own, and behind them."""
    if not first and not last:
        return body
    inner = body.strip()[1:-1].strip()
    parts = [_members(first), inner, _members(last)]
    return b"{%s}" % b",".join([part for part in parts if part])


def with_defaults(body: bytes, defaults: Members) -> bytes:
    """Return ``body`` with ``defaults`` for what it leaves out or says null.

    llama-server takes a null for its own default, so there ours goes behind as well.

    Raises:
        RequestError: it is no JSON object.
    """
    if not defaults:
        return body
    nulls = {name for name, value in _decoded(body, _Members).items() if value == _NULL}
    behind = {name: value for name, value in defaults.items() if name in nulls}
    return with_members(body, first=defaults, last=behind)


def with_prelude(
    path: str, body: bytes, system: str | None, history: Sequence[Members] = ()
) -> bytes:
    """Return ``body`` with what the model says before: its system text, and its messages.

    The text is left out where the request has one of its own. A prompt that is no chat has neither.

    Raises:
        RequestError: ``messages`` is no list of objects, or ``input`` neither text nor list.
    """
    path = path.removesuffix("/input_tokens")
    if path == _RESPONSES:
        if system is not None:
            body = with_defaults(body, {"instructions": system})
        return _with_items(body, history) if history else body
    if path != _CHAT:
        return body
    messages = _decoded(body, _Chat).messages
    first = _decoded(messages[0], _Turn).role if messages else None
    before: list[object] = list(history)
    if system is not None and first not in _SYSTEM_ROLES:
        before.insert(0, {"role": "system", "content": system})
    if not messages or not before:
        return body
    return with_members(body, first={}, last={"messages": [*before, *messages]})


def _with_items(body: bytes, history: Sequence[Members]) -> bytes:
    """Return a request of ``/v1/responses`` with ``history`` before its own items.

    An assistant's content must be a list there (``convert_responses_to_chatcmpl`` in
    server-chat.cpp, b10434 and b11434).
    """
    asked = _decoded(body, _Responses).input
    if not asked:
        return body
    own = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    before = [{"type": "message", **turn, "content": _parts(turn)} for turn in history]
    return with_members(body, first={}, last={"input": [*before, *own]})


def _parts(turn: Members) -> list[Members]:
    kind = "output_text" if turn["role"] == "assistant" else "input_text"
    return [{"type": kind, "text": turn["content"]}]


T = TypeVar("T")


def _decoded(text: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"invalid request: {error}") from error


def _members(members: Members) -> bytes:
    return msgspec.json.encode(members)[1:-1]
