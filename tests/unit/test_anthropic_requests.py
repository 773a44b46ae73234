"""What of Anthropic's requests is a 400, and what llama-server is told otherwise."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.anthropic.requests import prepare
from kvsup.errors import RequestError

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"

HI = {"role": "user", "content": "hi"}
TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in "ab"]


def _forced(path: str = MESSAGES, **request: Any) -> Any:
    body = {"max_tokens": 1, "messages": [HI], **request}
    return json.loads(msgspec.json.encode(prepare(path, json.dumps(body).encode()).forced))


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


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"[]"])
def test_body_that_is_no_object_is_refused(body: bytes) -> None:
    """Malformed JSON is a 400 of the API's own shape."""
    with pytest.raises(RequestError, match="the body"):
        prepare(MESSAGES, body)


def test_count_of_tokens_needs_no_limit_and_is_not_mended() -> None:
    """Anthropic's count takes no ``max_tokens``; the answer is its own already."""
    prepared = prepare(COUNT, json.dumps({"messages": [HI]}).encode())

    assert prepared.make_mend is None


def test_request_that_llama_server_understands_is_passed_untouched() -> None:
    """Only what it drops is told it again."""
    forced = _forced(
        system=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        messages=[HI, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}, HI],
        tools=TOOLS,
        tool_choice={"type": "auto"},
        thinking=None,
        metadata={"user_id": "x"},
        temperature=1,
    )

    assert forced == {}


def test_choice_of_no_tool_takes_the_tools_away() -> None:
    """llama-server takes it for "auto"."""
    assert _forced(tools=TOOLS, tool_choice={"type": "none"}) == {"tools": []}


def test_choice_of_a_tool_leaves_it_alone() -> None:
    """llama-server requires some tool, not this one."""
    forced = _forced(tools=TOOLS, tool_choice={"type": "tool", "name": "b"})

    assert forced == {"tools": TOOLS[1:]}


@pytest.mark.parametrize(
    ("request_fields", "words"),
    [
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"output_config": {"effort": "xhigh"}}, {"reasoning_effort": "high"}),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"a": 1}},
            {"enable_thinking": False, "a": 1},
        ),
    ],
)
def test_thinking_is_told_in_the_templates_words(
    request_fields: dict[str, Any], words: dict[str, Any]
) -> None:
    """llama-server passes nothing of it on; a count must be of the same prompt."""
    assert _forced(**request_fields) == {"chat_template_kwargs": words}
    assert _forced(COUNT, **request_fields) == {"chat_template_kwargs": words}


def test_results_of_tools_stand_before_the_text_beside_them() -> None:
    """llama-server puts them behind it; Claude Code sends both in one message."""
    text = {"type": "text", "text": "and?"}
    results = [{"type": "tool_result", "tool_use_id": id_, "content": "x"} for id_ in "ab"]

    forced = _forced(messages=[HI, {"role": "user", "content": [results[0], text, results[1]]}])

    assert forced["messages"] == [
        HI,
        {"role": "user", "content": results},
        {"role": "user", "content": [text]},
    ]


def test_results_of_tools_without_text_stay() -> None:
    """The order is right already."""
    result = {"type": "tool_result", "tool_use_id": "a", "content": "x"}

    assert _forced(messages=[HI, {"role": "user", "content": [result, result]}]) == {}


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
    assert msgspec.json.encode(prepared.forced).startswith(b"{")
