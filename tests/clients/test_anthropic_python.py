"""Anthropic's own Python package on ``/v1/messages``."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam
from anyio import to_thread

from tests import tiny
from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_ARGUMENTS,
    CITY_QUESTION,
    EMBEDDER,
    ENDLESS,
    ENDLESS_TOKENS,
    MODEL,
    QUESTION,
    RESULT,
    THINKER,
    TWO_CALLS,
    WEATHER_QUESTION,
    ZONE_ARGUMENTS,
    City,
    assert_becomes_idle,
    in_flight,
)
from tests.clients.models import client_models
from tests.conftest import StartKvsup
from tests.running import RunningKvsup
from tests.tiny import AFTER_CALLS, AFTER_THOUGHT, THOUGHT, TinyModels

MESSAGES: list[MessageParam] = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {
    "model": MODEL,
    "messages": MESSAGES,
    "max_tokens": 12,
    "extra_body": {"temperature": 0},
}
WEATHER_MESSAGES: list[MessageParam] = [{"role": "user", "content": WEATHER_QUESTION}]
TOOLS: list[ToolParam] = [
    {
        "name": tool["function"]["name"],
        "description": tool["function"]["description"],
        "input_schema": tool["function"]["parameters"],
    }
    for tool in tiny.TOOLS
]
ENDLESS_CALL: dict[str, Any] = {
    "model": ENDLESS,
    "messages": MESSAGES,
    "max_tokens": ENDLESS_TOKENS,
}


@pytest.fixture
def client(kvsup: RunningKvsup) -> Iterator[anthropic.Anthropic]:
    """Return Anthropic's client."""
    with anthropic.Anthropic(base_url=kvsup.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def asynchronous(kvsup: RunningKvsup) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Return Anthropic's asynchronous client."""
    async with anthropic.AsyncAnthropic(
        base_url=kvsup.url, api_key="none", max_retries=0
    ) as client:
        yield client


def test_models_list_names_each_model(client: anthropic.Anthropic) -> None:
    """The package reads the list that OpenAI's clients read."""
    assert {f"{MODEL}:latest", f"{EMBEDDER}:latest"} <= {model.id for model in client.models.list()}


def test_message_has_text_stop_reason_and_usage(client: anthropic.Anthropic) -> None:
    """A whole message, cut by its limit."""
    message = client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=12)

    assert message.type == "message"
    assert message.role == "assistant"
    assert message.model == MODEL
    assert [block.type for block in message.content] == ["text"]
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 12


def test_system_and_blocks_reach_the_model(client: anthropic.Anthropic) -> None:
    """A system text and content in blocks make a longer prompt; both forms are read."""
    short = client.messages.count_tokens(model=MODEL, messages=MESSAGES)
    long = client.messages.count_tokens(
        model=MODEL,
        system=[{"type": "text", "text": "Answer in one word, and that word shall be polite."}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Good morning"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Good morning to you"}]},
            {"role": "user", "content": QUESTION},
        ],
    )

    assert 0 < short.input_tokens < long.input_tokens


def test_counted_tokens_are_those_that_a_message_uses(client: anthropic.Anthropic) -> None:
    """What was cached of the prompt is named apart, and is not lost."""
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens
    client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=1)

    usage = client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=1).usage

    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted


def test_stream_helper_gives_the_text_of_the_whole(client: anthropic.Anthropic) -> None:
    """The helper follows the events in Anthropic's order to the same message."""
    whole = client.messages.create(**GREEDY)

    with client.messages.stream(**GREEDY) as stream:
        kinds = list(dict.fromkeys(event.type for event in stream))
        final = stream.get_final_message()

    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "text",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [block.to_dict()["text"] for block in final.content] == [
        block.to_dict()["text"] for block in whole.content
    ]
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 12


def test_parse_makes_an_object_of_the_schema(client: anthropic.Anthropic) -> None:
    """Structured output by ``output_config.format``."""
    message = client.messages.parse(
        model=MODEL,
        messages=[{"role": "user", "content": CITY_QUESTION}],
        max_tokens=64,
        output_format=City,
    )

    assert isinstance(message.parsed_output, City)


def test_beta_client_is_answered_alike(client: anthropic.Anthropic) -> None:
    """It posts to the same path with ``?beta=true``."""
    message = client.beta.messages.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=8
    )

    assert message.usage.output_tokens == 8


def test_missing_model_raises_not_found_in_anthropics_shape(client: anthropic.Anthropic) -> None:
    """The package's own class, from an error object of Anthropic's form."""
    calls = (
        lambda: client.messages.create(model=ABSENT, messages=MESSAGES, max_tokens=8),
        lambda: client.messages.create(model=ABSENT, messages=MESSAGES, max_tokens=8, stream=True),
        lambda: client.messages.count_tokens(model=ABSENT, messages=MESSAGES),
    )

    for call in calls:
        with pytest.raises(anthropic.NotFoundError, match=ABSENT) as raised:
            call()
        assert isinstance(raised.value.body, dict)
        assert raised.value.body["type"] == "error"
        assert raised.value.body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"max_tokens": 0},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
    ],
)
def test_wrong_request_raises_bad_request_in_anthropics_shape(
    client: anthropic.Anthropic, wrong: dict[str, Any]
) -> None:
    """What the client did wrong is said in Anthropic's form."""
    arguments: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, **wrong}

    with pytest.raises(anthropic.BadRequestError) as raised:
        client.messages.create(**arguments)

    assert isinstance(raised.value.body, dict)
    assert raised.value.body["type"] == "error"
    assert raised.value.body["error"]["type"] == "invalid_request_error"


