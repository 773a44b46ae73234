"""A model's settings as members of a request that is passed on."""

import json

import pytest

from kvsup.errors import RequestError
from kvsup.llama.defaults import sampling_members, with_members, with_prelude

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
HISTORY = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
FIELDS = {"n_predict": 5, "temperature": 0.5, "stop": ["x"]}


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        (CHAT, "max_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
        ("/completion", "n_predict"),
        ("/completions", "n_predict"),
        ("/infill", "n_predict"),
    ],
)
def test_limit_of_tokens_has_the_name_of_its_path(path: str, limit: str) -> None:
    """The client's own, of that name, must win over it."""
    assert sampling_members(path, FIELDS) == {limit: 5, "temperature": 0.5, "stop": ["x"]}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/tokenize", f"{CHAT}/x"])
def test_path_that_does_not_generate_takes_no_field(path: str) -> None:
    """There is nothing to sample."""
    assert sampling_members(path, FIELDS) == {}


@pytest.mark.parametrize("body", [b'{"a":1}', b' \n{ "a" : 1 }\r\n\t'])
def test_members_in_front_are_defaults_and_members_behind_are_orders(body: bytes) -> None:
    """Of members with one name the last counts."""
    text = with_members(body, first={"a": 0, "b": 2}, last={"c": 3})

    assert json.loads(text) == {"a": 1, "b": 2, "c": 3}
    pairs = json.loads(text, object_pairs_hook=list)
    assert pairs == [("a", 0), ("b", 2), ("a", 1), ("c", 3)]


@pytest.mark.parametrize("body", [b"{}", b" { } "])
@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ({"a": 1}, {}, b'{"a":1}'),
        ({}, {"a": 1}, b'{"a":1}'),
        ({"a": 1}, {"b": 2}, b'{"a":1,"b":2}'),
    ],
)
def test_members_of_an_empty_object_need_no_comma(
    body: bytes, first: dict[str, int], last: dict[str, int], expected: bytes
) -> None:
    """It is JSON at either end."""
    assert with_members(body, first=first, last=last) == expected


def test_body_without_members_to_add_is_the_same_bytes() -> None:
    """Pass-through stays so."""
    body = b' {"a":  1}\n'

    assert with_members(body, first={}, last={}) is body


def test_own_bytes_of_a_body_are_kept() -> None:
    """Numbers and escapes are not written anew."""
    own = b'"x":1.50e+3, "y":"\\u00e9\\/"'

    assert own in with_members(b"{" + own + b"}", first={"a": 1}, last={"b": 1})


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/input_tokens"])
def test_system_text_is_a_default_where_it_is_a_member(path: str) -> None:
    """A request's own wins."""
    without = with_prelude(path, b'{"x":1}', "S")
    own = with_prelude(path, b'{"instructions":"mine"}', "S")

    assert json.loads(without) == {"instructions": "S", "x": 1}
    assert json.loads(own) == {"instructions": "mine"}


def test_system_text_of_a_chat_stands_before_its_messages() -> None:
    """The messages themselves are the same bytes."""
    turn = b'{"content":"\\u00e9",  "role":"user"}'

    body = with_prelude(CHAT, b'{"messages":[' + turn + b"]}", "S")

    assert json.loads(body)["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "é"},
    ]
    assert body.count(turn) == 2


@pytest.mark.parametrize("role", ["system", "developer"])
def test_chat_with_a_system_text_of_its_own_is_the_same_bytes(role: str) -> None:
    """Also in OpenAI's newer word for it."""
    body = json.dumps({"messages": [{"role": role, "content": "mine"}]}).encode()

    assert with_prelude(CHAT, body, "S") is body


@pytest.mark.parametrize(
    ("system", "own", "expected"),
    [
        ("S", [], [{"role": "system", "content": "S"}, *HISTORY]),
        (None, [], HISTORY),
        ("S", [{"role": "system", "content": "mine"}], HISTORY),
    ],
)
def test_messages_of_the_model_stand_before_those_of_a_chat(
    system: str | None, own: list[dict[str, str]], expected: list[dict[str, str]]
) -> None:
    """Behind the system text that kvsup adds, in front of the request's own."""
    asked = [*own, {"role": "user", "content": "hi"}]

    for path in (CHAT, f"{CHAT}/input_tokens"):
        body = with_prelude(path, json.dumps({"messages": asked}).encode(), system, HISTORY)
        assert json.loads(body) == {"messages": [*expected, *asked]}


@pytest.mark.parametrize(
    "own", ["hi", [{"role": "user", "content": "hi"}, {"type": "reasoning", "summary": []}]]
)
def test_messages_of_the_model_are_items_of_a_response(own: object) -> None:
    """In the shape that llama-server reads, with a text as the item that it stands for."""
    body = with_prelude(RESPONSES, json.dumps({"input": own}).encode(), "S", HISTORY)

    sent = json.loads(body)
    assert sent["instructions"] == "S"
    assert sent["input"] == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "2+2?"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4"}]},
        *([{"role": "user", "content": "hi"}] if isinstance(own, str) else own),  # type: ignore[misc]
    ]


@pytest.mark.parametrize("body", [b"{}", b'{"input":null}', b'{"input":""}', b'{"input":[]}'])
def test_response_without_input_is_the_same_bytes(body: bytes) -> None:
    """What is wrong with it is told by others."""
    assert with_prelude(RESPONSES, body, None, HISTORY) is body


@pytest.mark.parametrize("own", [b"5", b"{}", b"[", b"[" * 100_000])
def test_input_of_a_wrong_type_is_a_client_error(own: bytes) -> None:
    """No other exception leaves, however deep the JSON is."""
    with pytest.raises(RequestError, match="invalid request"):
        with_prelude(RESPONSES, b'{"input":' + own + b"}", None, HISTORY)


@pytest.mark.parametrize("body", [b'{"messages":[]}', b"{}"])
def test_chat_without_messages_is_the_same_bytes(body: bytes) -> None:
    """What is wrong with it is told by others."""
    assert with_prelude(CHAT, body, "S", HISTORY) is body


@pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/v1/embeddings", "/infill"])
def test_path_without_a_place_for_a_system_text_is_the_same_bytes(path: str) -> None:
    """A raw prompt is the client's."""
    body = b'{"prompt":"x"}'

    assert with_prelude(path, body, "S", HISTORY) is body


@pytest.mark.parametrize(
    "messages", [b'"x"', b"1", b"{}", b"[1]", b'["x"]', b'[{"role":1}]', b"[" * 3000]
)
def test_messages_of_a_wrong_type_are_a_client_error(messages: bytes) -> None:
    """No other exception leaves, however deep the JSON is."""
    with pytest.raises(RequestError, match="invalid request"):
        with_prelude(CHAT, b'{"messages":' + messages + b"}", "S")
