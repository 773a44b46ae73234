"""The asynchronous client of Ollama's own Python package."""

import contextlib
from collections.abc import AsyncIterator

import ollama
import pytest
from anyio import to_thread

from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_ARGUMENTS,
    DIMENSIONS,
    EMBEDDER,
    ENDLESS,
    ENDLESS_TOKENS,
    MODEL,
    QUESTION,
    WEATHER_QUESTION,
    assert_becomes_idle,
    in_flight,
)
from tests.running import RunningKvsup
from tests.tiny import TOOLS

MESSAGES = [{"role": "user", "content": QUESTION}]
SHORT = {"num_predict": 12}


@pytest.fixture
async def asynchronous(kvsup: RunningKvsup) -> AsyncIterator[ollama.AsyncClient]:
    """Return Ollama's asynchronous client."""
    async with ollama.AsyncClient(host=kvsup.url) as client:
        yield client


async def test_asynchronous_client_lists_shows_and_chats(asynchronous: ollama.AsyncClient) -> None:
    """The asynchronous client sees what the other sees."""
    listed = await asynchronous.list()
    shown = await asynchronous.show(MODEL)
    answer = await asynchronous.chat(MODEL, MESSAGES, options=SHORT)
    running = await asynchronous.ps()

    assert f"{MODEL}:latest" in {model.model for model in listed.models}
    assert shown.capabilities == ["completion"]
    assert answer.eval_count == 12
    assert f"{MODEL}:latest" in {model.model for model in running.models}


async def test_asynchronous_client_embeds_and_streams(asynchronous: ollama.AsyncClient) -> None:
    """Vectors, and a stream with one end."""
    answer = await asynchronous.embed(EMBEDDER, ["a cat", "a dog"])
    stream = await asynchronous.chat(MODEL, MESSAGES, options=SHORT, stream=True)
    pieces = [piece async for piece in stream]

    assert [len(vector) for vector in answer.embeddings] == [DIMENSIONS] * 2
    assert [piece.done for piece in pieces].count(True) == 1


async def test_asynchronous_client_raises_response_error_404(
    asynchronous: ollama.AsyncClient,
) -> None:
    """The same error as from the other client."""
    with pytest.raises(ollama.ResponseError, match="not found") as raised:
        await asynchronous.chat(ABSENT, MESSAGES)

    assert raised.value.status_code == 404


async def test_leaving_an_asynchronous_stream_frees_the_slot(
    kvsup: RunningKvsup, asynchronous: ollama.AsyncClient
) -> None:
    """A closed generator closes its connection."""
    stream = await asynchronous.chat(
        ENDLESS, MESSAGES, options={"num_predict": ENDLESS_TOKENS}, stream=True
    )
    async with contextlib.aclosing(stream):  # type: ignore[type-var]
        await anext(stream)
        busy = in_flight(kvsup)

    assert busy == 1
    await to_thread.run_sync(assert_becomes_idle, kvsup)


async def test_asynchronous_client_streams_a_tool_call(asynchronous: ollama.AsyncClient) -> None:
    """The call comes with its arguments as an object."""
    question = [{"role": "user", "content": WEATHER_QUESTION}]

    stream = await asynchronous.chat(CALLER, question, tools=TOOLS, stream=True)
    calls = [call async for piece in stream for call in piece.message.tool_calls or []]

    assert [call.function.arguments for call in calls] == [CITY_ARGUMENTS]