def test_leaving_a_stream_frees_the_slot(kvsup: RunningKvsup, client: anthropic.Anthropic) -> None:
    """Who stops reading is noticed long before the answer would have ended."""
    with client.messages.stream(**ENDLESS_CALL) as stream:
        next(iter(stream.text_stream))
        busy = in_flight(kvsup)

    assert busy == 1
    assert_becomes_idle(kvsup)


def test_full_queue_raises_overloaded(
    start_kvsup: StartKvsup, tiny: TinyModels, smollm2: Path
) -> None:
    """The class after which the package by itself would try again."""
    endless = client_models(tiny, smollm2)[ENDLESS] + "num_parallel = 1\n"
    kvsup = start_kvsup({ENDLESS: endless}, host="max_queue = 0\n")

    with (
        anthropic.Anthropic(base_url=kvsup.url, api_key="none", max_retries=0) as client,
        client.messages.stream(**ENDLESS_CALL) as stream,
    ):
        next(iter(stream.text_stream))
        with pytest.raises(anthropic.OverloadedError, match="server busy") as raised:
            client.messages.create(**ENDLESS_CALL)

    assert raised.value.type == "overloaded_error"


def test_options_of_the_model_hold_where_the_request_has_none(
    client: anthropic.Anthropic,
) -> None:
    """The package has no temperature any more; the model's own makes every answer the same."""
    answers = [
        client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=12).to_dict()["content"]
        for _ in range(2)
    ]

    assert answers[0] == answers[1]
    assert answers[0] == client.messages.create(**GREEDY).to_dict()["content"]


def test_tool_use_and_its_result_make_a_round(client: anthropic.Anthropic) -> None:
    """Question, call, result, answer, all in blocks."""
    asked = client.messages.create(
        model=CALLER, messages=WEATHER_MESSAGES, max_tokens=64, tools=TOOLS
    )
    uses = [block for block in asked.content if block.type == "tool_use"]
    told = client.messages.create(
        model=CALLER,
        max_tokens=64,
        messages=[
            *WEATHER_MESSAGES,
            {"role": "assistant", "content": asked.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": uses[0].id, "content": RESULT}],
            },
        ],
        tools=TOOLS,
    )

    assert asked.stop_reason == "tool_use"
    assert [(use.name, use.input) for use in uses] == [("get_weather", CITY_ARGUMENTS)]
    assert [block.to_dict()["text"] for block in told.content] == [AFTER_CALLS]
    assert told.stop_reason == "end_turn"


def test_tool_uses_are_streamed_to_the_helper(client: anthropic.Anthropic) -> None:
    """Each use is a block; its start has an ``input``, which the deltas then fill."""
    with client.messages.stream(
        model=TWO_CALLS, messages=WEATHER_MESSAGES, max_tokens=64, tools=TOOLS
    ) as stream:
        starts = [
            event.content_block.to_dict() for event in stream if event.type == "content_block_start"
        ]
        final = stream.get_final_message()

    uses = [block for block in final.content if block.type == "tool_use"]
    assert [start.get("input") for start in starts if start["type"] == "tool_use"] == [{}, {}]
    assert [(use.name, use.input) for use in uses] == [
        ("get_weather", CITY_ARGUMENTS),
        ("get_time", ZONE_ARGUMENTS),
    ]
    assert final.stop_reason == "tool_use"


@pytest.mark.parametrize("kind", ["enabled", "disabled"])
def test_thinking_is_a_block_of_its_own(client: anthropic.Anthropic, kind: str) -> None:
    """``thinking`` turns it on and off; the block comes before the text."""
    thinking: Any = {"type": kind, **({"budget_tokens": 1024} if kind == "enabled" else {})}

    with client.messages.stream(
        model=THINKER, messages=MESSAGES, max_tokens=2048, thinking=thinking
    ) as stream:
        content = [block.to_dict() for block in stream.get_final_message().content]

    thoughts = [str(block["thinking"]).strip() for block in content if block["type"] == "thinking"]
    assert thoughts == ([THOUGHT] if kind == "enabled" else [])
    assert [block["text"] for block in content if block["type"] == "text"] == [AFTER_THOUGHT]


def test_thinking_asked_of_a_model_without_it_is_let_be(client: anthropic.Anthropic) -> None:
    """As Ollama does on this route: no error."""
    message = client.messages.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=1025,
        stop_sequences=[" "],
        thinking={"type": "enabled", "budget_tokens": 1024},
    )

    assert [block.type for block in message.content] == ["text"]


async def test_asynchronous_client_answers_streams_and_counts(
    asynchronous: anthropic.AsyncAnthropic,
) -> None:
    """The asynchronous client sees what the other sees."""
    message = await asynchronous.messages.create(**GREEDY)
    counted = await asynchronous.messages.count_tokens(model=MODEL, messages=MESSAGES)
    async with asynchronous.messages.stream(**GREEDY) as stream:
        text = await stream.get_final_text()

    assert [block.to_dict()["text"] for block in message.content] == [text]
    assert counted.input_tokens > 0


async def test_leaving_an_asynchronous_stream_frees_the_slot(
    kvsup: RunningKvsup, asynchronous: anthropic.AsyncAnthropic
) -> None:
    """A closed stream closes its connection."""
    async with asynchronous.messages.stream(**ENDLESS_CALL) as stream:
        await anext(aiter(stream.text_stream))
        busy = in_flight(kvsup)

    assert busy == 1
    await to_thread.run_sync(assert_becomes_idle, kvsup)
