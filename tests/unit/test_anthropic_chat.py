"""The chat that is asked in place of a message."""

import json
from typing import Any

import pytest

from kvsup.anthropic.requests import prepare
from kvsup.errors import RequestError
from kvsup.mending import Instead

HI = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
TOOL = {"name": "f", "description": "Does.", "input_schema": {"type": "object"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


STREAMED = {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
"""What every chat is asked with: a leaving client is noticed, and both ends are counted."""


def _instead(path: str = "/v1/messages", **request: Any) -> Instead:
    body = {"model": "m", "max_tokens": 9, "messages": [HI], **request}
    prepared = prepare(path, json.dumps(body).encode())
    assert prepared.instead is not None
    assert prepared.forced == {}
    return prepared.instead


def _chat(**request: Any) -> dict[str, Any]:
    instead = _instead(**request)
    assert instead.path == "/v1/chat/completions"
    chat: dict[str, Any] = json.loads(instead.body)
    return chat


def test_message_is_asked_as_a_chat_in_its_words() -> None:
    """What Anthropic's API has and a chat does not is left out."""
    chat = _chat(
        temperature=0.5, top_p=0.9, top_k=4, stop_sequences=[], metadata={"user_id": "x"},
        service_tier="auto",
    )  # fmt: skip

    asked = {"model": "m", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 4}
    assert chat == {**asked, "messages": [HI], **STREAMED}


@pytest.mark.parametrize("stream", [True, False, None])
def test_chat_is_streamed_whatever_the_client_wants(stream: object) -> None:
    """Otherwise llama-server would not see that it leaves; the mend makes one object of it."""
    assert _chat(stream=stream) == _chat()
    assert _instead(stream=stream).is_folded == (not stream)


def test_count_is_of_the_prompt_of_the_same_chat() -> None:
    """With all that decides on it, and needs no limit."""
    request = {"system": "Be brief.", "tools": [TOOL], "thinking": {"type": "disabled"}}

    counted = _instead("/v1/messages/count_tokens", max_tokens=None, **request)

    assert counted.path == "/v1/chat/completions/input_tokens"
    assert not counted.is_folded
    assert {**json.loads(counted.body), "max_tokens": 9} == _chat(**request)


def test_format_is_asked_of_a_chat() -> None:
    """llama-server's own ``/v1/messages`` drops it."""
    wanted = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}

    assert _chat(output_config={"format": FORMAT})["response_format"] == wanted


def test_format_of_the_beta_is_asked_as_well() -> None:
    """Its older clients have it in ``output_format``."""
    assert _chat(output_format=FORMAT) == _chat(output_config={"format": FORMAT})


def test_schema_without_members_is_that_of_an_object() -> None:
    """One build takes it for no schema at all."""
    chat = _chat(output_config={"format": {"type": "json_schema", "schema": {}}})

    assert chat["response_format"]["json_schema"] == {"schema": {"type": "object"}}


def test_stop_sequences_are_asked_to_be_told() -> None:
    """A chat's reason for its end is one word for the model's own and for theirs."""
    chat = _chat(stop_sequences=["x"])

    assert (chat["stop"], chat["verbose"]) == (["x"], True)
    assert {"stop", "verbose"}.isdisjoint(_chat())


@pytest.mark.parametrize(
    ("request_fields", "words"),
    [
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"output_config": {"effort": "xhigh"}}, {"reasoning_effort": "high"}),
        ({"chat_template_kwargs": {"a": 1}}, {"a": 1}),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"a": 1}},
            {"enable_thinking": False, "a": 1},
        ),
    ],
)
def test_thinking_is_told_in_the_templates_words(
    request_fields: dict[str, Any], words: dict[str, Any]
) -> None:
    """llama-server has no other switch for most templates."""
    assert _chat(**request_fields)["chat_template_kwargs"] == words


def test_thinking_has_its_budget() -> None:
    """One that is not given is llama-server's own."""
    given = _chat(thinking={"type": "enabled", "budget_tokens": 0})
    default = _chat(thinking={"type": "enabled"})

    assert given["thinking_budget_tokens"] == 0
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
        {"type": "image", "source": {"type": "file", "file_id": "f"}},
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


