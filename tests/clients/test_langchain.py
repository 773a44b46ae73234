"""``langchain-ollama``: the chat model, the plain one and the embeddings."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import ollama
import pytest
from anyio import to_thread
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM

from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_ARGUMENTS,
    CITY_CALLER,
    CITY_QUESTION,
    DIMENSIONS,
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
from tests.running import RunningKvsup
from tests.tiny import AFTER_CALLS, AFTER_THOUGHT, THOUGHT, TOOLS

Chat = Callable[..., ChatOllama]


def _close(client: Any) -> None:
    client.close()


async def _aclose(client: Any) -> None:
    await client.close()


@pytest.fixture
def make_chat(kvsup: RunningKvsup) -> Iterator[Chat]:
    """Return a function that makes a chat model; their connections are closed at the end."""
    made: list[ChatOllama] = []

    def make(model: str = MODEL, **settings: Any) -> ChatOllama:
        made.append(ChatOllama(model=model, base_url=kvsup.url, **settings))
        return made[-1]

    yield make
    for chat in made:
        _close(chat._client)


def test_model_is_found_in_the_list_when_asked_to_validate(make_chat: Chat) -> None:
    """``validate_model_on_init`` looks for the name in ``/api/tags``."""
    assert make_chat(validate_model_on_init=True).model == MODEL


@pytest.mark.filterwarnings("ignore:Exception ignored in")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_absent_model_raises_value_error_when_asked_to_validate(make_chat: Chat) -> None:
    """The package's own error tells to pull it; its connection stays open, and is left to gc."""
    with pytest.raises(ValueError, match="not found"):
        make_chat(ABSENT, validate_model_on_init=True)

    gc.collect()


def test_invoke_answers_with_metadata(make_chat: Chat) -> None:
    """It streams under the hood; counts and reason come from the one last line."""
    answer = make_chat(num_predict=12).invoke(QUESTION)

    assert answer.text
    assert answer.response_metadata["done"] is True
    assert answer.response_metadata["done_reason"] == "length"
    assert answer.usage_metadata
    assert answer.usage_metadata["output_tokens"] == 12
    assert answer.usage_metadata["input_tokens"] > 0


def test_stream_gives_the_text_of_the_whole(make_chat: Chat) -> None:
    """The chunks make the same text, and together the same counts."""
    chat = make_chat(num_predict=12)
    whole = chat.invoke(QUESTION)

    chunks = list(chat.stream(QUESTION))

    assert len(chunks) > 3
    assert "".join(chunk.text for chunk in chunks) == whole.text
    counted = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert counted == [whole.usage_metadata]


def test_plain_model_completes_a_prompt(kvsup: RunningKvsup) -> None:
    """``OllamaLLM`` speaks to ``/api/generate``."""
    llm = OllamaLLM(model=MODEL, base_url=kvsup.url, num_predict=8)

    whole, pieces = llm.invoke(QUESTION), list(llm.stream(QUESTION))

    _close(llm._client)
    assert "".join(pieces) == whole != ""


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_an_object_of_the_schema(make_chat: Chat, method: Any) -> None:
    """By ``format`` with the schema, or by a tool of the schema."""
    chat = make_chat(MODEL if method == "json_schema" else CITY_CALLER, num_predict=64)

    answer = chat.with_structured_output(City, method=method).invoke(CITY_QUESTION)

    assert isinstance(answer, City)


def test_tool_call_and_its_result_make_a_round(make_chat: Chat) -> None:
    """Question, call, result, answer."""
    chat = make_chat(CALLER).bind_tools(TOOLS)

    asked = chat.invoke(WEATHER_QUESTION)
    call = asked.tool_calls[0]
    told = chat.invoke(
        [HumanMessage(WEATHER_QUESTION), asked, ToolMessage(RESULT, tool_call_id=call["id"])]
    )

    assert (call["name"], call["args"]) == ("get_weather", CITY_ARGUMENTS)
    assert told.text == AFTER_CALLS


def test_tool_calls_are_gathered_from_a_stream(make_chat: Chat) -> None:
    """Both calls arrive, in their order."""
    chat = make_chat(TWO_CALLS).bind_tools(TOOLS)

    calls = [call for chunk in chat.stream(WEATHER_QUESTION) for call in chunk.tool_calls]

    assert [call["args"] for call in calls] == [CITY_ARGUMENTS, ZONE_ARGUMENTS]


@pytest.mark.parametrize("reasoning", [True, False])
def test_reasoning_stands_apart_from_the_content(
    make_chat: Chat,
    reasoning: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """``reasoning`` becomes ``think``; the thought comes beside the content."""
    answer = make_chat(THINKER, reasoning=reasoning).invoke(QUESTION)

    thought = answer.additional_kwargs.get("reasoning_content") or ""
    assert thought.strip() == (THOUGHT if reasoning else "")
    assert answer.text == AFTER_THOUGHT


def test_embeddings_of_documents_and_of_a_query(kvsup: RunningKvsup) -> None:
    """A vector for each text, the same for the same."""
    embeddings = OllamaEmbeddings(model=EMBEDDER, base_url=kvsup.url)

    documents = embeddings.embed_documents(["a cat", "a dog"])
    query = embeddings.embed_query("a cat")

    _close(embeddings._client)
    assert [len(vector) for vector in documents] == [DIMENSIONS] * 2
    assert query == pytest.approx(documents[0], abs=1e-3)


def test_absent_model_raises_ollamas_response_error(make_chat: Chat) -> None:
    """What the ollama package raises comes through, from the stream that ``invoke`` uses."""
    with pytest.raises(ollama.ResponseError, match="not found") as raised:
        make_chat(ABSENT).invoke(QUESTION)

    assert raised.value.status_code == 404


async def test_leaving_a_stream_frees_the_slot(kvsup: RunningKvsup, make_chat: Chat) -> None:
    """Who stops reading is noticed long before the answer would have ended."""
    chat = make_chat(ENDLESS, num_predict=ENDLESS_TOKENS)
    stream = chat.astream(QUESTION)
    async with contextlib.aclosing(stream):  # type: ignore[type-var]
        await anext(stream)
        busy = in_flight(kvsup)

    assert busy == 1
    await to_thread.run_sync(assert_becomes_idle, kvsup)
    await _aclose(chat._async_client)
