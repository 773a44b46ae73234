"""A format of the answer: what the chat is asked in place of the message, and its answer as one."""

import json
from typing import Any

import pytest

from kvsup.anthropic.requests import prepare
from kvsup.errors import RequestError
from kvsup.mending import Prepared

HI = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
TOOL = {"name": "f", "description": "Does.", "input_schema": {"type": "object"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def _prepared(**request: Any) -> Prepared:
    body = {"model": "m", "max_tokens": 9, "messages": [HI], "output_config": {"format": FORMAT}}
    body |= request
    return prepare("/v1/messages", json.dumps(body).encode())


def _chat(**request: Any) -> dict[str, Any]:
    prepared = _prepared(**request)
    assert prepared.instead is not None
    assert (prepared.instead.path, prepared.forced) == ("/v1/chat/completions", {})
    chat: dict[str, Any] = json.loads(prepared.instead.body)
    return chat


def _mended(data: bytes, **request: Any) -> bytes:
    make_mend = _prepared(**request).make_mend
    assert make_mend is not None
    mend = make_mend(4096)
    return mend.feed(data) + mend.finish()


def _stream(*chunks: dict[str, Any], **request: Any) -> list[dict[str, Any]]:
    """Return the events that ``chunks`` become, each with its name."""
    data = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    stream = _mended(data.replace(b'{"choices": ', b'{"choices":'), stream=True, **request)
    events = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, payload = event.split("\ndata: ")
        events.append(json.loads(payload))
        assert name == f"event: {events[-1]['type']}"
    return events


def _chunk(delta: dict[str, Any], reason: str | None = None, **members: Any) -> dict[str, Any]:
    choice = {"finish_reason": reason, "index": 0, "delta": delta}
    return {"choices": [choice], "id": "chatcmpl-1", "model": "m", **members}


def _called(index: int, **call: Any) -> dict[str, Any]:
    return _chunk({"tool_calls": [{"index": index, **call}]})


ROLE = {"role": "assistant", "content": None}
PROGRESS = _chunk(ROLE, prompt_progress={"total": 12, "cache": 5, "processed": 5, "time_ms": 0})
TEXT = _chunk({"content": "{}"})
CACHED = {"prompt_tokens_details": {"cached_tokens": 5}}
USED = {"prompt_tokens": 12, "completion_tokens": 3, **CACHED}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}
COUNTS = {"input_tokens": 7, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 5}


def _last(reason: str, **members: Any) -> list[dict[str, Any]]:
    used = {"choices": [], "id": "chatcmpl-1", "model": "m", "usage": USED}
    return [_chunk({}, reason, **members), used]


def _completion(message: dict[str, Any], reason: str = "stop", **members: Any) -> bytes:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", **message}}
    answer = {"choices": [choice], "id": "chatcmpl-1", "model": "m", "usage": USED, **members}
    return json.dumps(answer).encode()


def test_format_is_asked_of_a_chat() -> None:
    """What ``/v1/messages`` would take over goes along, in the chat's words."""
    chat = _chat(temperature=0.5, top_p=0.9, top_k=4, stop_sequences=[], metadata={"user_id": "x"})

    assert chat == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "messages": [HI],
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    }


def test_format_of_the_beta_is_asked_as_well() -> None:
    """Its older clients have it in ``output_format``."""
    assert _chat(output_config=None, output_format=FORMAT) == _chat()


def test_schema_without_members_is_that_of_an_object() -> None:
    """One build takes it for no schema at all."""
    chat = _chat(output_config={"format": {"type": "json_schema", "schema": {}}})

    assert chat["response_format"]["json_schema"] == {"schema": {"type": "object"}}


def test_stream_is_asked_for_its_counts() -> None:
    """A message begins with the length of its prompt and ends with that of its answer."""
    chat = _chat(stream=True)

    assert (chat["stream"], chat["return_progress"]) == (True, True)
    assert chat["stream_options"] == {"include_usage": True}


def test_stop_sequences_are_asked_to_be_told() -> None:
    """A chat's reason for its end is one word for the model's own and for theirs."""
    chat = _chat(stop_sequences=["x"])

    assert (chat["stop"], chat["verbose"]) == (["x"], True)


def test_thinking_goes_along_with_its_budget_and_the_effort() -> None:
    """A budget that is not given is llama-server's own."""
    config = {"format": FORMAT, "effort": "low"}

    given = _chat(thinking={"type": "enabled", "budget_tokens": 7}, output_config=config)
    default = _chat(thinking={"type": "enabled"})

    assert given["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "low"}
    assert given["thinking_budget_tokens"] == 7
    assert default["thinking_budget_tokens"] == 10_000


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "adaptive"}, None])
def test_thinking_without_a_budget_has_none(thinking: dict[str, Any] | None) -> None:
    """Only what is switched on by name has one."""
    assert "thinking_budget_tokens" not in _chat(thinking=thinking)


