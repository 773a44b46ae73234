"""Large requests on a real kvsup: they take no memory while they wait or are answered."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import StartKvsup
from tests.e2e.sockets import connect, hear, request
from tests.running import RunningKvsup, eventually
from tests.standin.script import STANDIN, Steps, n_starts, write_script

MIB = 1 << 20
N_REQUESTS = 16
N_BODY_BYTES = 8 * MIB
PATHS = ("/v1/chat/completions", "/v1/messages", "/api/chat")
BOUND = 'max_bodies_memory = "40MiB"\n'
DIGEST = re.compile(rb"\d+ [0-9a-f]{64}")
HANGING: Steps = [["head"], ["digest"], ["stall"]]
WHOLE: Steps = [["head"], ["digest"], ["token", ", done"], ["done"]]


def standin(model: Path, script: Path, *, num_parallel: int) -> str:
    """Return the file of a model whose first answers hang behind the digest of their request."""
    line = write_script(script, answers=[HANGING] * num_parallel + [WHOLE])
    head = f'model = "{model}"\nllama_server = "{STANDIN}"\nnum_parallel = {num_parallel}\n'
    head += 'resume = "replay"\n'
    return f"{head}{line}\n[restart]\nmin_delay = 0.05\nmax_delay = 0.1\n"


def large(**members: object) -> bytes:
    """Return a chat of ``N_BODY_BYTES``."""
    body: dict[str, Any] = {"model": "m", "stream": True, "max_tokens": 8, **members}
    body["messages"] = [{"role": "user", "content": "x" * N_BODY_BYTES}]
    return json.dumps(body).encode()


def memory_bytes(kvsup: RunningKvsup) -> int:
    """Return what kvsup itself has in memory."""
    return int(psutil.Process(kvsup.process.pid).memory_info().rss)


@pytest.mark.parametrize("path", PATHS)
def test_large_requests_take_no_memory_while_answers_stream_and_are_replayed_whole(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, path: str
) -> None:
    """Each gets the same bytes posted again when its process is killed."""
    script = tmp_path / "s.json"
    model = standin(smollm2, script, num_parallel=N_REQUESTS)
    kvsup = start_kvsup({"m": model}, host=BOUND)
    before_bytes = memory_bytes(kvsup)
    with ExitStack() as stack:
        connections, digests = [], []
        for index in range(N_REQUESTS):
            connection = stack.enter_context(closing(connect(kvsup)))
            connection.sendall(request(f"POST {path}", large(stop=[f"{index}"])))
            heard = b""
            while (found := DIGEST.search(heard)) is None:
                heard += connection.recv(1 << 16)
            connections.append(connection)
            digests.append(found[0])

        took_bytes = memory_bytes(kvsup) - before_bytes
        psutil.Process(int(kvsup.models()["m"]["pid"])).kill()
        rest = [hear(connection).data for connection in connections]

    assert n_starts(script) == 2
    assert n_starts(script) == 2
    assert all(int(digest.split()[0]) > N_BODY_BYTES for digest in digests)
    assert [data.count(b", done") for data in rest] == [1] * N_REQUESTS, kvsup.log()
    assert not any(DIGEST.search(data) or b"error" in data for data in rest)
    assert took_bytes < N_REQUESTS * N_BODY_BYTES / 2


@pytest.mark.parametrize("path", PATHS)
def test_large_requests_take_no_memory_while_they_wait(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, path: str
) -> None:
    """One streams, the others queue: each is answered once its turn comes."""
    kvsup = start_kvsup({"m": standin(smollm2, tmp_path / "s.json", num_parallel=1)}, host=BOUND)
    before_bytes = memory_bytes(kvsup)
    with ExitStack() as stack:
        connections = []
        for n_before in range(N_REQUESTS):
            connections.append(stack.enter_context(closing(connect(kvsup))))
            connections[-1].sendall(request(f"POST {path}", large()))
            eventually(lambda n=n_before: kvsup.models()["m"]["waiting"] == n)

        took_bytes = memory_bytes(kvsup) - before_bytes
        connections[0].close()
        answers = [hear(connection) for connection in connections[1:]]

    assert [answer.statuses for answer in answers] == [[200]] * (N_REQUESTS - 1)
    assert all(b", done" in answer.data for answer in answers)
    assert took_bytes < N_REQUESTS * N_BODY_BYTES / 2


def test_large_requests_come_through_the_death_of_the_real_llama_server(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """With a long member that it skips, twice in work and once in the queue."""
    model = f'model = "{smollm2}"\nthreads = 1\nnum_ctx = 512\nnum_parallel = 2\n'
    kvsup = start_kvsup({"m": model}, host=BOUND)
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "Count to twenty."}],
        "max_tokens": 60,
        "temperature": 0,
    }

    def text(**members: object) -> str:
        answer = httpx.post(
            f"{kvsup.url}/v1/chat/completions", json={**body, **members}, timeout=100
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    wanted = text()
    with ThreadPoolExecutor() as clients:
        answers = [clients.submit(text, padding="x" * N_BODY_BYTES) for _ in range(3)]
        eventually(lambda: kvsup.models()["m"]["waiting"] == 1)
        psutil.Process(int(kvsup.models()["m"]["pid"])).kill()

        assert [answer.result() for answer in answers] == [wanted] * 3
    assert kvsup.models()["m"]["deaths"] == 1
