"""Ollama's own Python package, its client and its asynchronous one."""

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import ollama
import pytest

from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_ARGUMENTS,
    CITY_QUESTION,
    COPY,
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
from tests.running import RunningKvsup
from tests.tiny import AFTER_CALLS, AFTER_THOUGHT, ANSWER, THOUGHT, TOOLS

MESSAGES = [{"role": "user", "content": QUESTION}]
SHORT = {"num_predict": 12}
ENDLESS_CHAT: dict[str, Any] = {
    "model": ENDLESS,
    "messages": MESSAGES,
    "options": {"num_predict": ENDLESS_TOKENS},
}


@pytest.fixture
def client(kvsup: RunningKvsup) -> Iterator[ollama.Client]:
    """Return Ollama's client."""
    with ollama.Client(host=kvsup.url) as client:
        yield client


def test_list_names_each_model_with_digest_and_time(client: ollama.Client) -> None:
    """Each entry has all that the package knows of."""
    models = {model.model: model for model in client.list().models}

    assert {f"{MODEL}:latest", f"{EMBEDDER}:latest"} <= set(models)
    for model in models.values():
        assert isinstance(model.modified_at, datetime)
        assert model.digest
        assert len(model.digest) == 64
        assert model.size
        assert model.details
        assert model.details.format == "gguf"
    assert len({model.digest for model in models.values()}) == len(models)


def test_show_tells_architecture_and_capabilities(client: ollama.Client) -> None:
    """The keys that clients look for are there."""
    shown = client.show(MODEL)

    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.modelinfo["llama.embedding_length"] == DIMENSIONS
    assert shown.capabilities == ["completion"]
    assert shown.template
    assert shown.details
    assert shown.details.quantization_level == "Q4_1"


def test_chat_answers_with_counts_and_durations(client: ollama.Client) -> None:
    """A whole answer has its text and its metrics."""
    answer = client.chat(MODEL, MESSAGES, options=SHORT)

    assert answer.message.role == "assistant"
    assert answer.message.content
    assert answer.done is True
    assert answer.done_reason == "length"
    assert answer.eval_count == 12
    assert answer.prompt_eval_count
    assert answer.total_duration
    assert answer.eval_duration


def test_stream_gives_pieces_and_one_end(client: ollama.Client) -> None:
    """The pieces make the text of the whole answer; only the last says ``done``."""
    whole = client.chat(MODEL, MESSAGES, options=SHORT)

    pieces = list(client.chat(MODEL, MESSAGES, options=SHORT, stream=True))

    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 3
    assert pieces[-1].eval_count == 12


def test_generate_continues_from_the_context_of_an_answer(client: ollama.Client) -> None:
    """The ``context`` of one answer is accepted with the next request."""
    first = client.generate(MODEL, "My name is Ada.", options=SHORT)
    second = client.generate(MODEL, "What is my name?", context=first.context, options=SHORT)

    assert first.context
    assert second.context
    assert list(second.context[: len(first.context)]) == list(first.context)
    assert (second.prompt_eval_count or 0) > (first.prompt_eval_count or 0)


def test_generate_streams_the_text_of_the_whole(client: ollama.Client) -> None:
    """``generate`` streams as ``chat`` does."""
    whole = client.generate(MODEL, QUESTION, options=SHORT)

    pieces = list(client.generate(MODEL, QUESTION, options=SHORT, stream=True))

    assert "".join(piece.response or "" for piece in pieces) == whole.response
    assert pieces[-1].done


def test_generate_fills_in_the_middle(client: ollama.Client) -> None:
    """A ``suffix`` asks for what stands between; ``insert`` tells that a model can."""
    filled = client.generate(FILL_IN, "def answer():", suffix="return 42")

    assert filled.response == ANSWER
    assert "insert" in (client.show(FILL_IN).capabilities or [])


def test_logprobs_tell_each_token_and_its_rivals(client: ollama.Client) -> None:
    """As many entries as tokens, each with as many rivals as were asked for."""
    answer = client.chat(MODEL, MESSAGES, options=SHORT, logprobs=True, top_logprobs=2)

    entries = answer.logprobs or []
    assert len(entries) == 12
    assert "".join(entry.token or "" for entry in entries) == answer.message.content
    assert [len(entry.top_logprobs or []) for entry in entries] == [2] * 12


