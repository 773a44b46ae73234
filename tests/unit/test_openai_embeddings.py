"""Vectors cut to ``dimensions``; the answers are recorded from real llama-servers."""

import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse

from kvsup.openai.requests import prepare

GOLDEN = Path(__file__).parent.parent / "golden" / "openai"


def _shortened(name: str, dimensions: int) -> dict[str, Any]:
    request = {"model": "m", "input": ["x", "y"], "dimensions": dimensions}
    make_mend = prepare("/v1/embeddings", json.dumps(request).encode()).make_mend
    assert make_mend is not None
    mend = make_mend(4096)
    nothing = mend.feed((GOLDEN / name).read_bytes())
    assert nothing == b""
    answer: dict[str, Any] = json.loads(mend.finish())
    return answer


def _floats(text: str) -> list[float]:
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_shortened_vector_is_the_start_of_the_whole_with_length_one(build: str) -> None:
    """OpenAI cuts and normalises again, so that a dot product stays a cosine."""
    name = f"embeddings_float.{build}.json"
    whole = json.loads((GOLDEN / name).read_bytes())["data"]

    answer = _shortened(name, 8)

    CreateEmbeddingResponse.model_validate(answer)
    for entry, before in zip(answer["data"], whole, strict=True):
        vector, start = entry["embedding"], before["embedding"][:8]
        assert math.hypot(*vector) == pytest.approx(1)
        assert vector == pytest.approx([number / math.hypot(*start) for number in start])


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_shortened_base64_has_the_numbers_of_the_other_form(build: str) -> None:
    """The SDKs ask for base64 of float32, little-endian, by default."""
    as_numbers = _shortened(f"embeddings_float.{build}.json", 8)["data"]

    as_base64 = _shortened(f"embeddings_base64.{build}.json", 8)["data"]

    assert len(as_base64) == len(as_numbers) == 2
    for entry, numbers in zip(as_base64, as_numbers, strict=True):
        assert _floats(entry["embedding"]) == pytest.approx(numbers["embedding"], abs=1e-6)


def test_vector_that_is_short_enough_stays_as_it_is() -> None:
    """There is nothing to cut, and nothing to normalise."""
    name = "embeddings_float.b11434.json"

    assert _shortened(name, 9999) == json.loads((GOLDEN / name).read_bytes())


def test_vector_of_zeros_stays_zero() -> None:
    """It has no direction that could be given a length."""
    make_mend = prepare("/v1/embeddings", b'{"input":"x","dimensions":1}').make_mend
    assert make_mend is not None
    mend = make_mend(4096)

    mend.feed(b'{"data":[{"embedding":[0.0,0.0]}]}')

    assert json.loads(mend.finish())["data"] == [{"embedding": [0.0]}]


@pytest.mark.parametrize("answer", [b'[{"index":0,"embedding":[[1.0,2.0]]}]', b"no JSON"])
def test_answer_of_another_shape_passes_untouched(answer: bytes) -> None:
    """llama-server answers a request with ``content`` in a form of its own."""
    make_mend = prepare("/v1/embeddings", b'{"content":"x","dimensions":1}').make_mend
    assert make_mend is not None
    mend = make_mend(4096)

    mend.feed(answer)

    assert mend.finish() == answer
