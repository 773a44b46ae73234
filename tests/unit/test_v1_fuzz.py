"""Whatever the bytes, a request of ``/v1`` is refused in words or goes on as JSON.

The parts that ``kvsup/api/passthrough.py`` puts together, put together here without a server.
"""

import copy
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.anthropic import requests as anthropic
from kvsup.api.errors import shape_for
from kvsup.api.wishes import KEEP_ALIVE, KV_CACHE_TYPE, OPTIONS, read_wishes
from kvsup.errors import KvsupError
from kvsup.llama.defaults import sampling_members, with_defaults, with_members, with_prelude
from kvsup.llama.steering import steer
from kvsup.ollama.options import given_fields
from kvsup.openai import requests as openai

Json = dict[str, Any]

N_CTX_TOKENS = 512
SYSTEM = "Be brief."
OF_FILE = {"temperature": 0.5, "top_k": 3, "num_predict": 7, "stop": ["x"], "seed": 1}
"""What the options of the model's file say."""

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
PART = {"type": "text", "text": "Hi"}
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": [PART]},
    {"role": "user", "content": [PART, PART]},
]
FUNCTION = {"name": "f", "parameters": SCHEMA}
COMMON: Json = {
    "model": "m",
    "stream": True,
    "temperature": 0.5,
    "top_p": None,
    "seed": 7,
    "stop": ["x"],
    "options": {"temperature": 1, "num_ctx": 512, "top_k": None, "stop": ["y"]},
    "keep_alive": "1m30s",
    "kv_cache_type": "q8_0:q5_1",
    "metadata": {"user_id": "u"},
}
CHAT: Json = {
    **COMMON,
    "messages": TURNS,
    "max_tokens": 4,
    "n": 1,
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_object"},
    "stream_options": {"include_usage": True},
    "logprobs": False,
    "reasoning_effort": "low",
    "chat_template_kwargs": {"a": 1},
}
RESPONSE: Json = {
    **COMMON,
    "input": [
        *TURNS,
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "3"},
    ],
    "instructions": "Be kind.",
    "max_output_tokens": 4,
    "tools": [{"type": "function", **FUNCTION}, {"type": "web_search"}],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "f"}],
    },
    "text": {"format": {"type": "json_schema", "name": "s", "strict": True, "schema": SCHEMA}},
    "reasoning": {"effort": "low", "summary": "auto"},
    "top_logprobs": 2,
}
MESSAGE: Json = {
    **COMMON,
    "messages": [
        *TURNS[:1],
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}]},
        {"role": "user", "content": [PART, {"type": "tool_result", "tool_use_id": "t"}]},
    ],
    "system": [PART],
    "max_tokens": 4,
    "stop_sequences": ["x"],
    "tools": [{"name": "f", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled", "budget_tokens": 2},
    "output_config": {"effort": "xhigh"},
}
FORMATTED: Json = {
    **MESSAGE,
    "tool_choice": {"type": "auto"},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
}
VALID: Mapping[str, tuple[Json, ...]] = {
    "/v1/chat/completions": (CHAT,),
    "/v1/chat/completions/input_tokens": (CHAT,),
    "/v1/completions": ({**COMMON, "prompt": "One, two", "logprobs": 2, "n_probs": 1},),
    "/v1/embeddings": (
        {**COMMON, "input": ["a", "b"], "encoding_format": "BASE64", "dimensions": 3},
    ),
    "/v1/responses": (RESPONSE,),
    "/v1/responses/input_tokens": (RESPONSE,),
    "/v1/messages": (MESSAGE, FORMATTED),
    "/v1/messages/count_tokens": (MESSAGE,),
}
"""Bodies that go on, with all that decoders look at; the mutants start from them."""

WORDS = sorted({key for bodies in VALID.values() for body in bodies for key in body} | {"type"})
FRAGMENTS = [
    *{**CHAT, **MESSAGE, **RESPONSE}.values(),
    {"type": "json_schema", "schema": {}, "json_schema": None},
    {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]}},
    {"type": "item_reference", "id": "i"},
    {"role": "assistant", "content": None},
    [[1, 2], [3]],
    "none",
    "developer",
]
"""What is right at one place is wrong at another."""

