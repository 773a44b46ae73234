"""Give a request a seed, so that it can be run again and say the same."""

import secrets

import msgspec

from kvsup.llama.defaults import with_members

RANDOM_SEED = 0xFFFFFFFF
"""What llama-server takes for "draw one"; -1 is the same in 32 bits (``LLAMA_DEFAULT_SEED``)."""

_SEEDED = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/completion", "/completions", "/infill"}
)


class _Request(msgspec.Struct, frozen=True):
    seed: int | None = None
    prompt: msgspec.Raw = msgspec.Raw(b'""')


def new_seed() -> int:
    """Return a seed that llama-server does not take for "draw one"."""
    return secrets.randbelow(RANDOM_SEED)


def seeded(path: str, body: bytes, *, seed: int) -> bytes:
    """Return ``body`` with ``seed`` where it leaves the seed to chance.

    A body that is no JSON, one for another path, and one with several prompts, whose answers would
    then have the same seed, stay as they are. (The answers to one prompt with ``n`` get seeds of
    their own: server-context.cpp, b11434.)

    Args:
        path: of the URL, such as ``/v1/chat/completions``.
        body: the request's JSON.
        seed: from 0 to 2**32 - 2.
    """
    if path not in _SEEDED:
        return body
    try:
        request = msgspec.json.decode(body, type=_Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    is_given = request.seed is not None and request.seed & RANDOM_SEED != RANDOM_SEED
    if is_given or _has_several(bytes(request.prompt)):
        return body
    return with_members(body, first={}, last={"seed": seed})


def _has_several(prompt: bytes) -> bool:
    """Say whether ``prompt`` is a list of prompts; one of tokens is a single prompt."""
    if not prompt.startswith(b"["):
        return False
    items = msgspec.json.decode(prompt, type=list[msgspec.Raw])
    return len(items) > 1 and not all(bytes(item).isdigit() for item in items)
