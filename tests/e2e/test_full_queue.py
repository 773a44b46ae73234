"""What a client is told when as many requests wait as may wait: each API has its own status."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import contract, contract_anthropic, contract_openai
from tests.running import RunningKvsup, eventually

BUSY = "server busy, please try again.  maximum pending requests exceeded"
HI = [{"role": "user", "content": "Hi"}]

OF_OLLAMA: dict[str, dict[str, Any]] = {
    "/api/chat": {"messages": HI},
    "/api/generate": {"prompt": "Hi"},
}
OF_OPENAI: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/completion": {"prompt": "Hi"},
}
BY_PATH = {**OF_OLLAMA, **OF_OPENAI, "/v1/messages": {"messages": HI, "max_tokens": 4}}

MODEL = """
model = "{path}"
num_ctx = 2048
num_parallel = 1
threads = 1
extra_args = ["--ignore-eos"]
"""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one kvsup where nobody may wait, and whose only slot is free."""
    with RunningKvsup(
        tmp_path_factory.mktemp("full") / "kvsup",
        models={"m": MODEL.format(path=smollm2)},
        llama_server=llama_server,
        host="max_queue = 0\n",
    ) as running:
        yield running
    assert running.children() == []


@pytest.fixture
def full(kvsup: RunningKvsup) -> Iterator[RunningKvsup]:
    """Return it while an answer without end holds the slot."""
    body = {"model": "m", "prompt": "Hi", "stream": True}
    with kvsup.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # dropped, it would close the connection
        next(lines)
        yield kvsup
    eventually(lambda: kvsup.models()["m"]["in_flight"] == 0)


@pytest.mark.parametrize("path", OF_OLLAMA)
def test_full_queue_is_503_with_ollamas_text_on_its_api(full: RunningKvsup, path: str) -> None:
    """Ollama's clients look for the text."""
    answer = full.client.post(path, json={"model": "m", **BY_PATH[path]})

    assert answer.status_code == 503
    assert msgspec.json.decode(answer.content, type=contract.Failure).error == BUSY


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", OF_OPENAI)
def test_full_queue_is_429_on_openais_api(full: RunningKvsup, path: str, is_stream: bool) -> None:  # noqa: FBT001
    """It is what their SDKs raise ``RateLimitError`` of, and try again after."""
    answer = full.client.post(path, json={"model": "m", "stream": is_stream, **BY_PATH[path]})

    assert answer.status_code == 429
    error = msgspec.json.decode(answer.content, type=contract_openai.OpenAIFailure).error
    assert error.type == "rate_limit_error"
    assert error.message == BUSY


@pytest.mark.parametrize("is_stream", [False, True])
def test_full_queue_is_529_on_anthropics_api(full: RunningKvsup, is_stream: bool) -> None:  # noqa: FBT001
    """It is what their SDKs raise ``OverloadedError`` of, and try again after."""
    body = {"model": "m", "stream": is_stream, **BY_PATH["/v1/messages"]}

    answer = full.client.post("/v1/messages", json=body)

    assert answer.status_code == 529
    error = msgspec.json.decode(answer.content, type=contract_anthropic.AnthropicFailure).error
    assert error.type == "overloaded_error"
    assert error.message == BUSY


def test_request_that_takes_no_slot_is_answered_by_a_full_queue(full: RunningKvsup) -> None:
    """Tokens are counted beside the answer that holds the slot."""
    answer = full.client.post("/v1/messages/count_tokens", json={"model": "m", "messages": HI})

    assert answer.status_code == 200
    assert answer.json()["input_tokens"] > 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_request_after_the_queue_was_full_is_answered(kvsup: RunningKvsup, path: str) -> None:
    """A refused request leaves nothing behind that would keep out the next."""
    answer = kvsup.client.post(path, json={"model": "m", **BY_PATH[path], "max_tokens": 2})

    assert answer.status_code == 200
