"""A kvsup that clients leave, the requests they leave, and what must not be left of them."""

import itertools
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.inside import tasks_of
from tests.running import RunningKvsup, eventually

FREED_S = 5.0
"""Longest wait for all to be free; what is left of the answers would go on for a minute."""

N_PROMPT_TOKENS = 3000
N_BEFORE_DEATH = 40
"""Tokens of an answer that is repeated: enough to leave while it is."""

LAST_EVENTS = {
    "/api/chat": b'"done":true',
    "/api/generate": b'"done":true',
    "/v1/chat/completions": b"[DONE]",
    "/v1/completions": b"[DONE]",
    "/v1/messages": b'"message_stop"',
    "/v1/responses": b"event: response.incomplete",
}
"""Of each API that generates, what its stream ends with."""

EMBEDDING = ("/api/embed", "/v1/embeddings")

GENERATING = [(path, stream) for path in LAST_EVENTS for stream in (True, False)]
RESUMED = [*((path, path != "/v1/responses") for path in LAST_EVENTS), ("/api/chat", False)]
"""Those that go on in another process; a stream of ``/v1/responses`` does not."""

EVERY = [*GENERATING, *((path, False) for path in EMBEDDING)]

WORDS = """
model = "{path}"
num_ctx = 4096
num_parallel = 2
batch_size = 32
ubatch_size = 32
threads = 1
resume = "replay"
llama_server = "{wrapper}"
extra_args = ["--ignore-eos"]
[restart]
max_deaths = 1000
"""
QUICKLY = "min_delay = 0.05\nmax_delay = 0.1\n"
SLOWLY = 'min_delay = 60\nmax_delay = 60\nmin_uptime = "1h"\n'

VECTORS = """
model = "{path}"
embedding = "on"
num_ctx = 512
num_parallel = 2
threads = 1
llama_server = "{wrapper}"
"""

WRAPPER = """#!/bin/sh
case "$1" in --model) while [ ! -e "{gate}" ]; do sleep 0.02; done ;; esac
exec "{llama_server}" "$@"
"""
"""A llama-server whose load takes as long as a test wants: until the gate is there."""

_numbers = itertools.count(1)


def each_of(requests: list[tuple[str, bool]]) -> pytest.MarkDecorator:
    """Run a test once for each of ``requests``: paths, and whether to stream."""
    ids = [f"{path}-{'streamed' if stream else 'whole'}" for path, stream in requests]
    return pytest.mark.parametrize(("path", "stream"), requests, ids=ids)


@dataclass
class Bench:
    """One running kvsup, and what of it there is when it serves nobody."""

    kvsup: RunningKvsup
    gate: Path
    """Lets models load while it is there."""
    inside: Path
    n_fds: int = 0
    tasks: Counter[str] = field(default_factory=Counter)

    def model(self, path: str) -> str:
        """Return the model that answers ``path``."""
        return "vectors" if path in EMBEDDING else "words"

    def slots(self, model: str) -> list[dict[str, Any]]:
        """Return the slots of a model, as its llama-server tells."""
        answer = self.kvsup.client.get(f"/upstream/{model}/slots")
        slots: list[dict[str, Any]] = answer.json() if answer.status_code == 200 else []
        return slots  # none where it has just been killed

    def busy(self, model: str) -> int:
        """Return how many slots of a model work."""
        return sum(slot["is_processing"] for slot in self.slots(model))

    def decoded(self, model: str) -> list[int]:
        """Return how many tokens each busy slot has generated."""
        return [s["next_token"][0]["n_decoded"] for s in self.slots(model) if s["is_processing"]]

    def in_flight(self, model: str) -> int:
        """Return how many leases a model has."""
        n_leases: int = self.kvsup.models()[model]["in_flight"]
        return n_leases

    def state(self, model: str) -> str:
        """Return the state of a model."""
        return str(self.kvsup.models()[model]["state"])

    def waiting(self) -> int:
        """Return how many wait in the queue."""
        n_waiting: int = self.kvsup.client.get("/kvsup/models").json()["waiting"]
        return n_waiting

    def prompt_tokens_read(self) -> int:
        """Return the tokens of all prompts of ``words`` that were read to their end."""
        metrics = self.kvsup.client.get("/upstream/words/metrics").text
        match = re.search(r"^llamacpp:prompt_tokens_total (\S+)", metrics, re.MULTILINE)
        assert match
        return int(float(match[1]))

    def kill(self, model: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the llama-server of a model."""
        psutil.Process(int(self.kvsup.models()[model]["pid"])).send_signal(number)

    def unload(self, model: str) -> None:
        """Stop the llama-server of a model, which no one uses."""
        self.kvsup.client.post("/kvsup/stop", json={"model": model}).raise_for_status()
        eventually(lambda: self.state(model) == "stopped")

    def answers(self, path: str, *, model: str = "") -> None:
        """Ask for a short answer and get it."""
        body = body_of(path, model=model or self.model(path), stream=False, n_tokens=2, n_texts=1)
        answer = self.kvsup.client.post(path, json=body)
        assert answer.status_code == 200, answer.text

    def left(self) -> dict[str, object]:
        """Return what there is more than when it serves nobody."""
        models = self.kvsup.models()
        left = {f"leases of {name}": model["in_flight"] for name, model in models.items()}
        loaded = [name for name, model in models.items() if model["state"] == "ready"]
        left |= {f"busy slots of {name}": self.busy(name) for name in loaded if name != "vectors"}
        left["queue"] = self.waiting()
        left["tasks"] = dict(tasks_of(self.kvsup, self.inside) - self.tasks)
        left["fds"] = max(0, self.fds() - self.n_fds)
        return {what: n for what, n in left.items() if n}

    def fds(self) -> int:
        """Return how many file descriptors kvsup has open."""
        n_fds: int = psutil.Process(self.kvsup.process.pid).num_fds()
        return n_fds

    def is_as_before(self, path: str) -> None:
        """Fail if anything of a request for ``path`` is left, or the next one is not answered."""
        deadline_s = time.monotonic() + FREED_S
        while left := self.left():
            assert time.monotonic() < deadline_s, left
        self.answers(path)
        eventually(lambda: self.busy(self.model(path)) == 0, timeout_s=60)


def body_of(
    path: str,
    *,
    model: str,
    stream: bool,
    n_words: int = 8,
    n_tokens: int = 4000,
    n_texts: int = 100,
) -> dict[str, Any]:
    """Return a request whose prompt no earlier one shares, so that nothing of it is cached."""
    prompt = f"Request {next(_numbers)}:" + " word" * n_words
    if path in EMBEDDING:
        return {"model": model, "input": [f"{prompt} {i}" for i in range(n_texts)]}
    limit: dict[str, Any] = {"max_tokens": n_tokens}
    asked: dict[str, Any] = {"prompt": prompt}
    if path.endswith(("/chat", "/chat/completions", "/messages")):
        asked = {"messages": [{"role": "user", "content": prompt}]}
    if path.startswith("/api"):
        limit = {"options": {"num_predict": n_tokens}}
    elif path == "/v1/responses":
        asked, limit = {"input": prompt}, {"max_output_tokens": n_tokens}
    return {"model": model, "stream": stream, **asked, **limit}
