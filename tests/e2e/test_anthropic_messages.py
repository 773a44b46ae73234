"""``/v1/messages`` is asked as a chat, and says what llama-server's own would say, in its order."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from scripts.make_tiny_gguf import chat_template
from tests.contract_anthropic import AnthropicFailure, AnthropicMessage, MessageEvent
from tests.running import RunningKvsup
from tests.tiny import AFTER_CALLS, ANSWER, THOUGHT, TinyModels, png

Json = dict[str, Any]

SETTINGS = 'model = "{path}"\nnum_ctx = 1024\nthreads = 1\nkv_cache_type = "q8_0:q4_0"\n'
"""With this pair a prompt that is read anew and one from the cache give the same text."""

SCRIPTED = 'model = "{path}"\nnum_ctx = 1024\nthreads = 1\n'

SAYS_ALL = (
    "<think>", "\nTwo and", " two.\n", "</think>", "\n\n", "Let me", " see.", "\n<tool_call>",
    '\n{"name": "get_weather", ', '"arguments": {"city": ', '"Par\\u00eds"}}', "\n</tool_call>",
    '\n<tool_call>\n{"name": "get_time", ', '"arguments": {}}\n</tool_call>',
)  # fmt: skip
"""A thought, a text and two calls, the second without arguments."""

SKY = {"role": "user", "content": "Say hello and tell me about the sky."}
TOOLS = [
    {
        "name": name,
        "description": f"Tells of a {field}.",
        "input_schema": {"type": "object", "properties": {field: {"type": "string"}}},
    }
    for name, field in (("get_weather", "city"), ("get_time", "zone"))
]
IMAGE = {
    "type": "image",
    "source": {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(png()).decode(),
    },
}
USE = {
    "type": "tool_use",
    "id": "c1",
    "name": "get_weather",
    "input": {"city": "Par\u00eds", "n": 1.5},
}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "Sun"}]}


def _user(*blocks: Json) -> list[Json]:
    return [{"role": "user", "content": list(blocks)}]


CASES: dict[str, Json] = {
    "text": {},
    "limit": {"max_tokens": 1},
    "system": {"system": "You are a pirate."},
    "system in blocks": {
        "system": [
            {"type": "text", "text": "You are "},
            {"type": "text", "text": "a pirate.", "cache_control": {"type": "ephemeral"}},
        ]
    },
    "several turns": {
        "messages": [SKY, {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]}, SKY]
    },
    "turn without a word": {"messages": [SKY, {"role": "assistant", "content": ""}, SKY]},
    "blocks that no chat has": {
        "messages": _user({"type": "text", "text": "Hi"}, {"type": "document", "title": "x"})
    },
    "sampling": {"temperature": 0.1, "top_k": 1, "top_p": 0.5},
    "stop sequence that never comes": {"stop_sequences": ["zzzq"]},
    "thinking": {"model": "thinker"},
    "thinking with a budget": {
        "model": "thinker", "thinking": {"type": "enabled", "budget_tokens": 1},
    },
    "thinking cut": {"model": "thinker", "max_tokens": 3},
    "template's own switch": {
        "model": "thinker", "chat_template_kwargs": {"enable_thinking": False},
    },
    "call": {"model": "caller", "tools": TOOLS},
    "call that must come": {"model": "caller", "tools": TOOLS, "tool_choice": {"type": "any"}},
    "call cut": {"model": "caller", "tools": TOOLS, "max_tokens": 3},
    "calls": {"model": "calls", "tools": TOOLS},
    "round of tools": {
        "model": "caller",
        "tools": TOOLS,
        "messages": [
            SKY,
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, USE]},
            *_user(RESULT),
        ],
    },
    "all kinds": {"model": "says_all", "tools": TOOLS},
    "image": {"model": "vision", "messages": _user(IMAGE, {"type": "text", "text": "What?"})},
    "image in a result": {"model": "vision", "messages": _user({**RESULT, "content": [IMAGE]})},
}  # fmt: skip
"""What kvsup and llama-server answer alike."""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, smollm2: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    template = chat_template(thinking=True, tools=True)
    files = {
        "thinker": tiny.thinking(),
        "caller": tiny.one_call(),
        "calls": tiny.two_calls(),
        "says_all": tiny.scripted("says_all", SAYS_ALL, template=template),
    }
    models = {name: SCRIPTED.format(path=path) for name, path in files.items()}
    vision = tiny.vision()
    models["vision"] = SCRIPTED.format(path=vision.model) + f'mmproj = "{vision.mmproj}"\n'
    models["smollm2"] = SETTINGS.format(path=smollm2)
    folder = tmp_path_factory.mktemp("messages") / "kvsup"
    host = f"max_loaded_models = {len(models)}\n"
    with RunningKvsup(folder, models=models, llama_server=any_build, host=host) as running:
        yield running
    assert running.children() == [], running.log()


def _ask(kvsup: RunningKvsup, *, own: bool = False, **request: Any) -> httpx.Response:
    """Return kvsup's answer, or that of the model's llama-server itself."""
    body = {"model": "smollm2", "max_tokens": 24, "temperature": 0, "messages": [SKY], **request}
    path = f"/upstream/{body['model']}/v1/messages" if own else "/v1/messages"
    return kvsup.client.post(path, json=body)


def _whole(kvsup: RunningKvsup, *, own: bool = False, **request: Any) -> Json:
    answer = _ask(kvsup, own=own, **request)
    assert answer.status_code == 200, answer.text
    if not own:
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        msgspec.json.decode(answer.content, type=AnthropicMessage)
    message: Json = answer.json()
    return message


def _events(kvsup: RunningKvsup, *, own: bool = False, **request: Any) -> list[Json]:
    answer = _ask(kvsup, own=own, stream=True, **request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    payloads = [part.split("\ndata: ")[1] for part in answer.text.split("\n\n")[:-1]]
    if not own:
        for payload in payloads:
            msgspec.json.decode(payload, type=MessageEvent)
    return [json.loads(payload) for payload in payloads]


def _told(message: Json) -> Json:
    """Return what must be alike: not ids, nor how much of the prompt was in the cache."""
    usage = message["usage"]
    return {
        "content": [{k: v for k, v in block.items() if k != "id"} for block in message["content"]],
        "stop": (message["stop_reason"], message["stop_sequence"]),
        "input": usage["input_tokens"] + usage["cache_read_input_tokens"],
        "output": usage["output_tokens"],
    }


def _deltas(events: list[Json]) -> list[Json]:
    """Return what the events add to the blocks, in their order."""
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    return [event for event in deltas if event["delta"]["type"] != "signature_delta"]


@pytest.mark.parametrize("case", CASES)
def test_whole_message_is_that_of_llama_server(kvsup: RunningKvsup, case: str) -> None:
    """Content, reason of the end and counts."""
    assert _told(_whole(kvsup, **CASES[case])) == _told(_whole(kvsup, own=True, **CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_stream_is_that_of_llama_server(kvsup: RunningKvsup, case: str) -> None:
    """Piece by piece; with one block event by event, while of several its own closes none early."""
    ours, own = _events(kvsup, **CASES[case]), _events(kvsup, own=True, **CASES[case])

    assert _deltas(ours) == _deltas(own)
    assert [e["type"] for e in (ours[0], *ours[-2:])] == [e["type"] for e in (own[0], *own[-2:])]
    assert ours[-2]["delta"] == own[-2]["delta"]
    assert ours[-2]["usage"]["output_tokens"] == own[-2]["usage"]["output_tokens"]
    if len({event["index"] for event in _deltas(ours)}) == 1:
        assert [event["type"] for event in ours] == [event["type"] for event in own]


@pytest.mark.parametrize("case", CASES)
def test_stream_builds_the_whole_message(kvsup: RunningKvsup, case: str) -> None:
    """Each block is closed before the next is opened."""
    start, *events = _events(kvsup, **CASES[case])
    message: Json = start["message"]
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append({**event["content_block"], "partial_json": ""})
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(message["content"]) - 1
            _, (name, text) = event["delta"].items()
            message["content"][-1][name] += text
        elif event["type"] == "message_delta":
            message |= {**event["delta"], "usage": event["usage"]}
    for block in message["content"]:
        arguments = block.pop("partial_json")
        if block["type"] == "tool_use" and message["stop_reason"] == "tool_use":
            block["input"] = json.loads(arguments or "{}")

    assert _told(message) == _told(_whole(kvsup, **CASES[case]))


def test_stop_sequence_of_the_client_is_named_as_the_reason(kvsup: RunningKvsup) -> None:
    """llama-server names it, but says that the turn ended."""
    own = _whole(kvsup, own=True, stop_sequences=["zzz", " breath"])

    for message in (
        _whole(kvsup, stop_sequences=["zzz", " breath"]),
        _events(kvsup, stop_sequences=["zzz", " breath"])[-2]["delta"],
    ):
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", " breath")
    assert own["stop_sequence"] == " breath"


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("content", ["Hello, the", [{"type": "text", "text": "Hello, the"}]])
def test_answer_goes_on_with_the_assistants_text_and_does_not_repeat_it(
    kvsup: RunningKvsup, content: object, *, is_stream: bool
) -> None:
    """Clients put it before the answer themselves; llama-server's begins with it."""
    messages = [SKY, {"role": "assistant", "content": content}]
    if is_stream:
        text = "".join(e["delta"]["text"] for e in _deltas(_events(kvsup, messages=messages)))
    else:
        text = _whole(kvsup, messages=messages)["content"][0]["text"]

    own = _whole(kvsup, own=True, messages=messages)["content"][0]["text"]

    assert own == f"Hello, the{text}"


