"""OpenAI's own Python package: chat, completions, embeddings and models."""

import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from anyio import to_thread
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests import tiny
from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_ARGUMENTS,
    CITY_QUESTION,
    DIMENSIONS,
    EMBEDDER,
    ENDLESS,
    ENDLESS_TOKENS,
    FILL_IN,
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
from tests.tiny import AFTER_CALLS, AFTER_THOUGHT, ANSWER, THOUGHT, TinyModels

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
WEATHER_MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": WEATHER_QUESTION}]
TOOLS: list[ChatCompletionToolParam] = tiny.TOOLS  # type: ignore[assignment]
CITY_MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": CITY_QUESTION}]


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


def test_models_list_and_retrieve_agree(client: openai.OpenAI) -> None:
    """``GET /v1/models`` and ``GET /v1/models/NAME`` describe the same models."""
    listed = {model.id: model for model in client.models.list()}

    one = client.models.retrieve(next(iter(listed)))

    assert listed[one.id] == one
    assert one.object == "model"
    assert one.created > 0
    assert one.owned_by


def test_retrieve_echoes_the_name_that_was_asked(client: openai.OpenAI) -> None:
    """Ollama answers with the name as sent, without a tag that the client did not write."""
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat_answers_with_usage(client: openai.OpenAI) -> None:
    """A whole answer has its text, its reason to end and its counts."""
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=12, temperature=0
    )

    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_chat_ends_at_max_completion_tokens(client: openai.OpenAI) -> None:
    """The newer name of the limit counts too."""
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_completion_tokens=5, temperature=0
    )

    assert answer.usage
    assert answer.usage.completion_tokens == 5


def test_chat_stream_gives_the_text_of_the_whole_and_usage_at_the_end(
    client: openai.OpenAI,
) -> None:
    """One id for all chunks; the last has the counts when they were asked for."""
    whole = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=12, temperature=0
    )

    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[-2].choices[0].finish_reason == "length"


def test_stream_helper_accumulates_the_answer(client: openai.OpenAI) -> None:
    """``chat.completions.stream`` follows the chunks to a whole completion."""
    with client.chat.completions.stream(
        model=MODEL, messages=CITY_MESSAGES, temperature=0, response_format=City
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.choices[0].message.parsed, City)


def test_parse_makes_an_object_of_the_schema(client: openai.OpenAI) -> None:
    """Structured output by ``response_format``."""
    answer = client.chat.completions.parse(
        model=MODEL, messages=CITY_MESSAGES, response_format=City, temperature=0, max_tokens=64
    )

    assert isinstance(answer.choices[0].message.parsed, City)


def test_completions_answer_and_stream_alike(client: openai.OpenAI) -> None:
    """The older call, whole and streamed."""
    whole = client.completions.create(
        model=MODEL, prompt="One, two, three,", max_tokens=8, temperature=0
    )

    chunks = list(
        client.completions.create(
            model=MODEL, prompt="One, two, three,", max_tokens=8, temperature=0, stream=True
        )
    )

    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "length"


def test_embeddings_come_as_base64_and_as_floats(client: openai.OpenAI) -> None:
    """The package asks for base64 by itself; both mean the same vector."""
    by_default = client.embeddings.create(model=EMBEDDER, input=["a cat", "a dog"])
    as_floats = client.embeddings.create(model=EMBEDDER, input="a cat", encoding_format="float")
    as_base64 = client.embeddings.create(model=EMBEDDER, input="a cat", encoding_format="base64")

    raw = base64.b64decode(str(as_base64.data[0].embedding))
    assert [entry.index for entry in by_default.data] == [0, 1]
    assert {len(entry.embedding) for entry in by_default.data} == {DIMENSIONS}
    expected = pytest.approx(as_floats.data[0].embedding, abs=1e-4)
    assert list(struct.unpack(f"<{DIMENSIONS}f", raw)) == expected
    assert by_default.data[0].embedding == expected
    assert by_default.usage.prompt_tokens > 0


def test_embeddings_with_dimensions_are_cut(client: openai.OpenAI) -> None:
    """``dimensions`` shortens the vector, and it keeps the length of one."""
    answer = client.embeddings.create(model=EMBEDDER, input="a cat", dimensions=64)

    vector = answer.data[0].embedding
    assert len(vector) == 64
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-3)


def test_kv_cache_type_is_chosen_by_a_header(kvsup: RunningKvsup, client: openai.OpenAI) -> None:
    """The pair can be asked for beside OpenAI's own members; ``/api/ps`` tells it."""
    headers = {"x-kvsup-kv-cache-type": "q8_0:q5_1"}

    answer = client.chat.completions.create(model=FILL_IN, messages=MESSAGES, extra_headers=headers)

    running = kvsup.client.get("/api/ps").json()["models"]
    assert answer.choices[0].message.content == ANSWER
    assert (f"{FILL_IN}:latest", "q8_0:q5_1") in {
        (model["model"], model["kv_cache_type"]) for model in running
    }


def test_logprobs_tell_each_token_and_its_rivals(client: openai.OpenAI) -> None:
    """As many entries as tokens, each with as many rivals as were asked for."""
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=6, logprobs=True, top_logprobs=2
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs
    assert [len(entry.top_logprobs) for entry in logprobs.content or []] == [2] * 6