def test_results_and_text_of_a_message_are_parted_in_order() -> None:
    """Templates look for results right behind the calls; Claude Code sends both in one message."""
    results = [{"type": "tool_result", "tool_use_id": id_, "content": "x"} for id_ in "ab"]
    text = {"type": "text", "text": "and?"}

    chat = _chat(messages=[HI, {"role": "user", "content": [results[0], text, results[1]]}])

    told = [(message["role"], message.get("tool_call_id")) for message in chat["messages"]]
    assert told == [("user", None), ("tool", "a"), ("tool", "b"), ("user", None)]


@pytest.mark.parametrize("content", ["It is", [{"type": "text", "text": "It is"}]])
def test_last_text_of_the_assistant_is_gone_on_with(content: object) -> None:
    """So that the answer does not repeat it."""
    chat = _chat(messages=[HI, {"role": "assistant", "content": content}])

    assert (chat["continue_final_message"], chat["add_generation_prompt"]) == (True, False)
    assert chat["messages"][-1] == {"role": "assistant", "content": content}


NOTHING: list[Any] = ["", None, [], [{"type": "text", "text": ""}]]


@pytest.mark.parametrize("content", NOTHING)
def test_last_turn_of_the_assistant_without_a_word_is_left_out(content: object) -> None:
    """It would be gone on with where no turn begins; the model wrote "assistant" itself."""
    assert _chat(messages=[HI, {"role": "assistant", "content": content}]) == _chat()
    assert _chat(messages=[HI, {"role": "assistant"}]) == _chat()


@pytest.mark.parametrize("content", ["", None])
def test_turn_of_the_assistant_without_a_word_stays_in_the_midst(content: object) -> None:
    """Templates want turns by turns."""
    chat = _chat(messages=[HI, {"role": "assistant", "content": content}, HI])

    assert chat["messages"] == [HI, {"role": "assistant", "content": ""}, HI]


@pytest.mark.parametrize(
    ("choice", "members"),
    [
        (None, {}),
        ({"type": "auto"}, {}),
        ({"type": "any"}, {"tool_choice": "required"}),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"parallel_tool_calls": False},
        ),
        (
            {"type": "any", "disable_parallel_tool_use": False},
            {"tool_choice": "required"},
        ),
    ],
)
def test_tools_go_along_with_the_choice_of_them(choice: Any, members: dict[str, Any]) -> None:
    """In a chat's words."""
    function = {"name": "f", "description": "Does.", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function}]

    assert _chat(tools=[TOOL], tool_choice=choice) == {**_chat(), "tools": tools, **members}


def test_choice_of_no_tool_takes_the_tools_away() -> None:
    """llama-server takes it for "auto"."""
    assert _chat(tools=[TOOL], tool_choice={"type": "none"}) == _chat()


def test_choice_of_a_tool_leaves_it_alone() -> None:
    """llama-server requires some tool, not this one."""
    chat = _chat(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice={"type": "tool", "name": "g"})

    assert [tool["function"]["name"] for tool in chat["tools"]] == ["g"]
    assert chat["tool_choice"] == "required"


def test_tool_without_a_schema_takes_anything() -> None:
    """Those that Anthropic runs have none."""
    tool = _chat(tools=[{"type": "web_search_20250305", "name": "web_search"}])["tools"][0]

    assert tool["function"] == {"name": "web_search", "description": "", "parameters": {}}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "f"}])
def test_format_does_not_stand_in_the_way_of_a_call_that_must_come(choice: Any) -> None:
    """With a schema the model could not call; with a call there is no text to be formed."""
    request = {"tools": [TOOL], "tool_choice": choice}

    assert _chat(**request, output_config={"format": FORMAT}) == _chat(**request)


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
            {
                "messages": [HI, {"role": "assistant", "content": "{"}],
                "output_config": {"format": FORMAT},
            },
            "output_config.format: the last message cannot be the assistant's",
        ),
        (
            {"messages": [HI, {"role": "assistant", "content": "{"}], "output_format": FORMAT},
            "output_config.format: the last message cannot be the assistant's",
        ),
    ],
)
def test_format_that_cannot_be_had_is_refused(request_fields: dict[str, Any], text: str) -> None:
    """A client that asks for JSON of a form must not be given anything else."""
    with pytest.raises(RequestError) as caught:
        _instead(**request_fields)

    assert str(caught.value) == text