BITS = [b"NaN", b"-Infinity", b"1e999", b"\\ud800", b'"', b"}", b"null"]

texts = st.text(st.characters(codec=None), max_size=8)  # halves of UTF-16 pairs included
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(["", "1m", "-1", "auto", "f16", 0, -1, 1e308, -0.0, 2**63, 2**70])
)
keys = st.sampled_from(WORDS) | texts
values = st.sampled_from(FRAGMENTS).map(copy.deepcopy) | st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(keys, values, max_size=6)
header_texts = st.text(st.characters(max_codepoint=255), max_size=12)
FIELD = b'Content-Disposition: form-data; name="model"\r\n\r\n'
FORM = [
    FIELD,
    b"--b",
    b"\r\n",
    b"--",
    b"\r\n--b\r\n",
    b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n',
    b"smollm2",
    b"\xff",
]
paths = st.sampled_from(sorted(VALID))
quick = settings(max_examples=200, derandomize=True, deadline=None)


def _dumped(value: object) -> bytes:
    return json.dumps(value).encode()


@st.composite
def mutated(draw: st.DrawFn, path: str) -> bytes:
    """Return a valid body of ``path`` after a few parts of it were replaced, removed or added."""
    body = copy.deepcopy(draw(st.sampled_from(VALID[path])))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_containers(body)))
        if isinstance(place, list):
            start = draw(st.integers(0, len(place)))
            place[start : start + 1] = draw(st.lists(values, max_size=2))
        elif place and draw(st.booleans()):
            del place[draw(st.sampled_from(sorted(place)))]
        else:
            place[draw(st.sampled_from(sorted(place)) | keys if place else keys)] = draw(values)
    return json.dumps(body).encode()


@st.composite
def damaged(draw: st.DrawFn, path: str) -> bytes:
    """Return a valid body of ``path`` with a few bytes cut out or put in."""
    body = json.dumps(draw(st.sampled_from(VALID[path]))).encode()
    start = draw(st.integers(0, len(body)))
    end = draw(st.integers(start, min(start + 8, len(body))))
    return body[:start] + draw(st.sampled_from(BITS) | st.binary(max_size=8)) + body[end:]


@st.composite
def nested(draw: st.DrawFn, path: str) -> bytes:
    """Return a body that is up to 1200 deep at one place, where Python's own limit is 1000."""
    body = {**draw(st.sampled_from(VALID[path])), draw(keys): "HERE"}
    start, end = draw(st.sampled_from([("[", "]"), ('{"a":', "}"), ('[{"role":', "}]")]))
    depth = draw(st.sampled_from([1, 2, 100, 490, 990, 1200]))
    return json.dumps(body).replace('"HERE"', start * depth + "1" + end * depth).encode()


anything = (values | objects).map(_dumped) | st.binary(max_size=32)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a path and a body for it."""
    path = draw(paths)
    return path, draw(mutated(path) | damaged(path) | nested(path) | anything)


@given(requests())
@settings(quick, max_examples=500)
def test_request_of_any_kind_goes_on_as_json_or_is_refused_in_words(
    request: tuple[str, bytes],
) -> None:
    """llama-server gets an object for the same model; the client gets an error of its API's."""
    path, body = request
    sent, refusal = b"", ""

    try:
        sent = _sent(path, body)
    except KvsupError as error:
        refusal = str(error)

    if sent:
        assert _parsed(sent).get("model") == _parsed(body).get("model")
    else:
        answer = msgspec.json.decode(shape_for(path).body(refusal, 400))
        assert answer["error"]["message"] == refusal


@pytest.mark.parametrize("path", VALID)
def test_body_that_mutants_start_from_goes_on(path: str) -> None:
    """Otherwise the mutants would show nothing."""
    for valid in VALID[path]:
        assert json.loads(_sent(path, _dumped(valid)))["model"] == "m"


@given(own=objects)
@quick
def test_settings_fill_only_what_a_request_leaves_out(own: Json) -> None:
    """Of members with one name llama-server takes the last; a null is as good as none."""
    said = {name: value for name, value in own.items() if value is not None or name not in OF_FILE}

    with suppress(KvsupError):
        body = with_defaults(_dumped(own), OF_FILE)

        assert _parsed(body) == _parsed(_dumped({**OF_FILE, **said}))


