"""``instructor`` on OpenAI's and on Anthropic's client: structured output by every way it has."""

from collections.abc import Iterator
from typing import Any

import anthropic
import instructor
import openai
import pytest
from instructor import Mode

from tests.clients.asking import (
    ABSENT,
    CITY_CALLER,
    CITY_JSON,
    CITY_QUESTION,
    MODEL,
    PARIS,
    City,
)
from tests.running import RunningKvsup

MESSAGES: Any = [{"role": "user", "content": CITY_QUESTION}]
GREEDY: Any = {"messages": MESSAGES, "max_tokens": 96, "temperature": 0, "max_retries": 0}


@pytest.fixture
def client(kvsup: RunningKvsup) -> Iterator[openai.OpenAI]:
    """Return the client that is patched."""
    with openai.OpenAI(base_url=f"{kvsup.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("mode", "model"),
    [(Mode.JSON_SCHEMA, MODEL), (Mode.JSON, CITY_JSON), (Mode.TOOLS, CITY_CALLER)],
    ids=str,
)
def test_answer_is_an_object_of_the_schema(client: openai.OpenAI, mode: Mode, model: str) -> None:
    """By ``response_format`` with a schema, by JSON mode, and by a tool that must be called."""
    patched = instructor.from_openai(client, mode=mode)

    city = patched.create(model=model, response_model=City, **GREEDY)

    assert isinstance(city, City)
    if model != MODEL:
        assert city.model_dump() == PARIS.model_dump()


def test_partial_objects_grow_to_the_whole(client: openai.OpenAI) -> None:
    """Streamed, each object has what has come so far."""
    patched = instructor.from_openai(client, mode=Mode.JSON)

    cities = list(patched.create_partial(model=CITY_JSON, response_model=City, **GREEDY))

    assert cities[0].population is None
    assert cities[-1].model_dump() == PARIS.model_dump()


def test_provider_string_for_ollama_finds_kvsup(kvsup: RunningKvsup) -> None:
    """``from_provider`` makes a client of its own for an Ollama at an address."""
    patched: Any = instructor.from_provider(f"ollama/{CITY_JSON}", base_url=f"{kvsup.url}/v1")

    city = patched.create(response_model=City, **GREEDY)

    patched.client.close()
    assert city.model_dump() == PARIS.model_dump()


def test_anthropic_tool_makes_an_object(kvsup: RunningKvsup) -> None:
    """On ``/v1/messages`` by a tool that must be called."""
    with anthropic.Anthropic(base_url=kvsup.url, api_key="none", max_retries=0) as client:
        patched: Any = instructor.from_anthropic(client, mode=Mode.TOOLS)

        city = patched.create(
            model=CITY_CALLER, response_model=City, messages=MESSAGES, max_tokens=96, max_retries=0
        )

    assert city.model_dump() == PARIS.model_dump()


def test_absent_model_raises_with_openais_not_found(client: openai.OpenAI) -> None:
    """Its own error holds that of the client."""
    patched = instructor.from_openai(client, mode=Mode.JSON_SCHEMA)

    with pytest.raises(Exception, match=ABSENT) as raised:
        patched.create(model=ABSENT, response_model=City, **GREEDY)

    causes = [raised.value, raised.value.__cause__, raised.value.__context__]
    assert any(isinstance(cause, openai.NotFoundError) for cause in causes)
