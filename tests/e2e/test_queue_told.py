"""What a request that had to wait is told of it, who comes first, and what ``kvsup ps`` shows."""

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests import contract
from tests.running import RunningKvsup, eventually

LOW, HIGH, MANAGE = "low-secret-0123456789", "high-secret-0123456789", "manage-secret-0123456789"
KEYS = f"""\
[low]
key = "{LOW}"
priority = -3

[high]
key = "{HIGH}"

[desk]
key = "{MANAGE}"
scope = "manage"
"""

MODEL = 'model = "{path}"\nnum_ctx = 2048\nthreads = 1\n'
ENDLESS = {"model": "m", "prompt": "Hi", "stream": True, "ignore_eos": True}
SHORT = {"num_predict": 2}


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one kvsup with one slot, and keys of two priorities."""
    folder = tmp_path_factory.mktemp("queue")
    (folder / "keys.toml").touch(mode=0o600)
    (folder / "keys.toml").write_text(KEYS)
    with RunningKvsup(
        folder / "kvsup",
        models={"m": MODEL.format(path=smollm2)},
        llama_server=llama_server,
        host=f'api_keys = "{folder}/keys.toml"\n',
    ) as running:
        running.client.headers["authorization"] = f"Bearer {MANAGE}"
        yield running
    assert running.children() == []


class Busy:
    """Requests that wait behind one without end, each in a thread of its own."""

    def __init__(self, kvsup: RunningKvsup, threads: ThreadPoolExecutor) -> None:
        self._kvsup, self._threads = kvsup, threads

    def send(self, path: str, key: str = HIGH, **body: Any) -> "Future[httpx.Response]":
        """Send a request and return once it waits."""
        before = self.waiting()["waiting"]
        answer = self._threads.submit(
            self._kvsup.client.post,
            path,
            json={"model": "m", **body},
            headers={"authorization": f"Bearer {key}"},
        )
        eventually(lambda: self.waiting()["waiting"] == before + 1)
        return answer

    def waiting(self) -> dict[str, Any]:
        """Return what ``kvsup ps`` reads."""
        answer: dict[str, Any] = self._kvsup.client.get("/kvsup/models").raise_for_status().json()
        return answer


@pytest.fixture
def busy(kvsup: RunningKvsup) -> Iterator[tuple[Busy, httpx.Response]]:
    """Return senders of requests, and the answer without end that holds the slot till closed."""
    with (
        ThreadPoolExecutor() as threads,
        kvsup.client.stream("POST", "/v1/completions", json=ENDLESS) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        yield Busy(kvsup, threads), answer
    eventually(lambda: kvsup.models()["m"]["in_flight"] == 0)


def test_wait_in_the_queue_is_told_in_a_header_and_in_the_last_object(
    busy: tuple[Busy, httpx.Response],
) -> None:
    """Place and time, on every API; in Ollama's own also in the member ``kvsup``."""
    sender, endless = busy
    hi = [{"role": "user", "content": "Hi"}]
    chat = sender.send("/api/chat", messages=hi, options=SHORT)
    whole = sender.send("/api/generate", prompt="Hi", options=SHORT, stream=False)
    other = sender.send("/v1/chat/completions", messages=hi, max_tokens=2)

    endless.close()

    for position, answer in enumerate((chat, whole, other), start=1):
        told = answer.result().headers["x-kvsup-queue"]
        assert re.fullmatch(rf"position={position}; waited_ms=\d+", told)
    *_, last = chat.result().text.splitlines()
    ends = (
        msgspec.json.decode(last, type=contract.ChatEnd),
        msgspec.json.decode(whole.result().content, type=contract.GenerateEnd),
    )
    for position, end in enumerate(ends, start=1):
        assert isinstance(end.kvsup, dict)
        assert end.kvsup["queue_position"] == position
        assert end.kvsup["queued_ms"] > 0


def test_request_that_did_not_wait_is_told_nothing(kvsup: RunningKvsup) -> None:
    """The answer is Ollama's own to the last member."""
    body = {"model": "m", "prompt": "Hi", "stream": False, "options": SHORT}
    answer = kvsup.client.post("/api/generate", json=body)

    assert "x-kvsup-queue" not in answer.headers
    assert "kvsup" not in answer.json()


def test_ps_shows_who_waits(kvsup: RunningKvsup, busy: tuple[Busy, httpx.Response]) -> None:
    """The number for each model, and each request with its place, its time and its priority."""
    sender, endless = busy
    low = sender.send("/api/generate", key=LOW, prompt="Hi", options=SHORT)
    high = sender.send("/api/generate", key=HIGH, prompt="Hi", options=SHORT)

    told = sender.waiting()
    table = kvsup.cli("ps")

    endless.close()
    assert told["models"][0]["waiting"] == 2
    assert [(r["position"], r["model"], r["priority"]) for r in told["queue"]] == [
        (1, "m", 0),
        (2, "m", -3),
    ]
    assert told["queue"][1]["waited_ms"] >= told["queue"][0]["waited_ms"]
    assert re.search(r"2 requests wait, the longest for \d+\.\d s", table.stdout), table.stderr
    for answer in (low, high):
        assert answer.result().status_code == 200


def test_key_of_a_higher_priority_comes_first(busy: tuple[Busy, httpx.Response]) -> None:
    """Three steps are 30 s of waiting: it is served before one that came just before it."""
    sender, endless = busy
    low = sender.send("/api/generate", key=LOW, prompt="Hi", stream=False, options=SHORT)
    high = sender.send("/api/generate", key=HIGH, prompt="Hi", stream=False, options=SHORT)
    order: list[str] = []
    low.add_done_callback(lambda _: order.append("low"))
    high.add_done_callback(lambda _: order.append("high"))

    endless.close()

    for answer in (low, high):
        assert answer.result().headers["x-kvsup-queue"].startswith("position=1;")
    eventually(lambda: len(order) == 2)
    assert order == ["high", "low"]
