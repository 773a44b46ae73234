"""By what a conversation is known: how it opens, down to the first message of its own user."""

from hashlib import sha256

import msgspec

_USER = "user"


class _Message(msgspec.Struct):
    role: str | None = None


class _Request(msgspec.Struct):
    messages: list[msgspec.Raw] = []
    n: int | None = None
    n_cmpl: int | None = None
    id_slot: int | None = None
    cache_prompt: bool | None = None


def opening(body: bytes, *, n_before: int = 0) -> str | None:
    """Return how the conversation of a request of ``/v1/chat/completions`` opens, as a digest.

    All its later turns open alike, and another one with the same system prompt does not. None
    where there is no such message, where the request has several answers, which take a slot each,
    or says itself what is done about slots. The first ``n_before`` messages of a user are the
    model's, which open every conversation.
    """
    try:
        request = msgspec.json.decode(body, type=_Request)
        if (request.n_cmpl or request.n or 1) > 1 or request.cache_prompt is False:
            return None
        if request.id_slot is not None:
            return None
        digest = sha256()
        for message in request.messages:
            digest.update(message)
            if msgspec.json.decode(message, type=_Message).role != _USER:
                continue
            if not n_before:
                return digest.hexdigest()
            n_before -= 1
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None