@given(path=paths, own=objects, messages=st.lists(st.sampled_from(TURNS) | values, max_size=2))
@quick
def test_system_text_is_added_only_where_there_is_none(
    path: str, own: Json, messages: list[Any]
) -> None:
    """A request that has its own keeps it, and each other member."""
    body = _dumped({**own, "messages": messages})

    with suppress(KvsupError):
        before, after = _parsed(body), _parsed(with_prelude(path, body, SYSTEM))

        changed = {name for name in after if after[name] != before.get(name)}
        assert changed <= {"messages", "instructions", "system"}
        if "messages" in changed:
            assert after["messages"] == [{"role": "system", "content": SYSTEM}, *messages]
            assert messages[0].get("role") not in {"system", "developer"}
        assert all(before.get(name) is None for name in changed - {"messages"})


@given(requests())
@settings(quick, max_examples=500)
def test_steered_request_differs_only_in_how_it_is_streamed(request: tuple[str, bytes]) -> None:
    """Whatever the bytes: nothing is raised, and no member of the client's is lost."""
    path, body = request

    steered = steer(path, body)

    if steered is not None:
        steered.make_answer()
        before, after = _parsed(body), _parsed(steered.body)
        changed = {name for name in after if after[name] != before.get(name)}
        assert changed <= {"stream", "stream_options", "return_progress"}


@given(
    body=objects.map(_dumped) | st.binary(max_size=16),
    headers=st.fixed_dictionaries(
        {},
        optional={
            KEEP_ALIVE: st.sampled_from(["1m", "-1", "", "1e999s", "x"]) | header_texts,
            OPTIONS: objects.map(json.dumps) | header_texts,
            KV_CACHE_TYPE: header_texts,
            "content-type": st.sampled_from(["application/json", "text/plain"]),
        },
    ),
)
@settings(quick, max_examples=300)
def test_wishes_of_any_kind_are_read_or_refused(body: bytes, headers: dict[str, str]) -> None:
    """Headers are any text in Latin-1."""
    with suppress(KvsupError):
        read_wishes(body, headers)


@given(
    parts=st.lists(st.sampled_from(FORM) | st.binary(max_size=8), max_size=12),
    boundary=st.sampled_from(["; boundary=b", '; boundary="b"', "; boundary=", ""]) | header_texts,
)
@settings(quick, max_examples=200)
def test_form_of_any_kind_is_read_or_refused(parts: list[bytes], boundary: str) -> None:
    """Pieces of a form in any order."""
    with suppress(KvsupError):
        wishes = read_wishes(b"".join(parts), {"content-type": f"multipart/form-data{boundary}"})

        assert wishes.model is None or FIELD in parts


def _sent(path: str, body: bytes) -> bytes:
    """Return what llama-server gets for a request of a client."""
    wishes = read_wishes(body, {})
    is_anthropic = path.startswith("/v1/messages")
    prepared = (anthropic.prepare if is_anthropic else openai.prepare)(path, body)
    if prepared.make_mend is not None:
        prepared.make_mend(N_CTX_TOKENS)
    if prepared.instead is not None:
        path, body = prepared.instead.path, prepared.instead.body
    fields = given_fields({**OF_FILE, **wishes.options}, num_ctx=N_CTX_TOKENS)
    members = sampling_members(path, fields)
    assert not members or len(members) == len(fields)
    body = with_defaults(with_members(body, first={}, last=prepared.forced), members)
    body = with_prelude(path, body, SYSTEM, [{"role": "user", "content": "before"}])
    steered = steer(path, body)
    return body if steered is None else steered.body


def _parsed(body: bytes) -> Json:
    """Return the object; bytes that are no UTF-8 pass where nothing reads them."""
    value = json.loads(body.decode("utf-8", "replace"), parse_constant=_refuse)
    assert isinstance(value, dict)
    return value


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def _containers(value: Any) -> list[Any]:
    """Return ``value`` and all in it that has members or elements."""
    if not isinstance(value, (dict, list)):
        return []
    items = value.values() if isinstance(value, dict) else value
    return [value, *(inner for item in items for inner in _containers(item))]
