"""A client that leaves frees its place: in the queue, the load, the prompt and the stream.

llama-server looks for a client only when its own request has a result, or when no request had one
for a second (b11434); so each is tried alone and while another slot streams.
"""

import itertools
import json
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.running import RunningKvsup, eventually

PATHS = (
    "/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages",
)  # fmt: skip
N_PROMPT_TOKENS = 3000
FREED_S = 20.0
"""Longest wait for a slot to be free; the answers that are left would go on for a minute."""

TWO_SLOTS = """
model = "{path}"
num_ctx = 4096
num_parallel = 2
batch_size = 32
ubatch_size = 32
threads = 1
extra_args = ["--ignore-eos"]
"""

GATED = """
model = "{path}"
num_ctx = 256
threads = 1
llama_server = "{wrapper}"
"""

WRAPPER = """#!/bin/sh
case "$1" in --model) while [ ! -e "{gate}" ]; do sleep 0.02; done ;; esac
exec "{llama_server}" "$@"
"""
"""A llama-server whose load takes as long as a test wants: until the gate is there."""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file that lets the model ``gated`` load."""
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path, gate: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file."""
    wrapper = gate.parent / "llama-server"
    wrapper.write_text(WRAPPER.format(gate=gate, llama_server=llama_server))
    wrapper.chmod(stat.S_IRWXU)
    models = {
        "twoslots": TWO_SLOTS.format(path=smollm2),
        "gated": GATED.format(path=smollm2, wrapper=wrapper),
    }
    folder = tmp_path_factory.mktemp("leaving") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        running.client.post("/api/generate", json={"model": "twoslots"}).raise_for_status()
        yield running
    assert running.children() == []


@pytest.fixture
def kvsup(running: RunningKvsup) -> RunningKvsup:
    """Return the running kvsup once nobody is served."""
    eventually(lambda: _busy(running) == 0 and _in_flight(running) == 0)
    return running


def _body(path: str, *, model: str, stream: bool, n_words: int = 8) -> dict[str, Any]:
    """Return a request whose prompt no earlier one shares, so that nothing of it is cached."""
    prompt = f"Request {next(_numbers)}:" + " word" * n_words
    limit: dict[str, Any] = (
        {"options": {"num_predict": 4000}} if path.startswith("/api") else {"max_tokens": 4000}
    )
    asked: dict[str, Any] = (
        {"messages": [{"role": "user", "content": prompt}]}
        if path.endswith(("/chat", "/chat/completions", "/messages"))
        else {"prompt": prompt}
    )
    return {"model": model, "stream": stream, **asked, **limit}


