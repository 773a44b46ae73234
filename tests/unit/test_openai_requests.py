"""What of OpenAI's requests is a 400, and what llama-server is told otherwise."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.errors import RequestError
from kvsup.openai.errors import error_body
from kvsup.openai.requests import prepare

CHAT, COMPLETION, EMBEDDING, RESPONSE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
)
PATHS = [CHAT, COMPLETION, EMBEDDING, RESPONSE, f"{RESPONSE}/input_tokens"]

HI = [{"role": "user", "content": "hi"}]
CHAT_TOOLS = [{"type": "function", "function": {"name": name}} for name in "ab"]
TOOLS = [{"type": "function", "name": name} for name in "ab"]


def _forced(path: str, **request: Any) -> Any:
    prepared = prepare(path, json.dumps(request).encode())
    return json.loads(msgspec.json.encode(prepared.forced))


@pytest.mark.parametrize(
    ("path", "request_fields", "param", "text"),
    [
        (CHAT, {}, "messages", "Missing required parameter: 'messages'."),
        (CHAT, {"messages": None}, "messages", "Missing required parameter: 'messages'."),
        (CHAT, {"messages": []}, "messages", "Invalid 'messages': empty array."),
        (CHAT, {"messages": "hi"}, "messages", "Invalid type for 'messages': expected an array"),
        (CHAT, {"messages": [{}]}, "messages[0].role", "Missing required parameter"),
        (CHAT, {"messages": [*HI, "hi"]}, "messages[1]", "expected an object, but got a string"),
        (CHAT, {"messages": [{"role": 1}]}, "messages[0].role", "expected a string"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": 1}]},
            "messages[0].content",
            "expected a string or an array, but got an integer instead.",
        ),
        (CHAT, {"messages": HI, "max_tokens": "1"}, "max_tokens", "expected an integer"),
        (CHAT, {"messages": HI, "temperature": "1"}, "temperature", "expected a decimal"),
        (CHAT, {"messages": HI, "stream": "yes"}, "stream", "expected a boolean"),
        (CHAT, {"messages": HI, "stop": 5}, "stop", "expected a string or an array"),
        (CHAT, {"messages": HI, "stop": [5]}, "stop[0]", "expected a string"),
        (CHAT, {"messages": HI, "logit_bias": "x"}, "logit_bias", "expected an object or an array"),
        (CHAT, {"messages": HI, "response_format": "json"}, "response_format", "an object"),
        (CHAT, {"messages": HI, "tools": "x"}, "tools", "expected an array"),
        (CHAT, {"messages": HI, "tools": TOOLS}, "tools[0].function", "Missing"),
        (COMPLETION, {}, "prompt", "Missing required parameter: 'prompt'."),
        (COMPLETION, {"prompt": 5}, "prompt", "expected a string"),
        (EMBEDDING, {}, "input", "Missing required parameter: 'input'."),
        (EMBEDDING, {"input": []}, "input", "empty array"),
        (EMBEDDING, {"input": 5}, "input", "expected a string"),
        (
            EMBEDDING,
            {"input": "x", "encoding_format": "hex"},
            "encoding_format",
            "Supported values: ['float', 'base64'].",
        ),
        (EMBEDDING, {"input": "x", "dimensions": 0}, "dimensions", "but got 0 instead."),
        (EMBEDDING, {"input": "x", "dimensions": 1.5}, "dimensions", "expected an integer"),
        (RESPONSE, {}, "input", "Missing required parameter: 'input'."),
        (RESPONSE, {"input": []}, "input", "empty array"),
        (RESPONSE, {"input": "x", "instructions": 5}, "instructions", "expected a string"),
        (RESPONSE, {"input": "x", "tools": [None]}, "tools[0]", "expected an object"),
        (RESPONSE, {"input": "x", "tools": [{"type": "function"}]}, "tools[0].name", "Missing"),
        (
            RESPONSE,
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "x"}}},
            "text.format.schema",
            "Missing",
        ),
        (
            RESPONSE,
            {"input": "x", "text": {"format": {"type": "xml"}}},
            "text.format.type",
            "'text', 'json_object', and 'json_schema'",
        ),
        (
            RESPONSE,
            {"input": "x", "tools": TOOLS, "tool_choice": {"type": "function", "name": "c"}},
            "tool_choice",
            "no tool 'c'",
        ),
        (
            RESPONSE,
            {"input": [*HI, {"type": "item_reference", "id": "msg_1"}]},
            "input[1]",
            "nothing is stored here",
        ),
    ],
)
def test_request_that_is_wrong_is_refused_with_its_parameter(
    path: str, request_fields: dict[str, Any], param: str, text: str
) -> None:
    """The SDKs raise ``BadRequestError`` with ``param``, where llama-server guesses or says 500."""
    with pytest.raises(RequestError) as caught:
        prepare(path, json.dumps(request_fields).encode())

    assert text in str(caught.value)
    assert json.loads(error_body(str(caught.value), 400))["error"]["param"] == param


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"model":"\xff"}', b"[]"])
def test_body_that_is_no_object_is_refused(path: str, body: bytes) -> None:
    """Malformed JSON is a 400 of the API's own shape."""
    with pytest.raises(RequestError, match="body"):
        prepare(path, body)


