"""Ollama's answers with vectors, from those of llama-server's ``/v1/embeddings`` (b11434).

llama-server has normalised every vector to length 1 already.
"""

import math

import msgspec

from kvsup.errors import RequestError, UpstreamError
from kvsup.ollama.ndjson import encode


class _Embedding(msgspec.Struct, frozen=True):
    embedding: list[float | None]
    """None stands for a number that JSON cannot write."""
    index: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0


class _Embeddings(msgspec.Struct, frozen=True):
    data: list[_Embedding]
    usage: _Usage = _Usage()


_decode = msgspec.json.Decoder(_Embeddings).decode


def embed_reply(body: bytes, *, model: str, dimensions: int, total_ns: int, load_ns: int) -> bytes:
    """Return the answer of ``/api/embed``; vectors longer than ``dimensions`` > 0 are cut to it.

    Raises:
        RequestError: a vector holds NaN or infinity.
        UpstreamError: ``body`` is no answer of ``/v1/embeddings``.
    """
    answer = _read(body)
    metrics = {
        "total_duration": total_ns,
        "load_duration": load_ns,
        "prompt_eval_count": answer.usage.prompt_tokens,
    }
    ordered = sorted(answer.data, key=lambda item: item.index)
    return encode(
        {
            "model": model,
            "embeddings": [_cut(_finite(item.embedding), dimensions) for item in ordered],
            **{name: number for name, number in metrics.items() if number},
        }
    )


def embeddings_reply(body: bytes) -> bytes:
    """Return the answer of the older ``/api/embeddings``; raises as ``embed_reply``."""
    return encode({"embedding": _finite(_read(body).data[0].embedding)})


def embed_done(model: str) -> dict[str, object]:
    """Return the answer of ``/api/embed`` to a request without input, which only loads."""
    return {"model": model, "embeddings": []}


def _read(body: bytes) -> _Embeddings:
    try:
        answer = _decode(body)
    except msgspec.MsgspecError as error:
        raise UpstreamError(f"llama-server sent unreadable embeddings: {error}") from error
    if not answer.data:
        raise UpstreamError("llama-server sent no embedding")
    return answer


def _finite(vector: list[float | None]) -> list[float]:
    numbers = [number for number in vector if number is not None]
    if len(numbers) != len(vector):
        raise RequestError("embedding contains NaN or Inf values")
    return numbers


def _cut(vector: list[float], dimensions: int) -> list[float]:
    if not 0 < dimensions < len(vector):
        return vector
    head = vector[:dimensions]
    length = math.sqrt(sum(number * number for number in head))
    return [number / length for number in head] if length else head