def test_empty_text_of_the_assistant_is_not_gone_on_with(kvsup: RunningKvsup) -> None:
    """llama-server's answer begins with the word "assistant" there."""
    messages = [SKY, {"role": "assistant", "content": ""}]

    assert _told(_whole(kvsup, messages=messages)) == _told(_whole(kvsup))


def test_thinking_disabled_holds(kvsup: RunningKvsup) -> None:
    """llama-server drops it."""
    (text,) = _whole(kvsup, model="thinker", thinking={"type": "disabled"})["content"]
    thought, _ = _whole(kvsup, own=True, model="thinker", thinking={"type": "disabled"})["content"]

    assert text["type"] == "text"
    assert thought["thinking"].strip() == THOUGHT


def test_choice_of_a_tool_or_of_none_holds(kvsup: RunningKvsup) -> None:
    """llama-server offers the model all of them in both cases."""
    offer: Json = {"model": "caller", "tools": TOOLS}
    named, none, every = (
        _whole(kvsup, **offer, tool_choice=choice)
        for choice in ({"type": "tool", "name": "get_weather"}, {"type": "none"}, None)
    )

    assert [block["name"] for block in named["content"]] == ["get_weather"]
    assert [block["type"] for block in none["content"]] == ["text"]
    lengths = [_told(message)["input"] for message in (none, named, every)]
    assert lengths == sorted(set(lengths))