@pytest.mark.parametrize(
    ("path", "request_fields"),
    [
        (CHAT, {"messages": HI}),
        (CHAT, {"messages": HI, "max_tokens": 10.0, "stop": None, "tools": [], "x": 1}),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{}]}], "tool_choice": "auto"}),
        (COMPLETION, {"prompt": [1, 2]}),
        (COMPLETION, {"prompt": {"prompt_string": "x"}}),
        (EMBEDDING, {"input": [[1], [2]], "encoding_format": "base64"}),
        (EMBEDDING, {"content": "x"}),
        ("/v1/rerank", {}),
    ],
)
def test_request_that_llama_server_understands_is_passed_untouched(
    path: str, request_fields: dict[str, Any]
) -> None:
    """Neither the body nor the answer of a chat is changed without need."""
    prepared = prepare(path, json.dumps(request_fields).encode())

    assert not prepared.forced
    assert prepared.make_mend is None


def test_request_of_another_path_is_not_read() -> None:
    """An upload of audio is no JSON."""
    assert prepare("/v1/audio/transcriptions", b"--x\r\n").make_mend is None


@pytest.mark.parametrize("given_encoding", ["Float", "FLOAT", None])
def test_encoding_in_another_case_is_written_as_llama_server_reads_it(
    given_encoding: str | None,
) -> None:
    """Ollama takes any case; llama-server refuses it, and null too."""
    forced = _forced(EMBEDDING, input="x", encoding_format=given_encoding)

    assert forced == {"encoding_format": "float"}


@pytest.mark.parametrize("wanted", [{"type": "json_object"}, {"type": "json_object", "schema": {}}])
def test_json_mode_of_a_chat_has_a_schema(wanted: dict[str, Any]) -> None:
    """b10434 lets any text pass without one."""
    forced = _forced(CHAT, messages=HI, response_format=wanted)

    assert forced["response_format"] == {"type": "json_object", "schema": {"type": "object"}}


def test_named_tool_of_a_chat_is_the_only_one_and_required() -> None:
    """llama-server takes a choice that is an object for "auto"; instructor sends one."""
    choice = {"type": "function", "function": {"name": "b"}}

    forced = _forced(CHAT, messages=HI, tools=CHAT_TOOLS, tool_choice=choice)

    assert forced == {"tool_choice": "required", "tools": CHAT_TOOLS[1:]}


@pytest.mark.parametrize(
    ("path", "tools", "choice"),
    [
        (
            CHAT,
            CHAT_TOOLS,
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": CHAT_TOOLS[:1]},
            },
        ),
        (
            RESPONSE,
            TOOLS,
            {"type": "allowed_tools", "mode": "required", "tools": TOOLS[:1]},
        ),
    ],
)
def test_allowed_tools_are_the_only_ones(
    path: str, tools: list[Any], choice: dict[str, Any]
) -> None:
    """Both APIs have the choice, each in its own form."""
    forced = _forced(path, messages=HI, input="x", tools=tools, tool_choice=choice)

    assert forced == {"tool_choice": "required", "tools": tools[:1]}


def test_choice_of_a_tool_that_openai_runs_is_passed() -> None:
    """llama-server has no such tools; what it makes of it is its answer."""
    request = {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}

    assert _forced(RESPONSE, input="x", **request) == {}


def test_format_of_a_response_becomes_that_of_a_chat() -> None:
    """llama-server's conversion drops ``text``, and copies what it does not know."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    wanted = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}

    forced = _forced(RESPONSE, input="x", text={"format": wanted})

    json_schema = {"name": "x", "schema": schema, "strict": True}
    assert forced == {"response_format": {"type": "json_schema", "json_schema": json_schema}}


@pytest.mark.parametrize(
    ("wanted", "forced"),
    [
        ({"type": "text"}, {}),
        (
            {"type": "json_object"},
            {"response_format": {"type": "json_object", "schema": {"type": "object"}}},
        ),
        (None, {}),
    ],
)
def test_simple_format_of_a_response_is_kept(
    wanted: dict[str, Any] | None, forced: dict[str, Any]
) -> None:
    """Text needs nothing, JSON mode the word of the chat API."""
    assert _forced(RESPONSE, input="x", text={"format": wanted}) == forced


def test_top_logprobs_of_a_response_are_taken_back() -> None:
    """llama-server refuses them without ``logprobs``, which this API does not have."""
    assert _forced(RESPONSE, input="x", top_logprobs=0) == {"top_logprobs": None}


def test_assistants_item_without_type_gets_one() -> None:
    """OpenAI's examples send none, and llama-server cannot tell what the item is."""
    said = {"role": "assistant", "content": "hello"}

    forced = _forced(f"{RESPONSE}/input_tokens", input=[*HI, said, *HI])

    assert forced == {"input": [*HI, {**said, "type": "message"}, *HI]}


def test_reasoning_item_without_content_gets_its_summary_or_goes() -> None:
    """The AI SDK sends reasoning back so; llama-server refuses it."""
    empty = {"type": "reasoning", "id": "rs_1", "summary": []}
    summed = {"type": "reasoning", "id": "rs_2", "summary": [{"type": "x", "text": "hm"}]}

    forced = _forced(RESPONSE, input=[*HI, empty, summed])

    content = [{"type": "reasoning_text", "text": "hm"}]
    assert forced == {"input": [*HI, {**summed, "content": content}]}


def test_items_that_llama_server_reads_stay() -> None:
    """Nothing is written twice without need, however long the conversation is."""
    items = [
        *HI,
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ""}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]},
        {"type": "function_call", "call_id": "c", "name": "a", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        {"type": 5},
    ]

    assert _forced(RESPONSE, input=items) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = ["messages", "input", "prompt", "tools", "tool_choice", "text", "reasoning", "metadata"]


@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_body_is_prepared_or_refused(path: str, request: dict[str, Any]) -> None:
    """No JSON of a client is an error of kvsup's."""
    try:
        prepared = prepare(path, json.dumps(request).encode())
    except RequestError:
        return
    assert msgspec.json.encode(prepared.forced).startswith(b"{")