@pytest.mark.parametrize("keep_alive", [600, 600.0, "10m", "600s", -1, "-1s"])
def test_keep_alive_in_all_its_forms_moves_the_end(client: ollama.Client, keep_alive: Any) -> None:
    """Seconds, durations, and forever."""
    client.chat(CALLER, [], keep_alive=keep_alive)

    running = {model.model: model.expires_at for model in client.ps().models}

    expires_at = running[f"{CALLER}:latest"]
    assert expires_at
    left_s = (expires_at - datetime.now(timezone.utc)).total_seconds()
    assert left_s > 10 * 365 * 86400 if str(keep_alive).startswith("-") else 500 < left_s <= 600


def test_copy_and_delete_change_the_list(client: ollama.Client) -> None:
    """A copy answers as its original; a deleted one is gone."""
    copied = client.copy(THINKER, COPY)
    listed = {model.model for model in client.list().models}
    answer = client.chat(COPY, MESSAGES)
    deleted = client.delete(COPY)

    assert (copied.status, deleted.status) == ("success", "success")
    assert f"{COPY}:latest" in listed
    assert answer.message.content == AFTER_THOUGHT
    assert f"{COPY}:latest" not in {model.model for model in client.list().models}


def test_kv_cache_type_is_chosen_by_an_option(kvsup: RunningKvsup, client: ollama.Client) -> None:
    """The option of kvsup's own passes through the package; ``/api/ps`` tells the pair."""
    options: dict[str, Any] = {"kv_cache_type": "q8_0:q4_0"}

    answer = client.chat(FILL_IN, MESSAGES, options=options)

    running = kvsup.client.get("/api/ps").json()["models"]
    assert answer.message.content == ANSWER
    assert (f"{FILL_IN}:latest", "q8_0:q4_0") in {
        (model["model"], model["kv_cache_type"]) for model in running
    }


def test_format_schema_makes_an_answer_of_that_schema(client: ollama.Client) -> None:
    """Structured output, as Ollama's documentation shows it."""
    answer = client.chat(
        MODEL,
        [{"role": "user", "content": CITY_QUESTION}],
        format=City.model_json_schema(),
        options={"num_predict": 64},
    )

    assert City.model_validate_json(answer.message.content or "").name


def test_embed_gives_a_vector_of_length_one_for_each_text(client: ollama.Client) -> None:
    """Normalised vectors, as many as texts."""
    answer = client.embed(EMBEDDER, ["a cat", "a dog"])

    assert [len(vector) for vector in answer.embeddings] == [DIMENSIONS] * 2
    for vector in answer.embeddings:
        assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-3)
    assert answer.prompt_eval_count


def test_embed_with_dimensions_cuts_the_vector(client: ollama.Client) -> None:
    """A shorter vector is asked for by ``dimensions``."""
    answer = client.embed(EMBEDDER, "a cat", dimensions=64)

    assert [len(vector) for vector in answer.embeddings] == [64]


def test_embeddings_gives_one_vector(client: ollama.Client) -> None:
    """The older call."""
    assert len(client.embeddings(EMBEDDER, "a cat").embedding) == DIMENSIONS


@pytest.mark.parametrize("call", ["chat", "generate", "show", "embed", "embeddings", "delete"])
def test_missing_model_raises_response_error_404(client: ollama.Client, call: str) -> None:
    """The package's own error, with the status that tells that a pull is needed."""
    with pytest.raises(ollama.ResponseError, match="not found") as raised:
        getattr(client, call)(ABSENT)

    assert raised.value.status_code == 404


def test_missing_model_in_a_stream_raises_response_error_404(client: ollama.Client) -> None:
    """A stream that was asked for and never began is an error too."""
    with pytest.raises(ollama.ResponseError, match=f"model '{ABSENT}' not found") as raised:
        list(client.chat(ABSENT, MESSAGES, stream=True))

    assert raised.value.status_code == 404


def test_ps_shows_a_loaded_model_until_it_is_unloaded(client: ollama.Client) -> None:
    """Loaded by a request without messages, unloaded by a keep_alive of none."""
    loaded = client.chat(EMBEDDER, [])
    running = {model.model: model for model in client.ps().models}
    unloaded = client.chat(EMBEDDER, [], keep_alive=0)

    assert loaded.done_reason == "load"
    shown = running[f"{EMBEDDER}:latest"]
    assert isinstance(shown.expires_at, datetime)
    assert shown.context_length == 512
    assert shown.size
    assert unloaded.done_reason == "unload"


