"""What kvsup holds while very many tokens pass through it in long answers, on each route."""

import argparse
import http.client
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from bench.record import Held, Run
from bench.report import memory_table
from bench.routes import supervised
from bench.stream_client import EVENT_MARK
from tests.running import RunningKvsup

PACE = 20_000.0
"""Tokens per second at most; kvsup itself is the limit."""

N_CTX = 8192
N_ANSWER = 10 * N_CTX
"""Tokens of an answer: Ollama's bound, ten times the context."""

N_SAMPLES = 4
MODEL = "streams1"

ROUTES: dict[str, tuple[str, dict[str, object]]] = {
    "/v1/chat/completions": ("/v1/chat/completions", {"stream": True}),
    "/api/chat": ("/api/chat", {}),
    "/api/chat, not streamed": ("/api/chat", {"stream": False}),
    "/api/generate": ("/api/generate", {}),
    "/api/generate, not streamed": ("/api/generate", {"stream": False}),
}


def answer(kvsup: RunningKvsup, route: str, n_tokens: int) -> Iterator[int]:
    """Yield how many tokens have come, again and again, until the answer ends."""
    path, more = ROUTES[route]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "prompt": "Hi",
        "max_tokens": n_tokens,
        "options": {"num_predict": n_tokens},
        **more,
    }
    connection = http.client.HTTPConnection("127.0.0.1", int(kvsup.url.rsplit(":", 1)[1]))
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    with connection.getresponse() as response:
        n_seen, tail = 0, b""
        while data := response.read1(1 << 16):
            n_seen += (tail + data).count(EVENT_MARK)
            tail = data[-len(EVENT_MARK) + 1 :]
            yield n_seen
    connection.close()


def tokens(kvsup: RunningKvsup, route: str, n_tokens: int) -> Iterator[int]:
    """Yield how many tokens have come, in one answer after the other, until all have."""
    for n_before in range(0, n_tokens, N_ANSWER):
        n_answer = min(N_ANSWER, n_tokens - n_before)
        for n_seen in answer(kvsup, route, n_answer):
            yield n_before + min(n_seen, n_answer)
        yield n_before + n_answer


def held(kvsup: RunningKvsup, route: str, n_tokens: int) -> Held:
    """Return kvsup's resident MB before all tokens, at each part of them, and after them."""

    def resident_mb() -> float:
        return psutil.Process(kvsup.process.pid).memory_info().rss / 1e6

    readings = [resident_mb()]
    for n_seen in tokens(kvsup, route, n_tokens):
        while len(readings) <= n_seen * N_SAMPLES // n_tokens:
            readings.append(resident_mb())
    return Held(route, n_tokens, [*readings, resident_mb()])


def measure(n_tokens: int, routes: Iterable[str]) -> list[Held]:
    """Return what one kvsup holds while so many tokens pass on one route after the other."""
    with (
        tempfile.TemporaryDirectory() as folder,
        supervised(Path(folder), {1: PACE}, num_ctx=N_CTX) as kvsup,
    ):
        found = []
        for route in routes:
            for _ in answer(kvsup, route, 1000):
                pass
            found.append(held(kvsup, route, n_tokens))
        return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    print(memory_table(Run(held=measure(parser.parse_args().tokens, ROUTES))))


if __name__ == "__main__":
    main()
