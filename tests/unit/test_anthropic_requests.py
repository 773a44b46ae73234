"""What of Anthropic's requests is a 400."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.anthropic.requests import prepare
from kvsup.errors import RequestError

MESSAGES = "/v1/messages"

HI = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("request_fields", "text"),
    [
        ({"messages": [HI]}, "max_tokens is required and must be positive"),
        ({"messages": [HI], "max_tokens": 0}, "max_tokens is required and must be positive"),
        ({"max_tokens": 1}, "messages is required"),
        ({"max_tokens": 1, "messages": []}, "messages is required"),
        ({"max_tokens": "1", "messages": [HI]}, "max_tokens: Input should be an integer"),
        ({"max_tokens": 1, "messages": "x"}, "messages: Input should be an array, not a string"),
        ({"max_tokens": 1, "messages": [{}]}, "messages[0].role: Field required"),
        (
            {"max_tokens": 1, "messages": [{"role": "user", "content": ["x"]}]},
            "messages[0].content[0]: Input should be an object, not a string",
        ),
        (
            {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "tool_use"}]}]},
            "tool_use block missing required 'id' field",
        ),
        (
            {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "tool_result block missing required 'tool_use_id' field",
        ),
        (
            {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "text block missing required 'text' field",
        ),
        (
            {"max_tokens": 1, "messages": [HI, {"role": "user"}]},
            "messages[1].content: Field required",
        ),
        (
            {
                "max_tokens": 1,
                "messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}],
            },
            "messages[0].content[0].text: Input should be a string, not an integer",
        ),
        ({"max_tokens": 1, "messages": [HI], "system": 5}, "system: Input should be a string or"),
        ({"max_tokens": 1, "messages": [HI], "stop_sequences": "x"}, "stop_sequences: Input"),
        ({"max_tokens": 1, "messages": [HI], "tools": [{}]}, "tools[0].name: Field required"),
        (
            {"max_tokens": 1, "messages": [HI], "tool_choice": {"type": "tool", "name": "c"}},
            "tool_choice: there is no tool 'c' in tools",
        ),
    ],
)
def test_request_that_is_wrong_is_refused(request_fields: dict[str, Any], text: str) -> None:
    """Ollama's texts where it has one; llama-server guesses or answers 500."""
    with pytest.raises(RequestError) as caught:
        prepare(MESSAGES, json.dumps(request_fields).encode())

    assert text in str(caught.value)


def test_number_that_is_none_is_told() -> None:
    """In what only the tools look at, too."""
    body = b'{"max_tokens":1,"messages":[{"role":"user","content":[{"type":"x","input":1e999}]}]}'

    with pytest.raises(RequestError, match="Number out of range"):
        prepare(MESSAGES, body)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"[]"])
def test_body_that_is_no_object_is_refused(body: bytes) -> None:
    """Malformed JSON is a 400 of the API's own shape."""
    with pytest.raises(RequestError, match="the body"):
        prepare(MESSAGES, body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
CONTENT = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "tool_use", "tool_result", "image"])},
        optional={"id": JSON, "name": JSON, "tool_use_id": st.text(), "text": JSON},
    )
)
FIELDS = ["tools", "tool_choice", "thinking", "output_config", "system", "stop_sequences"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), CONTENT | JSON)
def test_any_body_is_prepared_or_refused(request: dict[str, Any], content: Any) -> None:
    """No JSON of a client is an error of kvsup's."""
    messages = [{"role": "assistant", "content": content}]
    body = {"max_tokens": 1, "messages": messages, **request}

    try:
        prepared = prepare(MESSAGES, json.dumps(body).encode())
    except RequestError:
        return
    assert prepared.instead is not None
    assert isinstance(json.loads(prepared.instead.body)["messages"], list)