def test_results_of_tools_come_before_the_text_beside_them(kvsup: RunningKvsup) -> None:
    """Behind it the template of llama-server's prompt ends in the result, not in the question."""
    said = [SKY, {"role": "assistant", "content": [USE]}]
    text = {"type": "text", "text": "So?"}

    mixed = _whole(kvsup, model="caller", tools=TOOLS, messages=[*said, *_user(text, RESULT)])
    parted = [*said, *_user(RESULT), *_user(text)]

    assert _told(mixed) == _told(
        _whole(kvsup, own=True, model="caller", tools=TOOLS, messages=parted)
    )
    alone = _whole(kvsup, model="caller", tools=TOOLS, messages=[*said, *_user(RESULT)])
    assert alone["content"][0]["text"] == AFTER_CALLS


ERRORS: dict[str, Json] = {
    "picture for a model without eyes": {"messages": _user(IMAGE)},
    "picture that is none": {
        "model": "vision",
        "messages": _user({"type": "image", "source": {"type": "base64", "data": "AA=="}}),
    },
    "address": {
        "model": "vision",
        "messages": _user({"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}),
    },
    "prompt too long": {"messages": [{"role": "user", "content": "word " * 2000}]},
    "word of the template": {"model": "thinker", "chat_template_kwargs": {"enable_thinking": "x"}},
    "message without content": {"messages": [{"role": "user"}]},
    "text without text": {"messages": _user({"type": "text"})},
}  # fmt: skip


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("case", ERRORS)
def test_error_is_a_400_in_anthropics_shape(
    kvsup: RunningKvsup, case: str, *, is_stream: bool
) -> None:
    """llama-server refuses these too, some with 500."""
    answer = _ask(kvsup, stream=is_stream, **ERRORS[case])

    assert answer.status_code == 400
    error = msgspec.json.decode(answer.content, type=AnthropicFailure).error
    assert error.type == "invalid_request_error"
    assert _ask(kvsup, own=True, stream=is_stream, **ERRORS[case]).status_code in {400, 500}


def test_headers_and_unknown_members_of_the_api_do_no_harm(kvsup: RunningKvsup) -> None:
    """Betas come and go; the model is named as it was asked for."""
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-2025-01-01,b"}
    body = {
        "model": "vision:latest",
        "max_tokens": 60,
        "messages": [SKY],
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "context_management": {"edits": []},
    }

    answer = kvsup.client.post("/v1/messages?beta=true", json=body, headers=headers)

    message = msgspec.json.decode(answer.content, type=AnthropicMessage)
    assert message.id.startswith("msg_")
    assert message.model == "vision:latest"
    assert [getattr(block, "text", None) for block in message.content] == [ANSWER]


def test_count_is_that_of_the_message(kvsup: RunningKvsup) -> None:
    """And that of llama-server where nothing is mended."""
    body = {"model": "caller", "messages": [SKY], "tools": TOOLS, "system": "Be brief."}
    counted = kvsup.client.post("/v1/messages/count_tokens", json=body).json()
    own = kvsup.client.post("/upstream/caller/v1/messages/count_tokens", json=body).json()

    told = _told(_whole(kvsup, model="caller", tools=TOOLS, system="Be brief."))

    assert counted == own == {"input_tokens": told["input"]}
