"""``output_config.format`` of ``/v1/messages`` on real llama-servers, which have none there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.contract_anthropic import AnthropicFailure, AnthropicMessage, MessageEvent
from tests.running import RunningKvsup
from tests.tiny import THOUGHT, TinyModels

SETTINGS = 'model = "{path}"\nnum_ctx = 1024\nthreads = 1\n'
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["yes", "no"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
REQUEST: dict[str, Any] = {
    "model": "smollm2",
    "max_tokens": 48,
    "top_k": 1,
    "messages": [{"role": "user", "content": "Is the sky blue?"}],
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
}


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, smollm2: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    files = {"smollm2": smollm2, "thinker": tiny.thinking(), "caller": tiny.one_call()}
    models = {name: SETTINGS.format(path=path) for name, path in files.items()}
    models["strict"] = SETTINGS.format(path=smollm2) + 'system = "Say no."\n'
    folder = tmp_path_factory.mktemp("structured") / "kvsup"
    host = f"max_loaded_models = {len(models)}\n"
    with RunningKvsup(folder, models=models, llama_server=any_build, host=host) as running:
        yield running
    assert running.children() == [], running.log()


def _ask(kvsup: RunningKvsup, **request: Any) -> httpx.Response:
    return kvsup.client.post("/v1/messages", json={**REQUEST, **request})


def _whole(kvsup: RunningKvsup, **request: Any) -> dict[str, Any]:
    """Return the message, which is of Anthropic's shape and nothing else."""
    answer = _ask(kvsup, **request)
    assert answer.status_code == 200, answer.text
    msgspec.json.decode(answer.content, type=AnthropicMessage)
    message: dict[str, Any] = answer.json()
    return message


def _streamed(kvsup: RunningKvsup, **request: Any) -> dict[str, Any]:
    """Return the message that a stream builds, each event of Anthropic's shape."""
    answer = _ask(kvsup, stream=True, **request)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    payloads = [part.split("\ndata: ")[1] for part in answer.text.split("\n\n")[:-1]]
    for payload in payloads:
        msgspec.json.decode(payload, type=MessageEvent)
    start, *events = map(json.loads, payloads)
    message: dict[str, Any] = start["message"]
    for event in events:
        if "content_block" in event:
            message["content"].append(event["content_block"])
        elif event["type"] == "message_delta":
            message |= {**event["delta"], "usage": event["usage"]}
        elif "delta" in event:
            _, *added = event["delta"].items()
            for name, text in added:
                message["content"][event["index"]][name] += text
    assert events[-1]["type"] == "message_stop"
    return message


def _verdict(message: dict[str, Any]) -> str:
    (text,) = [block["text"] for block in message["content"] if block["type"] == "text"]
    answer = json.loads(text)
    assert list(answer) == ["verdict"]
    verdict: str = answer["verdict"]
    return verdict


def test_format_is_kept_streamed_and_whole(kvsup: RunningKvsup) -> None:
    """Both are the same message: the text is JSON of the schema, and the counts are the chat's."""
    whole, streamed = _whole(kvsup), _streamed(kvsup)

    assert _verdict(whole) in {"yes", "no"}
    for key in ("type", "role", "model", "content", "stop_reason", "stop_sequence"):
        assert streamed[key] == whole[key]
    assert whole["stop_reason"] == "end_turn"
    for message in (whole, streamed):
        usage = message["usage"]
        assert (
            usage["input_tokens"] + usage["cache_read_input_tokens"] > len("Is the sky blue?") / 4
        )
        assert usage["output_tokens"] == whole["usage"]["output_tokens"] > 0


def test_prompt_is_as_long_as_without_a_format(kvsup: RunningKvsup) -> None:
    """The chat is the same conversation: system, text, call and result."""
    use = {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "sky"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "It is."}
    request = {
        "model": "caller",
        "max_tokens": 1,
        "system": [{"type": "text", "text": "Look first."}],
        "messages": [
            *REQUEST["messages"],
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]},
            {"role": "user", "content": [{"type": "text", "text": "So?"}, result]},
        ],
        "tools": [{"name": "look", "input_schema": {"type": "object"}}],
    }

    usages = [_whole(kvsup, **request, output_config=config)["usage"]
              for config in (REQUEST["output_config"], None)]  # fmt: skip

    lengths = [usage["input_tokens"] + usage["cache_read_input_tokens"] for usage in usages]
    assert lengths[0] == lengths[1]


def test_model_thinks_before_it_answers_in_the_format(kvsup: RunningKvsup) -> None:
    """The thought is free, and a block of its own."""
    for message in (_whole(kvsup, model="thinker"), _streamed(kvsup, model="thinker")):
        assert [block["type"] for block in message["content"]] == ["thinking", "text"]
        assert message["content"][0]["thinking"].strip() == THOUGHT
        assert _verdict(message) in {"yes", "no"}


def test_model_that_must_not_think_answers_at_once(kvsup: RunningKvsup) -> None:
    """The switches of thinking go along."""
    message = _whole(kvsup, model="thinker", thinking={"type": "disabled"})

    assert [block["type"] for block in message["content"]] == ["text"]


def test_stop_sequence_ends_the_answer_and_is_told(kvsup: RunningKvsup) -> None:
    """As it is without a format."""
    request = {"stop_sequences": ["verd"]}

    for message in (_whole(kvsup, **request), _streamed(kvsup, **request)):
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "verd")


def test_limit_of_tokens_is_told(kvsup: RunningKvsup) -> None:
    """The SDKs do not parse such an answer."""
    for message in (_whole(kvsup, max_tokens=2), _streamed(kvsup, max_tokens=2)):
        assert message["stop_reason"] == "max_tokens"
        assert message["usage"]["output_tokens"] == 2


def test_settings_of_the_model_hold(kvsup: RunningKvsup) -> None:
    """Its system text is part of the prompt, unless the request has one."""
    plain, strict = (_whole(kvsup, model=name)["usage"] for name in ("smollm2", "strict"))
    own = _whole(kvsup, model="strict", system="Say no.")["usage"]

    def length(usage: dict[str, int]) -> int:
        return usage["input_tokens"] + usage["cache_read_input_tokens"]

    assert length(strict) != length(plain)
    assert length(strict) == length(own)


def test_call_that_must_come_comes_in_spite_of_a_format(kvsup: RunningKvsup) -> None:
    """With a schema llama-server lets no tool be called."""
    tool = {
        "name": "get_weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }

    message = _whole(kvsup, model="caller", tools=[tool], tool_choice={"type": "any"})

    assert message["stop_reason"] == "tool_use"
    assert message["content"][0]["name"] == "get_weather"


@pytest.mark.parametrize(
    "wanted", [{"type": "json_schema", "schema": {"type": "nonsense"}}, {"type": "grammar"}]
)
def test_format_that_cannot_be_had_is_a_400_in_anthropics_shape(
    kvsup: RunningKvsup, wanted: dict[str, Any]
) -> None:
    """Whoever finds it, kvsup or llama-server."""
    for is_stream in (False, True):
        answer = _ask(kvsup, output_config={"format": wanted}, stream=is_stream)
        assert answer.status_code == 400
        error = msgspec.json.decode(answer.content, type=AnthropicFailure).error
        assert error.type == "invalid_request_error"


def test_prompt_that_is_too_long_has_anthropics_text(kvsup: RunningKvsup) -> None:
    """Claude Code shortens the conversation when it reads it."""
    long = [{"role": "user", "content": "word " * 2000}]

    for is_stream in (False, True):
        answer = _ask(kvsup, messages=long, stream=is_stream)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("prompt is too long: ")