@contextmanager
def _request(kvsup: RunningKvsup, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """Send a request and yield its connection; the client leaves at the end."""
    address = urlsplit(kvsup.url)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    with closing(socket.create_connection((address.hostname, address.port), timeout=30)) as sent:
        sent.sendall(head.encode() + content)
        yield sent


@contextmanager
def _neighbour(kvsup: RunningKvsup) -> Iterator[None]:
    """Keep one slot streaming."""
    path = "/v1/completions"
    with _request(kvsup, path, _body(path, model="twoslots", stream=True)) as streaming:
        assert streaming.recv(1)
        yield


def _slots(kvsup: RunningKvsup) -> list[dict[str, Any]]:
    slots: list[dict[str, Any]] = kvsup.client.get("/upstream/twoslots/slots").json()
    return slots


def _busy(kvsup: RunningKvsup) -> int:
    return sum(slot["is_processing"] for slot in _slots(kvsup))


def _in_flight(kvsup: RunningKvsup, model: str = "twoslots") -> int:
    n_leases: int = kvsup.models()[model]["in_flight"]
    return n_leases


def _waiting(kvsup: RunningKvsup) -> int:
    n_waiting: int = kvsup.client.get("/kvsup/models").json()["waiting"]
    return n_waiting


def _prompt_tokens_read(kvsup: RunningKvsup) -> int:
    """Return the tokens of all prompts that were read to their end."""
    metrics = kvsup.client.get("/upstream/twoslots/metrics").text
    match = re.search(r"^llamacpp:prompt_tokens_total (\S+)", metrics, re.MULTILINE)
    assert match
    return int(float(match[1]))


def _decoded(kvsup: RunningKvsup) -> list[int]:
    """Return how many tokens each busy slot has generated."""
    return [s["next_token"][0]["n_decoded"] for s in _slots(kvsup) if s["is_processing"]]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", PATHS)
def test_leaving_in_the_queue_gives_the_place_up(
    kvsup: RunningKvsup, path: str, *, stream: bool
) -> None:
    """Nobody waits for a client that is gone, and those who are served notice nothing."""
    with _neighbour(kvsup), _neighbour(kvsup):
        with _request(kvsup, path, _body(path, model="twoslots", stream=stream)):
            eventually(lambda: _waiting(kvsup) == 1)

        eventually(lambda: _waiting(kvsup) == 0, timeout_s=FREED_S)
        assert _in_flight(kvsup) == 2


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", PATHS)
def test_leaving_in_the_load_ends_the_lease_and_not_the_load(
    kvsup: RunningKvsup, gate: Path, path: str, *, stream: bool
) -> None:
    """A load belongs to the instance: its first client may leave."""
    gate.unlink(missing_ok=True)
    kvsup.client.post("/kvsup/stop", json={"model": "gated"}).raise_for_status()
    eventually(lambda: kvsup.models()["gated"]["state"] == "stopped")

    with _request(kvsup, path, _body(path, model="gated", stream=stream)):
        eventually(lambda: kvsup.models()["gated"]["state"] == "loading")
        assert _in_flight(kvsup, "gated") == 1
    eventually(lambda: _in_flight(kvsup, "gated") == 0, timeout_s=FREED_S)
    assert kvsup.models()["gated"]["state"] == "loading"
    gate.touch()

    eventually(lambda: kvsup.models()["gated"]["state"] == "ready")
    assert _in_flight(kvsup, "gated") == 0


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", PATHS)
def test_leaving_in_the_prompt_frees_the_slot_while_another_streams(
    kvsup: RunningKvsup, path: str, *, stream: bool
) -> None:
    """The rest of the prompt is not read, although results of the other slot keep coming."""
    with _neighbour(kvsup):
        before = _prompt_tokens_read(kvsup)
        body = _body(path, model="twoslots", stream=stream, n_words=N_PROMPT_TOKENS)

        with _request(kvsup, path, body):
            eventually(lambda: _busy(kvsup) == 2)

        eventually(lambda: _busy(kvsup) == 1 == _in_flight(kvsup), timeout_s=FREED_S)
        assert _prompt_tokens_read(kvsup) - before < N_PROMPT_TOKENS


@pytest.mark.parametrize("path", PATHS)
def test_leaving_in_the_prompt_frees_the_slot_of_one_who_is_alone(
    kvsup: RunningKvsup, path: str
) -> None:
    """As above, without anyone beside."""
    before = _prompt_tokens_read(kvsup)
    body = _body(path, model="twoslots", stream=False, n_words=N_PROMPT_TOKENS)

    with _request(kvsup, path, body):
        eventually(lambda: _busy(kvsup) == 1)

    eventually(lambda: _busy(kvsup) == 0 == _in_flight(kvsup), timeout_s=FREED_S)
    assert _prompt_tokens_read(kvsup) - before < N_PROMPT_TOKENS


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", PATHS)
def test_leaving_in_the_answer_frees_the_slot_while_another_streams(
    kvsup: RunningKvsup, path: str, *, stream: bool
) -> None:
    """The rest of the answer is not generated, whether the client was shown it or not."""
    with _neighbour(kvsup):
        with _request(kvsup, path, _body(path, model="twoslots", stream=stream)) as connection:
            if stream:
                assert connection.recv(1)
            eventually(lambda: len(_decoded(kvsup)) == 2 and min(_decoded(kvsup), default=0) > 2)

        eventually(lambda: _busy(kvsup) == 1 == _in_flight(kvsup), timeout_s=FREED_S)


@pytest.mark.parametrize("path", PATHS)
def test_leaving_in_the_answer_frees_the_slot_of_one_who_is_alone(
    kvsup: RunningKvsup, path: str
) -> None:
    """As above, without anyone beside, and without a stream."""
    with _request(kvsup, path, _body(path, model="twoslots", stream=False)):
        eventually(lambda: min(_decoded(kvsup), default=0) > 2)

    eventually(lambda: _busy(kvsup) == 0 == _in_flight(kvsup), timeout_s=FREED_S)


def test_leaving_while_the_request_is_sent_leaves_nothing_behind(kvsup: RunningKvsup) -> None:
    """Half a body is no request."""
    address = urlsplit(kvsup.url)

    with closing(socket.create_connection((address.hostname, address.port))) as half:
        half.sendall(
            b'POST /api/chat HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{"mo'
        )

    assert kvsup.client.get("/api/version").status_code == 200
    assert _in_flight(kvsup) == 0
    assert "Traceback" not in kvsup.log()