def test_missing_model_raises_not_found(client: openai.OpenAI) -> None:
    """The package's own class, with the type and the text that Ollama has."""
    calls = (
        lambda: client.models.retrieve(ABSENT),
        lambda: client.chat.completions.create(model=ABSENT, messages=MESSAGES),
        lambda: client.chat.completions.create(model=ABSENT, messages=MESSAGES, stream=True),
        lambda: client.completions.create(model=ABSENT, prompt="x"),
        lambda: client.embeddings.create(model=ABSENT, input="x"),
    )

    for call in calls:
        with pytest.raises(openai.NotFoundError, match=ABSENT) as raised:
            call()
        assert raised.value.type == "not_found_error"


def test_no_messages_raise_bad_request(client: openai.OpenAI) -> None:
    """An empty conversation is the client's mistake, and is said to be."""
    with pytest.raises(openai.BadRequestError, match="messages") as raised:
        client.chat.completions.create(model=MODEL, messages=[])

    assert raised.value.type == "invalid_request_error"


def test_leaving_a_stream_frees_the_slot(kvsup: RunningKvsup, client: openai.OpenAI) -> None:
    """Who stops reading is noticed long before the answer would have ended."""
    with client.chat.completions.create(
        model=ENDLESS, messages=MESSAGES, max_tokens=ENDLESS_TOKENS, stream=True
    ) as stream:
        next(iter(stream))
        busy = in_flight(kvsup)

    assert busy == 1
    assert_becomes_idle(kvsup)


def test_full_queue_raises_rate_limit(
    start_kvsup: StartKvsup, tiny: TinyModels, smollm2: Path
) -> None:
    """The class after which the package by itself would try again."""
    endless = client_models(tiny, smollm2)[ENDLESS] + "num_parallel = 1\n"
    kvsup = start_kvsup({ENDLESS: endless}, host="max_queue = 0\n")
    call: dict[str, Any] = {"model": ENDLESS, "messages": MESSAGES, "max_tokens": ENDLESS_TOKENS}

    with (
        openai.OpenAI(base_url=f"{kvsup.url}/v1", api_key="none", max_retries=0) as client,
        client.chat.completions.create(**call, stream=True) as stream,
    ):
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="server busy") as raised:
            client.chat.completions.create(**call)

    assert raised.value.type == "rate_limit_error"


def test_tool_call_has_arguments_as_text_and_takes_a_result(client: openai.OpenAI) -> None:
    """A whole round: question, call, result, answer."""
    asked = client.chat.completions.create(
        model=CALLER, messages=WEATHER_MESSAGES, tools=TOOLS
    ).choices[0]
    call = (asked.message.tool_calls or [])[0]
    told = client.chat.completions.create(
        model=CALLER,
        messages=[
            *WEATHER_MESSAGES,
            asked.message,  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": call.id, "content": RESULT},
        ],
        tools=TOOLS,
    ).choices[0]

    assert asked.finish_reason == "tool_calls"
    assert call.type == "function"
    assert call.id
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == CITY_ARGUMENTS
    assert told.message.content == AFTER_CALLS
    assert told.finish_reason == "stop"


def test_tool_calls_are_streamed_to_the_helper(client: openai.OpenAI) -> None:
    """The helper puts the pieces of both calls together."""
    with client.chat.completions.stream(
        model=TWO_CALLS, messages=WEATHER_MESSAGES, tools=TOOLS
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]

    calls = final.message.tool_calls or []
    assert [event.name for event in done] == ["get_weather", "get_time"]
    assert [json.loads(call.function.arguments) for call in calls] == [
        CITY_ARGUMENTS,
        ZONE_ARGUMENTS,
    ]
    assert len({call.id for call in calls}) == 2
    assert final.finish_reason == "tool_calls"


@pytest.mark.parametrize("effort", ["low", "none"])
def test_thinking_stands_apart_from_the_content(client: openai.OpenAI, effort: Any) -> None:
    """``reasoning_effort`` turns it on and off; the key is Ollama's or llama-server's."""
    answer = client.chat.completions.create(
        model=THINKER, messages=MESSAGES, reasoning_effort=effort
    )

    message = answer.choices[0].message
    extra = message.model_extra or {}
    thought = str(extra.get("reasoning") or extra.get("reasoning_content") or "")
    assert thought.strip() == ("" if effort == "none" else THOUGHT)
    assert message.content == AFTER_THOUGHT


async def test_asynchronous_client_lists_chats_and_embeds(
    asynchronous: openai.AsyncOpenAI,
) -> None:
    """The asynchronous client sees what the other sees."""
    listed = [model.id async for model in asynchronous.models.list()]
    answer = await asynchronous.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8
    )
    vectors = await asynchronous.embeddings.create(model=EMBEDDER, input="a cat")

    assert {f"{MODEL}:latest", f"{EMBEDDER}:latest"} <= set(listed)
    assert answer.choices[0].message.content
    assert len(vectors.data[0].embedding) == DIMENSIONS


async def test_asynchronous_client_raises_not_found(asynchronous: openai.AsyncOpenAI) -> None:
    """The same class as from the other client."""
    with pytest.raises(openai.NotFoundError):
        await asynchronous.chat.completions.create(model=ABSENT, messages=MESSAGES)


async def test_leaving_an_asynchronous_stream_frees_the_slot(
    kvsup: RunningKvsup, asynchronous: openai.AsyncOpenAI
) -> None:
    """A closed stream closes its connection."""
    stream = await asynchronous.chat.completions.create(
        model=ENDLESS, messages=MESSAGES, max_tokens=ENDLESS_TOKENS, stream=True
    )
    async with stream:
        await anext(aiter(stream))
        busy = in_flight(kvsup)

    assert busy == 1
    await to_thread.run_sync(assert_becomes_idle, kvsup)
