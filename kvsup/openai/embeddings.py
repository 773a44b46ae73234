"""Vectors of ``/v1/embeddings`` with fewer numbers: llama-server has no ``dimensions`` (b11434)."""

import base64
import struct
from typing import Any

from kvsup.llama.vectors import shortened


def shorten(answer: dict[str, Any], dimensions: int) -> dict[str, Any]:
    """Return ``answer`` with each vector cut to ``dimensions`` numbers and of length 1 again.

    A vector that has no more numbers stays as it is, as Ollama leaves it.

    Args:
        answer: OpenAI's list of embeddings, as numbers or as base64 of little-endian float32.
        dimensions: how many numbers are kept, at least 1.
    """
    for entry in answer.get("data", []):
        vector = entry["embedding"]
        if isinstance(vector, str):
            entry["embedding"] = _encode(shortened(_decode(vector), dimensions))
        else:
            entry["embedding"] = shortened(vector, dimensions)
    return answer


def _decode(text: str) -> list[float]:
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def _encode(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
