"""Steered requests against a real llama-server, whose own unsteered answers are the oracle."""

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvsup.llama.steering import steer
from tests.comparing import comparable, events
from tests.running import eventually

TEMPLATE = r"""
{%- if tools %}<|im_start|>system
Call tools with {"name": NAME, "parameters": ARGUMENTS}.
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
{%- endif %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '{"name": "' + call.function.name + '", "parameters": ' }}
{{- call.function.arguments | tojson }}{{ '}' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
"""Of it llama-server learns how this model would think and call tools."""

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"

SAME = {"temperature": 0, "seed": 1, "cache_prompt": False, "max_tokens": 24}
HELLO = {"messages": [{"role": "user", "content": "Say hello."}]}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
}
CALLS = {"tool_choice": "required", "logit_bias": [['{"', 30]], "max_tokens": 32}
THINKS = {"grammar": r'root ::= "<think>\nhm " [a-z] "\n</think>\n\nYes" [^\x00]*'}
SCHEMA = {"type": "json_schema", "json_schema": {"schema": WEATHER}}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {**SAME, **HELLO}),
    "chat_n": (CHAT, {**SAME, **HELLO, "n": 2, "temperature": 1.5}),
    "chat_stop": (CHAT, {**SAME, **HELLO, "stop": ["o"]}),
    "chat_schema": (CHAT, {**SAME, **HELLO, "response_format": SCHEMA}),
    "chat_thinking": (CHAT, {**SAME, **HELLO, **THINKS}),
    "chat_tools": (
        CHAT,
        {
            **SAME, **HELLO, **CALLS,
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}],
        },
    ),
    "completion": (COMPLETION, {**SAME, "prompt": [9906, 11], "stop": "."}),
    "completion_logprobs": (COMPLETION, {**SAME, "prompt": ["é"], "logprobs": 2, "n": 2}),
    "response": (RESPONSE, {**SAME, "input": "Say hello.", "max_output_tokens": 8}),
    "response_thinking": (RESPONSE, {**SAME, **THINKS, "input": "Say hello."}),
    "response_tools": (
        RESPONSE,
        {
            **SAME, **CALLS, "input": "Say hello.",
            "tools": [{"type": "function", "name": "weather", "parameters": WEATHER}],
        },
    ),
}  # fmt: skip


@contextmanager
def running_engine(binary: Path, model: Path) -> Iterator[httpx.Client]:
    """Start ``binary`` with two slots on a socket of its own; give a client of it."""
    with tempfile.TemporaryDirectory(prefix="kvsup-") as folder:
        address, template = Path(folder, "s.sock"), Path(folder, "template.jinja")
        template.write_text(TEMPLATE)
        process = subprocess.Popen(
            [
                binary, "--model", model, "--alias", "m", "--host", address, "--threads", "1",
                "--ctx-size", "8192", "--parallel", "2", "--batch-size", "64", "--slots",
                "--jinja", "--chat-template-file", template,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LD_LIBRARY_PATH": str(binary.parent)},
        )  # fmt: skip
        limits = httpx.Limits(max_keepalive_connections=0)  # it may close a kept one at any time
        transport = httpx.HTTPTransport(uds=str(address), limits=limits)
        try:
            with httpx.Client(transport=transport, base_url="http://m", timeout=60) as client:
                eventually(lambda: _is_listening(address))
                eventually(lambda: client.get("/health").is_success)
                yield client
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def engine(any_build: Path, smollm2: Path) -> Iterator[httpx.Client]:
    """Return a client of a real llama-server."""
    with running_engine(any_build, smollm2) as client:
        yield client


@pytest.mark.parametrize("name", CASES)
def test_folded_answer_is_the_unsteered_one(engine: httpx.Client, name: str) -> None:
    """The client gets what llama-server answers without ``stream``, but for ids and times."""
    path, request = CASES[name]

    steered = steered_bytes(engine, path, request)
    unsteered = engine.post(path, json=request).raise_for_status().json()

    assert comparable(json.loads(steered)) == comparable(unsteered)


@pytest.mark.parametrize("name", ["chat", "completion_logprobs", "response", "response_thinking"])
def test_streamed_answer_is_the_unsteered_one(engine: httpx.Client, name: str) -> None:
    """Event by event, the client of a stream gets what it would have got without progress."""
    path, request = CASES[name]
    request = {**request, "stream": True, "n": 1}

    steered = steered_bytes(engine, path, request)
    unsteered = engine.post(path, json=request).raise_for_status().content

    assert events(steered) == events(unsteered)


def test_two_streamed_answers_are_the_unsteered_ones(engine: httpx.Client) -> None:
    """Progress of one answer can follow the first token of another; none reaches the client."""
    path, request = CASES["chat_n"]
    request = {**request, "stream": True}

    steered = steered_bytes(engine, path, request)
    unsteered = engine.post(path, json=request).raise_for_status().content

    assert sorted(events(steered)) == sorted(events(unsteered))


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a b c d " * 800}]}),
        (COMPLETION, {"prompt": "a b c d " * 800}),
        (RESPONSE, {"input": "a b c d " * 800}),
    ],
)
def test_client_that_leaves_during_prefill_frees_its_slot(
    engine: httpx.Client, path: str, prompt: dict[str, Any]
) -> None:
    """A steered request that is not streamed ends with its client, though another slot streams."""
    endless = {"prompt": "a", "n_predict": -1, "ignore_eos": True, "stream": True, "id_slot": 0}
    leaver = json.dumps({**SAME, **prompt, "id_slot": 1, "ignore_eos": True, "max_tokens": 900})
    steered = steer(path, leaver.encode())
    assert steered is not None

    with engine.stream("POST", "/completion", json=endless) as other:
        pieces = other.iter_raw()
        next(pieces)
        with engine.stream("POST", path, content=steered.body):
            assert _is_busy(engine, 1)
        eventually(lambda: not _is_busy(engine, 1))

        assert _is_busy(engine, 0)
    eventually(lambda: not _is_busy(engine, 0))


def steered_bytes(engine: httpx.Client, path: str, request: dict[str, Any]) -> bytes:
    """Return what the client gets for a request that is steered."""
    steered = steer(path, json.dumps(request).encode())
    assert steered is not None
    answer = steered.make_answer()
    with engine.stream("POST", path, content=steered.body) as response:
        response.raise_for_status()
        return b"".join(answer.feed(data) for data in response.iter_raw()) + answer.finish()


def _is_listening(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


def _is_busy(client: httpx.Client, slot: int) -> bool:
    return bool(client.get("/slots").json()[slot]["is_processing"])
