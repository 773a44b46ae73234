"""``llama-index-llms-ollama`` and ``llama-index-embeddings-ollama``."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import ollama
import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ThinkingBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.llms.ollama import Ollama

from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_ARGUMENTS,
    CITY_JSON,
    CITY_QUESTION,
    DIMENSIONS,
    EMBEDDER,
    ENDLESS,
    ENDLESS_TOKENS,
    MODEL,
    QUESTION,
    RESULT,
    THINKER,
    WEATHER_QUESTION,
    City,
    assert_becomes_idle,
    in_flight,
)
from tests.running import RunningKvsup
from tests.tiny import AFTER_CALLS, AFTER_THOUGHT, THOUGHT

TRAINED_CONTEXT = 8192
"""Of the demo model; the package asks for all of it with each request."""


Make = Callable[..., Ollama]


@pytest.fixture
def make_llm(kvsup: RunningKvsup) -> Iterator[Make]:
    """Return a function that makes a model; their connections are closed at the end."""
    made: list[Ollama] = []

    def make(model: str = MODEL, n_tokens: int = 12, **settings: Any) -> Ollama:
        extra = {"num_predict": n_tokens}
        settings = {"context_window": 2048, **settings}
        made.append(Ollama(model, base_url=kvsup.url, additional_kwargs=extra, **settings))
        return made[-1]

    yield make
    for llm in made:
        llm.client.close()


def _get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"{RESULT} in {city}"


def test_context_window_is_read_from_show(make_llm: Make) -> None:
    """The first key with ``context_length`` in it is that of the model."""
    assert make_llm(context_window=-1).get_context_window() == TRAINED_CONTEXT


def test_whole_trained_context_asked_for_is_served_by_one_load(
    kvsup: RunningKvsup, make_llm: Make
) -> None:
    """By its defaults it sends ``num_ctx`` of the whole trained context every time."""
    llm = make_llm(CITY_JSON, n_tokens=8, context_window=-1)

    answers = [(llm.complete(QUESTION).text, kvsup.models()[CITY_JSON]["pid"]) for _ in range(2)]

    assert answers[0] == answers[1]
    assert llm.context_window == 4096
    running = {model.model: model.context_length for model in llm.client.ps().models}
    assert running[f"{CITY_JSON}:latest"] == 4096


def test_chat_answers_with_counts(make_llm: Make) -> None:
    """A whole answer, and its counts in ``raw``."""
    answer = make_llm().chat([ChatMessage(role=MessageRole.USER, content=QUESTION)])

    assert answer.message.content
    assert answer.raw["usage"]["completion_tokens"] == 12
    assert answer.raw["done_reason"] == "length"


def test_stream_gives_the_text_of_the_whole(make_llm: Make) -> None:
    """The deltas make the same text."""
    llm = make_llm(temperature=0.0)
    messages = [ChatMessage(role=MessageRole.USER, content=QUESTION)]
    whole = llm.chat(messages).message.content

    deltas = [piece.delta or "" for piece in llm.stream_chat(messages)]

    assert "".join(deltas) == whole


async def test_asynchronous_calls_answer_alike(make_llm: Make) -> None:
    """``achat`` and ``astream_chat`` give one text."""
    llm = make_llm(temperature=0.0)
    messages = [ChatMessage(role=MessageRole.USER, content=QUESTION)]

    whole = (await llm.achat(messages)).message.content
    deltas = [piece.delta or "" async for piece in await llm.astream_chat(messages)]
    await llm.async_client.close()

    assert "".join(deltas) == whole


def test_structured_output_is_an_object_of_the_schema(make_llm: Make) -> None:
    """``structured_predict`` sends the schema as ``format``."""
    llm = make_llm(n_tokens=64)

    city = llm.structured_predict(City, PromptTemplate(CITY_QUESTION))

    assert isinstance(city, City)


def test_tool_call_and_its_result_make_a_round(make_llm: Make) -> None:
    """Question, call, result, answer."""
    llm = make_llm(CALLER, n_tokens=64)
    tool = FunctionTool.from_defaults(_get_weather, name="get_weather")
    question = ChatMessage(role=MessageRole.USER, content=WEATHER_QUESTION)

    asked = llm.chat_with_tools([tool], chat_history=[question])
    calls = llm.get_tool_calls_from_response(asked)
    result = ChatMessage(
        role=MessageRole.TOOL,
        content=_get_weather(**calls[0].tool_kwargs),
        additional_kwargs={"tool_call_id": calls[0].tool_id},
    )
    told = llm.chat_with_tools([tool], chat_history=[question, asked.message, result])

    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [
        ("get_weather", CITY_ARGUMENTS)
    ]
    assert told.message.content == AFTER_CALLS


@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_stands_apart_from_the_content(
    make_llm: Make,
    thinking: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """``thinking`` becomes ``think``; the thought is a block of its own."""
    llm = make_llm(THINKER, n_tokens=64, thinking=thinking)

    message = llm.chat([ChatMessage(role=MessageRole.USER, content=QUESTION)]).message

    thoughts = [b.content or "" for b in message.blocks if isinstance(b, ThinkingBlock)]
    assert "".join(thoughts).strip() == (THOUGHT if thinking else "")
    assert message.content == AFTER_THOUGHT


def test_json_mode_gives_json(make_llm: Make) -> None:
    """``json_mode`` sends ``format: "json"``."""
    llm = make_llm(n_tokens=200, json_mode=True, temperature=0.0)

    text = llm.complete("Describe the city of Paris as a JSON object with name and country.").text

    assert text.lstrip().startswith("{")
    assert isinstance(json.loads(text), dict)


def test_embeddings_of_texts(kvsup: RunningKvsup) -> None:
    """A vector for each text, the same for the same."""
    embedding = OllamaEmbedding(EMBEDDER, base_url=kvsup.url)

    vectors = embedding.get_text_embedding_batch(["a cat", "a dog"])
    query = embedding.get_query_embedding("a cat")

    embedding._client.close()
    assert [len(vector) for vector in vectors] == [DIMENSIONS] * 2
    assert query == pytest.approx(vectors[0], abs=1e-3)


def test_absent_model_raises_ollamas_response_error(make_llm: Make) -> None:
    """What the ollama package raises comes through."""
    with pytest.raises(ollama.ResponseError, match="not found") as raised:
        make_llm(ABSENT).complete(QUESTION)

    assert raised.value.status_code == 404


def test_leaving_a_stream_frees_the_slot(kvsup: RunningKvsup, make_llm: Make) -> None:
    """Who stops reading is noticed long before the answer would have ended."""
    stream = make_llm(ENDLESS, n_tokens=ENDLESS_TOKENS).stream_chat(
        [ChatMessage(role=MessageRole.USER, content=QUESTION)]
    )
    next(stream)
    busy = in_flight(kvsup)

    stream.close()

    assert busy == 1
    assert_becomes_idle(kvsup)
