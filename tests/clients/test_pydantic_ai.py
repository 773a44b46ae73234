"""``pydantic-ai``: its OpenAI models on ``/v1``, and its Ollama model."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from anyio import to_thread
from pydantic_ai import Agent, Embedder, ModelHTTPError, NativeOutput, ThinkingPart, ToolOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models import Model
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_QUESTION,
    DIMENSIONS,
    EMBEDDER,
    ENDLESS,
    ENDLESS_TOKENS,
    FINAL_RESULT,
    MODEL,
    PARIS,
    QUESTION,
    THINKER,
    WEATHER_QUESTION,
    City,
    assert_becomes_idle,
    in_flight,
)
from tests.running import RunningKvsup
from tests.tiny import AFTER_CALLS, AFTER_THOUGHT, THOUGHT

SHORT = ModelSettings(max_tokens=16, temperature=0)
Make = Callable[[str], Model]


@pytest.fixture
async def client(kvsup: RunningKvsup) -> AsyncIterator[openai.AsyncOpenAI]:
    """Return the client that all its models use."""
    async with openai.AsyncOpenAI(
        base_url=f"{kvsup.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture(params=["openai", "responses", "ollama"])
async def make_model(request: pytest.FixtureRequest, client: openai.AsyncOpenAI) -> Make:
    """Return a function that makes a model of each kind by name."""
    makes: dict[str, Make] = {
        "openai": lambda name: OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client)),
        "responses": lambda name: OpenAIResponsesModel(
            name, provider=OpenAIProvider(openai_client=client)
        ),
        "ollama": lambda name: OllamaModel(name, provider=OllamaProvider(openai_client=client)),
    }
    return makes[request.param]


async def test_run_answers_with_usage(make_model: Make) -> None:
    """It sends only ``max_completion_tokens``, and that counts."""
    result = await Agent(make_model(MODEL)).run(QUESTION, model_settings=SHORT)

    assert result.output
    assert result.usage.output_tokens == 16
    assert result.usage.input_tokens > 0


async def test_stream_gives_the_text_of_the_whole(make_model: Make) -> None:
    """The pieces make the same text, and the counts come at the end."""
    agent = Agent(make_model(MODEL))
    whole = await agent.run(QUESTION, model_settings=SHORT)

    async with agent.run_stream(QUESTION, model_settings=SHORT) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]

    assert "".join(pieces) == whole.output
    assert stream.usage.output_tokens == 16


async def test_native_output_is_an_object_of_the_schema(make_model: Make) -> None:
    """By the schema as ``response_format`` or ``text.format``."""
    agent = Agent(make_model(MODEL), output_type=NativeOutput(City))

    result = await agent.run(CITY_QUESTION, model_settings={"max_tokens": 64, "temperature": 0})

    assert isinstance(result.output, City)


async def test_tool_output_is_an_object_of_the_schema(make_model: Make) -> None:
    """By a tool that the model must call."""
    agent = Agent(make_model(FINAL_RESULT), output_type=ToolOutput(City))

    result = await agent.run(CITY_QUESTION)

    assert result.output == PARIS


async def test_tool_is_called_and_its_result_answered(make_model: Make) -> None:
    """The whole chain: call, run, result, answer."""
    agent = Agent(make_model(CALLER))
    asked: list[str] = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Tell the weather in a city."""
        asked.append(city)
        return "18 degrees"

    result = await agent.run(WEATHER_QUESTION)

    assert asked == ["Paris"]
    assert result.output == AFTER_CALLS


async def test_tool_is_called_in_a_stream(make_model: Make) -> None:
    """The same chain, followed event by event."""
    agent = Agent(make_model(CALLER))
    asked: list[str] = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Tell the weather in a city."""
        asked.append(city)
        return "18 degrees"

    async with agent.run_stream(WEATHER_QUESTION) as stream:
        output: Any = await stream.get_output()

    assert asked == ["Paris"]
    assert output == AFTER_CALLS


async def test_thinking_is_a_part_of_its_own(make_model: Make) -> None:
    """The thought is a part before the text."""
    result = await Agent(make_model(THINKER)).run(QUESTION)

    parts = result.response.parts
    thoughts = [part.content for part in parts if isinstance(part, ThinkingPart)]
    assert [thought.strip() for thought in thoughts] == [THOUGHT]
    assert result.output == AFTER_THOUGHT


async def test_absent_model_raises_model_http_error_404(make_model: Make) -> None:
    """Its own class, with the status."""
    with pytest.raises(ModelHTTPError, match=ABSENT) as raised:
        await Agent(make_model(ABSENT)).run(QUESTION)

    assert raised.value.status_code == 404


async def test_leaving_a_stream_frees_the_slot(kvsup: RunningKvsup, make_model: Make) -> None:
    """Who stops reading is noticed long before the answer would have ended."""
    settings = ModelSettings(max_tokens=ENDLESS_TOKENS)
    async with Agent(make_model(ENDLESS)).run_stream(QUESTION, model_settings=settings) as stream:
        await anext(aiter(stream.stream_text(delta=True, debounce_by=None)))
        busy = in_flight(kvsup)
        await stream.cancel()

    assert busy == 1
    await to_thread.run_sync(assert_becomes_idle, kvsup)


async def test_embedder_gives_vectors(client: openai.AsyncOpenAI) -> None:
    """Its embedding model speaks to ``/v1/embeddings``."""
    model = OpenAIEmbeddingModel(EMBEDDER, provider=OpenAIProvider(openai_client=client))

    result = await Embedder(model).embed_documents(["a cat", "a dog"])

    assert [len(vector) for vector in result.embeddings] == [DIMENSIONS] * 2
