"""Vectors: what llama-server's ``/v1/embeddings`` is asked, and Ollama's answers from its own.

The text of a vector is copied, not read: only ``dimensions`` needs its numbers. llama-server makes
it as long as ``embd_normalize`` says (2: length 1, -1: as the model gave it); b10434, b11434.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

from kvsup.errors import RequestError, UpstreamError
from kvsup.llama.vectors import shortened
from kvsup.ollama.names import quoted
from kvsup.ollama.ndjson import encode

EMBEDDINGS_PATH = "/v1/embeddings"

MAX_INPUTS = 32
"""Inputs in one call: a long list takes its turns among other clients' requests."""

TOO_LONG = "the input length exceeds the context length"

_NORMALIZES = {"bert": True, "nomic-bert": False, "nomic-bert-moe": False}
_BATCH = re.compile(r"too large to process.*current batch size: (\d+)")


class _Embedding(msgspec.Struct, frozen=True):
    embedding: msgspec.Raw
    index: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0


class _Embeddings(msgspec.Struct, frozen=True):
    data: list[_Embedding]
    usage: _Usage = _Usage()


class _Objection(msgspec.Struct, frozen=True):
    message: str = ""
    type: str = ""
    n_ctx: int = 0


class _Refusal(msgspec.Struct, frozen=True):
    error: _Objection = _Objection()


_decode = msgspec.json.Decoder(_Embeddings).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


def embed_body(inputs: Sequence[str | Sequence[int]], *, model: str, raw: bool = False) -> bytes:
    """Return the body that embeds ``inputs``, texts or tokens, to length 1 unless ``raw``."""
    return msgspec.json.encode(
        {
            "model": model,
            "input": list(inputs),
            "encoding_format": "float",
            "embd_normalize": -1 if raw else 2,
        }
    )


def is_raw(architecture: str, values: Mapping[str, object]) -> bool:
    """Say whether Ollama's older route leaves vectors as the model gives them.

    So it does for these architectures where the GGUF says so, or has Ollama's default
    (llm/llama_server.go, 2026-08).

    Args:
        architecture: ``general.architecture``.
        values: the GGUF's keys.
    """
    if architecture not in _NORMALIZES:
        return False
    key = f"{architecture}.normalize_embeddings"
    return not values.get(key, _NORMALIZES[architecture])


def room_tokens(body: bytes) -> int | None:
    """Return how many tokens an input may have, by llama-server's error that one has too many.

    None for every other error. A model whose last token stands for all must leave one free, the
    others are embedded in one physical batch (server-context.cpp, b10434 and b11434).
    """
    try:
        error = _decode_refusal(body).error
    except msgspec.MsgspecError:
        return None
    if error.type == "exceed_context_size_error":
        return error.n_ctx - 1
    match = _BATCH.search(error.message)
    return int(match[1]) if match else None


def cut_tokens(bare: Sequence[int], whole: Sequence[int], *, room: int) -> list[int]:
    """Return ``whole`` without as many of the last ``bare`` tokens as ``room`` demands.

    ``whole`` is ``bare`` between the tokens that llama-server adds; those at the end stay.
    """
    n_added = len(whole) - len(bare)
    n_before = next((n for n in range(n_added + 1) if whole[n : n + len(bare)] == bare), 0)
    after = whole[n_before + len(bare) :]
    return [*whole[: room - len(after)], *after]


def read_vectors(body: bytes, *, dimensions: int = 0) -> tuple[list[bytes], int]:
    """Return the vectors of an answer as JSON, in the order of the inputs, and the prompt tokens.

    Those longer than ``dimensions`` > 0 are cut to it and made length 1 again.

    Raises:
        RequestError: a vector holds NaN or infinity.
        UpstreamError: ``body`` is no answer of ``/v1/embeddings``.
    """
    try:
        answer = _decode(body)
        ordered = sorted(answer.data, key=lambda item: item.index)
        vectors = [_vector(bytes(item.embedding), dimensions) for item in ordered]
    except msgspec.MsgspecError as error:
        raise UpstreamError(f"llama-server sent unreadable embeddings: {error}") from error
    if not vectors:
        raise UpstreamError("llama-server sent no embedding")
    return vectors, answer.usage.prompt_tokens


def embed_reply(
    vectors: Sequence[bytes], *, model: str, n_tokens: int, total_ns: int, load_ns: int
) -> bytes:
    """Return the answer of ``/api/embed``; counts and times of zero vanish."""
    metrics = {
        "total_duration": total_ns,
        "load_duration": load_ns,
        "prompt_eval_count": n_tokens,
    }
    shown = "".join(f',"{name}":{number}' for name, number in metrics.items() if number)
    head = encode({"model": model}).removesuffix(b"}")
    return b'%b,"embeddings":[%b]%b}' % (head, b",".join(vectors), shown.encode())


def embeddings_reply(vector: bytes) -> bytes:
    """Return the answer of the older ``/api/embeddings``."""
    return b'{"embedding":%b}' % vector


def embed_done(model: str) -> bytes:
    """Return the answer of ``/api/embed`` to a request without input, which only loads."""
    return embed_reply((), model=model, n_tokens=0, total_ns=0, load_ns=0)


def not_found_text(model: str) -> str:
    """Return what both routes say of a model that is not there."""
    return f"model {quoted(model)} not found, try pulling it first"


def _vector(text: bytes, dimensions: int) -> bytes:
    if b"null" in text:  # how JSON has a number that is none
        raise RequestError("embedding contains NaN or Inf values")
    if dimensions <= 0:
        return text
    vector = msgspec.json.decode(text, type=list[float])
    return msgspec.json.encode(shortened(vector, dimensions))
