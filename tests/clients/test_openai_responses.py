"""OpenAI's own Python package on ``/v1/responses``, with the helpers that follow its events."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from tests import tiny
from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_ARGUMENTS,
    CITY_QUESTION,
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
from tests.running import RunningKvsup
from tests.tiny import AFTER_CALLS, AFTER_THOUGHT, THOUGHT

TOOLS: Any = [{"type": "function", "strict": False, **tool["function"]} for tool in tiny.TOOLS]
SEQUENCE = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
"""Kinds of the events of one text answer, each once, before its end."""


@pytest.fixture
def client(kvsup: RunningKvsup) -> Iterator[openai.OpenAI]:
    """Return OpenAI's client."""
    with openai.OpenAI(base_url=f"{kvsup.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def asynchronous(kvsup: RunningKvsup) -> AsyncIterator[openai.AsyncOpenAI]:
    """Return OpenAI's asynchronous client."""
    async with openai.AsyncOpenAI(
        base_url=f"{kvsup.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def test_response_has_text_and_usage(client: openai.OpenAI) -> None:
    """A whole response is completed and counts its tokens."""
    response = client.responses.create(
        model=MODEL, input="Say hello.", temperature=0, max_output_tokens=64
    )

    assert response.object == "response"
    assert response.model == MODEL
    assert response.status == "completed"
    assert response.output_text
    assert response.usage
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_response_that_was_cut_says_that_it_is_incomplete(client: openai.OpenAI) -> None:
    """OpenAI's contract names the limit as the reason."""
    response = client.responses.create(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=16
    )

    assert response.status == "incomplete"
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage
    assert response.usage.output_tokens == 16


def test_response_stream_numbers_its_events_in_openais_order(client: openai.OpenAI) -> None:
    """Each kind in its place, ``sequence_number`` rising by one from 0."""
    with client.responses.create(
        model=MODEL, input="Say hello.", temperature=0, max_output_tokens=64, stream=True
    ) as stream:
        events = list(stream)

    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [*SEQUENCE, "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_stream_helper_follows_the_events_to_a_whole_response(client: openai.OpenAI) -> None:
    """``responses.stream`` needs indexes and the ``output`` of ``response.created``."""
    with client.responses.stream(
        model=MODEL, input="Say hello.", temperature=0, max_output_tokens=64
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()

    assert final.output_text == "".join(deltas)
    assert final.output_text


def test_parse_makes_an_object_of_the_schema(client: openai.OpenAI) -> None:
    """Structured output by ``text.format``."""
    response = client.responses.parse(
        model=MODEL, input=CITY_QUESTION, text_format=City, temperature=0, max_output_tokens=64
    )

    assert isinstance(response.output_parsed, City)


def test_instructions_and_items_reach_the_model(client: openai.OpenAI) -> None:
    """A list of messages with instructions is a longer prompt than the one text."""
    short = client.responses.create(model=MODEL, input="Hello", max_output_tokens=16)
    long = client.responses.create(
        model=MODEL,
        instructions="Answer in one word, and that word shall be polite.",
        input=[
            {"role": "user", "content": "Good morning"},
            {"role": "assistant", "content": "Good morning to you"},
            {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        ],
        max_output_tokens=16,
    )

    assert short.usage
    assert long.usage
    assert long.usage.input_tokens > short.usage.input_tokens


def test_missing_model_raises_not_found(client: openai.OpenAI) -> None:
    """Whole and streamed alike."""
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match=ABSENT):
            client.responses.create(model=ABSENT, input="x", stream=stream)


def test_leaving_a_stream_frees_the_slot(kvsup: RunningKvsup, client: openai.OpenAI) -> None:
    """Who stops reading is noticed long before the answer would have ended."""
    with client.responses.create(
        model=ENDLESS, input=QUESTION, max_output_tokens=ENDLESS_TOKENS, stream=True
    ) as stream:
        next(event for event in stream if event.type == "response.output_text.delta")
        busy = in_flight(kvsup)

    assert busy == 1
    assert_becomes_idle(kvsup)


def test_function_call_and_its_output_make_a_round(client: openai.OpenAI) -> None:
    """Question, call, output, answer, all as items of the input."""
    asked = client.responses.create(model=CALLER, input=WEATHER_QUESTION, tools=TOOLS)
    calls = [item for item in asked.output if item.type == "function_call"]
    told = client.responses.create(
        model=CALLER,
        input=[
            {"role": "user", "content": WEATHER_QUESTION},
            *(item.to_dict() for item in asked.output),  # type: ignore[list-item]
            {"type": "function_call_output", "call_id": calls[0].call_id, "output": RESULT},
        ],
        tools=TOOLS,
    )

    assert [call.name for call in calls] == ["get_weather"]
    assert json.loads(calls[0].arguments) == CITY_ARGUMENTS
    assert told.output_text == AFTER_CALLS


def test_function_calls_are_streamed_to_the_helper(client: openai.OpenAI) -> None:
    """Each call has its own place in the output, and its arguments' events name it."""
    with client.responses.stream(model=TWO_CALLS, input=WEATHER_QUESTION, tools=TOOLS) as stream:
        done = [e for e in stream if e.type == "response.function_call_arguments.done"]
        final = stream.get_final_response()

    calls = [item for item in final.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["get_weather", "get_time"]
    assert [json.loads(call.arguments) for call in calls] == [CITY_ARGUMENTS, ZONE_ARGUMENTS]
    assert [final.output[event.output_index] for event in done] == calls


def test_thinking_is_an_item_of_its_own(client: openai.OpenAI) -> None:
    """The thought is a reasoning item, apart from the message."""
    response = client.responses.create(model=THINKER, input=QUESTION)

    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert THOUGHT in response.output[0].to_json()
    assert response.output_text == AFTER_THOUGHT


async def test_asynchronous_stream_helper_gives_the_whole_response(
    asynchronous: openai.AsyncOpenAI,
) -> None:
    """The asynchronous helper follows the same events."""
    async with asynchronous.responses.stream(
        model=MODEL, input="Say hello.", temperature=0, max_output_tokens=64
    ) as stream:
        final = await stream.get_final_response()

    assert final.output_text
    assert final.status == "completed"
