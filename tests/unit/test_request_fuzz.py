"""Whatever the bytes, a request is decoded or refused; what is decoded can be sent on."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.errors import RequestError
from kvsup.ollama import embeddings, requests, storerequests, to_llama
from kvsup.ollama.options import load_time_options
from kvsup.ollama.requests import ChatRequest, EmbedRequest, GenerateRequest

Decode = Callable[[bytes], object]

DECODERS: tuple[Decode, ...] = (
    requests.decode_chat,
    requests.decode_generate,
    requests.decode_embed,
    requests.decode_embeddings,
    requests.decode_show,
    storerequests.decode_named,
    storerequests.decode_copy,
    storerequests.decode_transfer,
    storerequests.decode_create,
)
WORDS = (
    "model", "name", "messages", "tools", "stream", "format", "options", "keep_alive", "think",
    "truncate", "shift", "logprobs", "top_logprobs", "prompt", "suffix", "system", "template",
    "context", "raw", "images", "input", "dimensions", "verbose", "role", "content", "thinking",
    "tool_calls", "tool_name", "tool_call_id", "function", "arguments", "index", "id", "seed",
    "insecure", "from", "files", "adapters", "license", "parameters", "quantize", "quantization",
    "temperature", "stop", "num_predict", "num_ctx", "kv_cache_type", "keep_alive_s",
)  # fmt: skip

VALID: Mapping[str, object] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What is this?", "images": ["iVBORw0KGgo=", "UklGRgAA"]},
        {
            "role": "assistant",
            "thinking": "hm",
            "tool_calls": [
                {"id": "c1", "function": {"name": "f", "arguments": {"City": "Oslo"}, "index": 1}}
            ],
        },
        {"role": "tool", "content": "3", "tool_name": "f", "tool_call_id": "c1"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "prompt": "Why is the sky blue?",
    "suffix": "",
    "system": "Be brief.",
    "template": "",
    "context": [],
    "raw": False,
    "images": ["iVBORw0KGgo="],
    "input": ["one", "two"],
    "dimensions": 64,
    "stream": False,
    "format": {"type": "object", "properties": {"a": {"type": "string"}}},
    "options": {"temperature": 0.5, "seed": 7, "stop": ["x"], "num_predict": 4, "top_k": None},
    "keep_alive": "1m30s",
    "think": "high",
    "truncate": True,
    "shift": None,
    "logprobs": True,
    "top_logprobs": 3,
    "verbose": True,
    "source": "m",
    "destination": "n",
    "insecure": True,
    "from": "base",
    "files": {"m.gguf": "sha256:" + "0a" * 32},
    "license": ["MIT"],
    "parameters": {"temperature": 0.5, "stop": ["x"]},
}
"""One body that each decoder takes, since unknown keys are nothing to it."""

texts = st.text(st.characters(codec=None), max_size=12)  # halves of UTF-16 pairs included
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.sampled_from(["1m", "-1", "json", "high", "iVBORw0KGgo=", "q8_0:q4_0", 1e308, -0.0, 2**70]),
)
keys = st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS).map(str.upper), texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return the valid body after a few parts of it were replaced, removed or added."""
    body = json.loads(json.dumps(VALID))
    for _ in range(draw(st.integers(1, 3))):
        place = body
        while inner := _containers(place):
            if draw(st.booleans()):
                break
            place = draw(st.sampled_from(inner))
        _change(place, draw)
    return json.dumps(body).encode()


def _containers(place: object) -> list[dict[str, object] | list[object]]:
    items = list(place.values()) if isinstance(place, dict) else place
    assert isinstance(items, list)
    return [item for item in items if isinstance(item, (dict, list)) and item]


def _change(place: dict[str, object] | list[object], draw: st.DrawFn) -> None:
    if isinstance(place, list):
        index = draw(st.integers(0, len(place)))
        place[index : index + 1] = [draw(values)]
        return
    key = draw(st.sampled_from(sorted(place)) | keys) if place else draw(keys)
    place[key] = draw(values)
    if draw(st.booleans()):
        del place[key]


@st.composite
def nested(draw: st.DrawFn) -> bytes:
    """Return a body that is up to 1200 deep, where Python's own limit is 1000."""
    depth = draw(st.integers(0, 1200))
    start, end = draw(st.sampled_from([("[", "]"), ('{"a":', "}")]))
    key = draw(st.sampled_from(["format", "options", "messages", "tools", "input", "unknown"]))
    model = draw(st.sampled_from(["m", r"\ud800"]))
    deep = start * depth + "1" + end * depth
    return f'{{"model": "{model}", "prompt": "x", "{key}": {deep}}}'.encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return the valid body with a few bytes cut out or put in."""
    body = json.dumps(VALID, ensure_ascii=False).encode()
    start = draw(st.integers(0, len(body)))
    end = draw(st.integers(start, min(start + 8, len(body))))
    return body[:start] + draw(st.binary(max_size=8)) + body[end:]


def _dumped(value: object) -> bytes:
    return json.dumps(value).encode()


objects = st.dictionaries(keys, values).map(_dumped)
bodies = st.one_of(
    st.binary(max_size=64),
    values.map(_dumped),
    objects,
    mutated(),
    damaged(),
    nested(),
)


def _sent(request: object) -> list[bytes]:
    """Return what goes to llama-server for a decoded request; raises ``RequestError``."""
    if isinstance(request, EmbedRequest):
        return [embeddings.embed_body(request.texts(), model="m")]
    if not isinstance(request, (ChatRequest, GenerateRequest)):
        return []
    load_time_options(request.options)
    body = to_llama.chat_body if isinstance(request, ChatRequest) else to_llama.generate_body
    call = body(request, model="m", system="Hm.", options={"stop": ["y"]}, num_ctx=512)  # type: ignore[arg-type]
    return [msgspec.json.encode(call.body)]


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(body=bodies)
@settings(max_examples=100)
def test_body_of_any_kind_is_decoded_or_refused(decode: Decode, body: bytes) -> None:
    """A client's bytes never end in another exception than that for wrong requests."""
    with suppress(RequestError):
        decode(body)


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(body=st.one_of(mutated(), objects, nested()))
@settings(max_examples=100)
def test_body_that_is_decoded_goes_on_as_json_or_is_refused(decode: Decode, body: bytes) -> None:
    """llama-server gets an object, in UTF-8, that every parser of JSON reads, without NaN."""
    with suppress(RequestError):
        for sent in _sent(decode(body)):
            assert json.loads(sent.decode(), parse_constant=_refuse)["model"] == "m"


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
def test_body_that_mutants_start_from_is_decoded_by_each(decode: Decode) -> None:
    """Otherwise the mutants would show nothing."""
    request = decode(_dumped(VALID))

    assert all(json.loads(sent)["model"] == "m" for sent in _sent(request))


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