def test_leaving_a_stream_frees_the_slot(kvsup: RunningKvsup, client: ollama.Client) -> None:
    """Who stops reading is noticed long before the answer would have ended."""
    stream = client.chat(**ENDLESS_CHAT, stream=True)
    next(stream)
    busy = in_flight(kvsup)

    stream.close()  # type: ignore[attr-defined]

    assert busy == 1
    assert_becomes_idle(kvsup)


def test_tool_call_has_arguments_as_an_object_and_takes_a_result(client: ollama.Client) -> None:
    """A whole round: question, call, result, answer."""
    messages: list[ollama.Message | dict[str, Any]] = [
        {"role": "user", "content": WEATHER_QUESTION}
    ]

    asked = client.chat(CALLER, messages, tools=TOOLS)
    calls = asked.message.tool_calls or []
    result = {"role": "tool", "content": RESULT, "tool_name": "get_weather"}
    told = client.chat(CALLER, [*messages, asked.message, result], tools=TOOLS)

    assert [call.function.name for call in calls] == ["get_weather"]
    assert calls[0].function.arguments == CITY_ARGUMENTS
    assert not asked.message.content
    assert asked.done_reason == "stop"
    assert told.message.content == AFTER_CALLS
    assert not told.message.tool_calls


def test_tool_calls_are_streamed_each_as_a_whole(client: ollama.Client) -> None:
    """Both calls come, in their order, before or with the end."""
    question = [{"role": "user", "content": WEATHER_QUESTION}]

    pieces = list(client.chat(TWO_CALLS, question, tools=TOOLS, stream=True))

    calls = [call.function for piece in pieces for call in piece.message.tool_calls or []]
    assert [call.name for call in calls] == ["get_weather", "get_time"]
    assert [call.arguments for call in calls] == [CITY_ARGUMENTS, ZONE_ARGUMENTS]
    assert not any(piece.message.content for piece in pieces)


def test_function_is_taken_as_a_tool(client: ollama.Client) -> None:
    """The package makes a schema of a Python function."""

    def get_weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: where

        Returns:
            the weather
        """
        return city

    question = [{"role": "user", "content": WEATHER_QUESTION}]

    calls = client.chat(CALLER, question, tools=[get_weather]).message.tool_calls or []

    assert [call.function.arguments for call in calls] == [CITY_ARGUMENTS]


def test_tools_for_a_model_without_them_raise_response_error_400(client: ollama.Client) -> None:
    """Ollama refuses rather than dropping the tools."""
    with pytest.raises(ollama.ResponseError, match="does not support tools") as raised:
        client.chat(MODEL, MESSAGES, tools=TOOLS)

    assert raised.value.status_code == 400


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("think", [None, True, False, "low"])
def test_thinking_stands_apart_from_the_content(
    client: ollama.Client,
    think: Any,
    stream: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Absent means on, for a model that can; false turns it off."""
    question = [{"role": "user", "content": "What is two and two?"}]

    arguments: dict[str, Any] = {"model": THINKER, "messages": question, "think": think}
    answers = client.chat(**arguments, stream=True) if stream else [client.chat(**arguments)]
    messages = [answer.message for answer in answers]

    thought = "".join(message.thinking or "" for message in messages)
    assert thought.strip() == ("" if think is False else THOUGHT)
    assert "".join(message.content or "" for message in messages) == AFTER_THOUGHT


def test_thinking_asked_of_a_model_without_it_raises_response_error_400(
    client: ollama.Client,
) -> None:
    """Ollama refuses rather than answering without a thought."""
    with pytest.raises(
        ollama.ResponseError, match=f'"{MODEL}" does not support thinking'
    ) as raised:
        client.chat(MODEL, MESSAGES, think=True)

    assert raised.value.status_code == 400


def test_show_tells_tools_and_thinking_of_models_that_can(client: ollama.Client) -> None:
    """Read from the chat template."""
    assert client.show(CALLER).capabilities == ["completion", "tools"]
    assert client.show(THINKER).capabilities == ["completion", "thinking"]
