"""``litellm``: its two Ollama providers, and the OpenAI and Anthropic ones on ``/v1``."""

import contextlib
import gc
import json
from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from anyio import to_thread
from litellm.exceptions import NotFoundError

from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_ARGUMENTS,
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

pytestmark = [
    pytest.mark.filterwarnings("ignore:Item:UserWarning"),  # TypedDicts of its own, to pydantic
    pytest.mark.filterwarnings("ignore:Exception ignored in"),  # its clients live as long as it
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

MESSAGES = [{"role": "user", "content": QUESTION}]
WEATHER_MESSAGES = [{"role": "user", "content": WEATHER_QUESTION}]
PROVIDERS = ("ollama", "ollama_chat", "openai", "anthropic")
WITH_TOOLS = ("ollama_chat", "openai", "anthropic")
"""``ollama`` speaks to ``/api/generate``, where tools are words of the prompt."""


@pytest.fixture(scope="module", autouse=True)
def _forgotten_clients() -> Iterator[None]:
    """Let go of its clients where their open connections are forgiven: here."""
    yield
    cache: Any = litellm.in_memory_llm_clients_cache
    cache.flush_cache()
    gc.collect()


def _arguments(kvsup: RunningKvsup, provider: str, model: str = MODEL) -> dict[str, Any]:
    path = "/v1" if provider == "openai" else ""
    return {
        "model": f"{provider}/{model}",
        "messages": MESSAGES,
        "api_base": kvsup.url + path,
        "api_key": "none",
        "temperature": 0,
        "max_tokens": 12,
        "num_retries": 0,
    }


def test_valid_models_are_those_of_the_list(kvsup: RunningKvsup) -> None:
    """It asks ``/api/tags`` for what is there."""
    models = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="ollama", api_base=kvsup.url
    )

    assert {f"ollama/{MODEL}:latest", f"ollama/{EMBEDDER}:latest"} <= set(models)


def test_model_info_is_read_from_show(kvsup: RunningKvsup) -> None:
    """It posts ``{"name": …}``, and reads the context and the word "tools" in the template."""
    small = litellm.get_model_info(f"ollama_chat/{MODEL}", api_base=kvsup.url)
    caller = litellm.get_model_info(f"ollama_chat/{CALLER}", api_base=kvsup.url)

    assert small["max_input_tokens"] == 8192
    assert small["supports_function_calling"] is False
    assert caller["supports_function_calling"] is True


@pytest.mark.parametrize("provider", PROVIDERS)
def test_completion_and_its_stream_give_one_text(kvsup: RunningKvsup, provider: str) -> None:
    """Whole and streamed, with the reason of the limit and the counts."""
    arguments = _arguments(kvsup, provider)
    whole = litellm.completion(**arguments)

    chunks = list(litellm.completion(**arguments, stream=True))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content != ""
    assert whole.usage.completion_tokens == 12
    assert whole.usage.prompt_tokens > 0


@pytest.mark.parametrize("provider", ["ollama", "ollama_chat", "openai"])
def test_structured_output_is_an_object_of_the_schema(kvsup: RunningKvsup, provider: str) -> None:
    """``response_format`` becomes ``format``, or goes on as it is."""
    arguments = {
        **_arguments(kvsup, provider),
        "messages": [{"role": "user", "content": CITY_QUESTION}],
        "max_tokens": 64,
    }

    answer = litellm.completion(**arguments, response_format=City)

    assert City.model_validate_json(answer.choices[0].message.content).name


@pytest.mark.parametrize("provider", WITH_TOOLS)
def test_tool_call_and_its_result_make_a_round(kvsup: RunningKvsup, provider: str) -> None:
    """Question, call, result, answer."""
    arguments = {**_arguments(kvsup, provider, CALLER), "tools": TOOLS, "max_tokens": 64}

    asked = litellm.completion(**{**arguments, "messages": WEATHER_MESSAGES}).choices[0]
    call = asked.message.tool_calls[0]
    messages = [
        *WEATHER_MESSAGES,
        asked.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": RESULT},
    ]
    told = litellm.completion(**{**arguments, "messages": messages}).choices[0]

    assert asked.finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == CITY_ARGUMENTS
    assert told.message.content == AFTER_CALLS


@pytest.mark.parametrize("provider", WITH_TOOLS)
def test_tool_calls_are_gathered_from_a_stream(kvsup: RunningKvsup, provider: str) -> None:
    """Its own builder puts the pieces of both calls together."""
    arguments = {**_arguments(kvsup, provider, TWO_CALLS), "tools": TOOLS, "max_tokens": 64}
    arguments["messages"] = WEATHER_MESSAGES

    chunks = list(litellm.completion(**arguments, stream=True))
    built: Any = litellm.stream_chunk_builder(chunks, messages=WEATHER_MESSAGES)

    calls = built.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [
        CITY_ARGUMENTS,
        ZONE_ARGUMENTS,
    ]


@pytest.mark.parametrize("provider", ["ollama_chat", "openai"])
def test_reasoning_stands_apart_from_the_content(kvsup: RunningKvsup, provider: str) -> None:
    """The thought comes as ``reasoning_content``."""
    arguments = {**_arguments(kvsup, provider, THINKER), "max_tokens": 64}

    message = (
        litellm.completion(
            **arguments, reasoning_effort="low", allowed_openai_params=["reasoning_effort"]
        )
        .choices[0]
        .message
    )

    assert message.reasoning_content.strip() == THOUGHT
    assert message.content == AFTER_THOUGHT


@pytest.mark.parametrize("provider", ["ollama", "openai"])
def test_embeddings_of_texts(kvsup: RunningKvsup, provider: str) -> None:
    """A vector for each text, and the count of the tokens."""
    arguments = _arguments(kvsup, provider, EMBEDDER)
    kept = {key: arguments[key] for key in ("model", "api_base", "api_key")}

    answer = litellm.embedding(**kept, input=["a cat", "a dog"])

    assert [len(entry["embedding"]) for entry in answer.data] == [DIMENSIONS] * 2
    assert answer.usage.prompt_tokens > 0


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("stream", [False, True])
def test_absent_model_raises_not_found(
    kvsup: RunningKvsup,
    provider: str,
    stream: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """One class for all providers, from the status."""
    with pytest.raises(NotFoundError, match=ABSENT):
        list(litellm.completion(**_arguments(kvsup, provider, ABSENT), stream=stream))


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_leaving_a_stream_frees_the_slot(kvsup: RunningKvsup, provider: str) -> None:
    """Who stops reading is noticed long before the answer would have ended."""
    arguments = {**_arguments(kvsup, provider, ENDLESS), "max_tokens": ENDLESS_TOKENS}

    stream: Any = await litellm.acompletion(**arguments, stream=True)
    async with contextlib.aclosing(stream):
        await anext(stream)
        busy = in_flight(kvsup)

    assert busy == 1
    await to_thread.run_sync(assert_becomes_idle, kvsup)