@pytest.mark.parametrize(
    ("system", "text"),
    [
        ("Be brief.", "Be brief."),
        ([{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}], "Be brief."),
        (
            "x-anthropic-billing-header: cc_version=2; cch=a5145;Be cch=a5145;",
            "x-anthropic-billing-header: cc_version=2; cch=fffff;Be cch=a5145;",
        ),
        ("Be cch=a5145;", "Be cch=a5145;"),
    ],
)
def test_system_text_is_the_first_message(system: object, text: str) -> None:
    """Without the stamp that differs from request to request."""
    assert _chat(system=system)["messages"] == [{"role": "system", "content": text}, HI]


def test_blocks_become_the_parts_of_a_chat() -> None:
    """What a chat does not know is left out, as llama-server leaves it out."""
    blocks = [
        {"type": "text", "text": "See", "cache_control": {"type": "ephemeral"}},
        IMAGE,
        {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}},
        {"type": "search_result", "source": "http://x", "title": "x", "content": []},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
    ]

    (message,) = _chat(messages=[{"role": "user", "content": blocks}])["messages"]

    assert message["content"] == [
        {"type": "text", "text": "See"},
        PICTURE,
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
    ]


def test_turn_of_the_assistant_has_its_thought_text_and_calls() -> None:
    """Arguments are JSON in a text."""
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "See"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
    ]

    chat = _chat(messages=[HI, {"role": "assistant", "content": blocks}, HI])

    assert chat["messages"][1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "See"}],
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
        ],
    }


def test_turn_of_nothing_but_a_call_has_an_empty_text() -> None:
    """Templates read the content of every message."""
    blocks = [{"type": "tool_use", "id": "c1", "name": "f"}]

    message = _chat(messages=[{"role": "assistant", "content": blocks}, HI])["messages"][0]

    assert message["content"] == ""
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("3", "3"),
        (None, ""),
        ([{"type": "text", "text": "3"}, {"type": "text", "text": "4"}], "34"),
        ([{"type": "text", "text": "3"}, IMAGE], [{"type": "text", "text": "3"}, PICTURE]),
    ],
)
def test_result_of_a_tool_is_a_message_before_the_text_beside_it(
    content: object, expected: object
) -> None:
    """Texts alone are one text, which every template can read."""
    result = {"type": "tool_result", "tool_use_id": "c1", "content": content}
    text = {"type": "text", "text": "and?"}

    chat = _chat(messages=[{"role": "user", "content": [text, result]}])

    assert chat["messages"] == [
        {"role": "tool", "tool_call_id": "c1", "content": expected},
        {"role": "user", "content": [text]},
    ]


def test_tools_to_choose_from_go_along() -> None:
    """Some templates let the model call one in place of the answer."""
    chat = _chat(tools=[TOOL], tool_choice={"type": "auto"})

    function = {"name": "f", "description": "Does.", "parameters": {"type": "object"}}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert "tools" not in _chat(tools=[TOOL], tool_choice={"type": "none"})


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "f"}])
def test_format_does_not_stand_in_the_way_of_a_call_that_must_come(choice: Any) -> None:
    """With a schema the model could not call; with a call there is no text to be formed."""
    assert _prepared(tools=[TOOL], tool_choice=choice).instead is None


@pytest.mark.parametrize(
    ("request_fields", "text"),
    [
        (
            {"output_config": {"format": {"type": "text"}}},
            "output_config.format.type: 'text' is not 'json_schema'",
        ),
        ({"output_config": {"format": {}}}, "output_config.format.type: Field required"),
        (
            {"output_config": {"format": {"type": "json_schema"}}},
            "output_config.format.schema: Field required",
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": "x"}}},
            "output_config.format.schema: Input should be an object, not a string",
        ),
        (
            {"messages": [HI, {"role": "assistant", "content": "{"}]},
            "output_config.format: the last message cannot be the assistant's",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text: Input should be a string, not an integer",
        ),
    ],
)
def test_format_that_cannot_be_had_is_refused(request_fields: dict[str, Any], text: str) -> None:
    """A client that asks for JSON of a form must not be given anything else."""
    with pytest.raises(RequestError) as caught:
        _prepared(**request_fields)

    assert str(caught.value) == text


def test_stream_of_a_chat_becomes_a_messages() -> None:
    """The start has the prompt's counts, and comes with the first token, not with the progress."""
    events = _stream(PROGRESS, PROGRESS, _chunk(ROLE), TEXT, TEXT, *_last("stop"))

    start, *blocks, end, stop = events
    usage = {**COUNTS, "output_tokens": 0}
    ended = {"stop_reason": None, "stop_sequence": None}
    assert start["message"] == {**MESSAGE, **ended, "content": [], "usage": usage}
    delta = {"index": 0, "delta": {"type": "text_delta", "text": "{}"}}
    assert blocks == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", **delta},
        {"type": "content_block_delta", **delta},
        {"type": "content_block_stop", "index": 0},
    ]
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"] == {**COUNTS, "output_tokens": 3}
    assert stop == {"type": "message_stop"}


def test_progress_alone_is_nothing_for_the_client() -> None:
    """Before its first byte an answer can be asked for once more."""
    assert _stream(PROGRESS, PROGRESS) == []


def test_thought_is_a_block_of_its_own_before_the_text() -> None:
    """It is closed, with a signature, before the text begins."""
    events = _stream(PROGRESS, _chunk({"reasoning_content": "hm"}), TEXT, *_last("stop"))

    told = [
        (event["type"].removeprefix("content_block_"), event["index"]) for event in events[1:-2]
    ]
    assert told == [
        ("start", 0), ("delta", 0), ("delta", 0), ("stop", 0),
        ("start", 1), ("delta", 1), ("stop", 1),
    ]  # fmt: skip
    assert events[1]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert events[2]["delta"] == {"type": "thinking_delta", "thinking": "hm"}
    assert events[3]["delta"] == {"type": "signature_delta", "signature": ""}


def test_calls_of_tools_are_blocks_one_after_the_other() -> None:
    """Arguments come in pieces of JSON."""
    events = _stream(
        PROGRESS,
        _called(0, id="c1", type="function", function={"name": "f", "arguments": "{"}),
        _called(0, function={"arguments": "}"}),
        _called(1, id="c2", type="function", function={"name": "g"}),
        *_last("tool_calls"),
    )

    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [start["index"] for start in starts] == [0, 1]
    assert [start["content_block"] for start in starts] == [
        {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
    ]
    pieces = [event["delta"]["partial_json"] for event in events if "partial_json" in str(event)]
    assert pieces == ["{", "}", ""]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("reason", "word", "ending"),
    [
        ("length", "", ("max_tokens", None)),
        ("stop", "", ("end_turn", None)),
        ("stop", "x", ("stop_sequence", "x")),
        ("stop", "<end>", ("end_turn", None)),
    ],
)
def test_reason_of_the_end_is_the_same_streamed_and_whole(
    reason: str, word: str, ending: tuple[str, str | None]
) -> None:
    """A stop word of the model's settings is none of the client's."""
    verbose = {"__verbose": {"stopping_word": word}}
    asked = {"stop_sequences": ["x"]}

    streamed = _stream(PROGRESS, TEXT, *_last(reason, **verbose), **asked)[-2]["delta"]
    whole = json.loads(_mended(_completion({"content": "{}"}, reason, **verbose), **asked))

    assert (streamed["stop_reason"], streamed["stop_sequence"]) == ending
    assert (whole["stop_reason"], whole["stop_sequence"]) == ending


def test_comment_passes_and_error_takes_anthropics_shape() -> None:
    """Pings keep a connection open; at the event ``error`` the SDKs raise."""
    error = b'data: {"error":{"code":500,"message":"no","type":"server_error"}}\n\n'

    assert _mended(b":\n\n", stream=True) == b":\n\n"
    assert _mended(error, stream=True) == (
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"no"}}\n\n'
    )


def test_whole_chat_becomes_a_message() -> None:
    """Its thought, its text and its calls are blocks in this order."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    cut = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": '{"a":'}}
    message = {"content": "{}", "reasoning_content": "hm", "tool_calls": [call, cut]}

    whole = json.loads(_mended(_completion(message, "tool_calls")))

    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "{}"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
    ]
    ended = {"stop_reason": "tool_use", "stop_sequence": None}
    usage = {**COUNTS, "output_tokens": 3}
    assert whole == {**MESSAGE, **ended, "content": blocks, "usage": usage}


def test_whole_chat_that_says_nothing_is_a_message_without_blocks() -> None:
    """Anthropic has no empty texts."""
    assert json.loads(_mended(_completion({"content": ""})))["content"] == []
