"""A client may leave at any point of any request: nothing of it is left, and the next is answered.

llama-server looks for a client only when its own request has a result, or when no request had one
for a second (b11434); so leaving in the prompt and in the answer is tried alone and while another
slot streams.
"""

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.inside import talkative, tasks_of
from tests.leaving import (
    EMBEDDING,
    EVERY,
    FREED_S,
    GENERATING,
    LAST_EVENTS,
    N_BEFORE_DEATH,
    N_PROMPT_TOKENS,
    QUICKLY,
    RESUMED,
    SLOWLY,
    VECTORS,
    WORDS,
    WRAPPER,
    Bench,
    body_of,
    each_of,
)
from tests.running import RunningKvsup, eventually


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[Bench]:
    """Return one running kvsup for this file."""
    folder = tmp_path_factory.mktemp("leaving")
    gate, inside, wrapper = folder / "open", folder / "inside", folder / "llama-server"
    wrapper.write_text(WRAPPER.format(gate=gate, llama_server=llama_server))
    wrapper.chmod(stat.S_IRWXU)
    words = WORDS.format(path=smollm2, wrapper=wrapper)
    models = {
        "words": words + QUICKLY,
        "slowly": words + SLOWLY,
        "vectors": VECTORS.format(path=smollm2, wrapper=wrapper),
    }
    environment = talkative(inside, os.environ.get("PYTHONPATH", ""))
    with RunningKvsup(
        folder / "kvsup", models=models, llama_server=llama_server, environment=environment
    ) as kvsup:
        bench = Bench(kvsup, gate, inside)
        gate.touch()
        for path in ("/api/chat", "/api/embed"):
            bench.answers(path)
        bench.n_fds = min(bench.fds() for _ in range(5) if bench.waiting() == 0)
        bench.tasks = tasks_of(kvsup, inside)
        yield bench
        assert "Traceback" not in kvsup.log()
    assert kvsup.children() == []


@pytest.fixture
def bench(running: Bench) -> Bench:
    """Return the running kvsup, ready and at rest, whatever an earlier test has left."""
    running.gate.touch()
    eventually(lambda: not running.left())
    return running


@contextmanager
def _request(bench: Bench, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """Send a request and yield its connection; the client leaves at the end."""
    address = urlsplit(bench.kvsup.url)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    with closing(socket.create_connection((address.hostname, address.port), timeout=30)) as sent:
        sent.sendall(head.encode() + content)
        yield sent


@contextmanager
def _neighbours(bench: Bench, model: str, n: int) -> Iterator[None]:
    """Keep ``n`` slots of a model busy."""
    path = "/api/embed" if model == "vectors" else "/v1/completions"
    with ExitStack() as connections:
        for _ in range(n):
            body = body_of(path, model=model, stream=True)
            connection = connections.enter_context(_request(bench, path, body))
            if path not in EMBEDDING:
                assert connection.recv(1)
        eventually(lambda: bench.in_flight(model) == n)
        yield


@each_of(EVERY)
def test_leaving_in_the_queue_gives_the_place_up(bench: Bench, path: str, *, stream: bool) -> None:
    """Nobody waits for a client that is gone, and those who are served notice nothing."""
    model = bench.model(path)
    with _neighbours(bench, model, 2):
        with _request(bench, path, body_of(path, model=model, stream=stream)):
            eventually(lambda: bench.waiting() == 1)

        eventually(lambda: bench.waiting() == 0, timeout_s=FREED_S)
        assert bench.in_flight(model) == 2
    bench.is_as_before(path)


@each_of(EVERY)
def test_leaving_in_the_load_ends_the_lease_and_not_the_load(
    bench: Bench, path: str, *, stream: bool
) -> None:
    """A load belongs to the instance: its first client may leave, and it goes on."""
    model = bench.model(path)
    bench.unload(model)
    bench.gate.unlink()

    with _request(bench, path, body_of(path, model=model, stream=stream)):
        eventually(lambda: bench.state(model) == "loading")
        assert bench.in_flight(model) == 1
    eventually(lambda: bench.in_flight(model) == 0, timeout_s=FREED_S)
    assert bench.state(model) == "loading"
    bench.gate.touch()

    eventually(lambda: bench.state(model) == "ready")
    bench.is_as_before(path)


def _leave_in_the_prompt(bench: Bench, path: str, *, stream: bool, n_beside: int) -> None:
    """Leave; the rest of the prompt is not read."""
    with _neighbours(bench, "words", n_beside):
        before = bench.prompt_tokens_read()
        body = body_of(path, model="words", stream=stream, n_words=N_PROMPT_TOKENS)

        with _request(bench, path, body):
            eventually(lambda: bench.busy("words") == n_beside + 1)

        eventually(
            lambda: bench.busy("words") == n_beside == bench.in_flight("words"), timeout_s=FREED_S
        )
        assert bench.prompt_tokens_read() - before < N_PROMPT_TOKENS
    bench.is_as_before(path)


@each_of(GENERATING)
def test_leaving_in_the_prompt_frees_the_slot_of_one_who_is_alone(
    bench: Bench, path: str, *, stream: bool
) -> None:
    """Whether the client is shown the answer as it comes or not."""
    _leave_in_the_prompt(bench, path, stream=stream, n_beside=0)


@each_of(GENERATING)
def test_leaving_in_the_prompt_frees_the_slot_while_another_streams(
    bench: Bench, path: str, *, stream: bool
) -> None:
    """As above, although results of the other slot keep coming."""
    _leave_in_the_prompt(bench, path, stream=stream, n_beside=1)


@pytest.mark.parametrize("path", EMBEDDING)
def test_leaving_while_texts_are_embedded(bench: Bench, path: str) -> None:
    """Its lease goes at once; llama-server takes no note, and works on at the texts of one call.

    While results of its own come, it does not look for its client (seen on b11434).
    """
    with _request(bench, path, body_of(path, model="vectors", stream=False, n_texts=40)):
        eventually(lambda: bench.busy("vectors") > 0)

    bench.is_as_before(path)


@each_of(GENERATING)
def test_leaving_at_the_first_byte(bench: Bench, path: str, *, stream: bool) -> None:
    """As soon as there is one, whether the client was shown it or not."""
    with _request(bench, path, body_of(path, model="words", stream=stream)) as connection:
        if stream:
            assert connection.recv(1)
        else:
            eventually(lambda: bench.decoded("words") > [0])

    bench.is_as_before(path)


def _leave_in_the_answer(bench: Bench, path: str, *, stream: bool, n_beside: int) -> None:
    """Leave; the rest of the answer is not generated."""
    with _neighbours(bench, "words", n_beside):
        with _request(bench, path, body_of(path, model="words", stream=stream)):
            eventually(lambda: [n > 10 for n in bench.decoded("words")] == [True] * (n_beside + 1))

        eventually(
            lambda: bench.busy("words") == n_beside == bench.in_flight("words"), timeout_s=FREED_S
        )
    bench.is_as_before(path)


@each_of(GENERATING)
def test_leaving_in_the_answer_frees_the_slot_of_one_who_is_alone(
    bench: Bench, path: str, *, stream: bool
) -> None:
    """Whether the client is shown the answer as it comes or not."""
    _leave_in_the_answer(bench, path, stream=stream, n_beside=0)


@each_of(GENERATING)
def test_leaving_in_the_answer_frees_the_slot_while_another_streams(
    bench: Bench, path: str, *, stream: bool
) -> None:
    """As above, although results of the other slot keep coming."""
    _leave_in_the_answer(bench, path, stream=stream, n_beside=1)


@each_of(EVERY)
def test_leaving_at_the_last_byte(bench: Bench, path: str, *, stream: bool) -> None:
    """Without a farewell: what was still to come is the end of the body."""
    body = body_of(path, model=bench.model(path), stream=stream, n_tokens=4, n_texts=4)
    mark, data = LAST_EVENTS[path] if stream else b"HTTP/1.1 200 OK", b""

    with _request(bench, path, body) as connection:
        while mark not in data:
            data += (part := connection.recv(64))
            assert part, data

    bench.is_as_before(path)


def _until_repeated(bench: Bench, connection: socket.socket, *, stream: bool) -> None:
    """Wait until so much of an answer is there that repeating it takes a while."""
    if stream:
        assert connection.recv(1)
    eventually(lambda: bench.decoded("words") > [N_BEFORE_DEATH])


@each_of(RESUMED)
def test_leaving_in_the_load_of_the_successor(bench: Bench, path: str, *, stream: bool) -> None:
    """Its process was killed; nobody is there any more for whom it would be run again."""
    with _request(bench, path, body_of(path, model="words", stream=stream)) as connection:
        _until_repeated(bench, connection, stream=stream)
        bench.gate.unlink()
        bench.kill("words")
        eventually(lambda: bench.state("words") == "loading")
        assert bench.in_flight("words") == 1
    eventually(lambda: bench.in_flight("words") == 0, timeout_s=FREED_S)
    bench.gate.touch()

    eventually(lambda: bench.state("words") == "ready")
    bench.is_as_before(path)


@each_of(RESUMED)
def test_leaving_while_the_answer_is_repeated(bench: Bench, path: str, *, stream: bool) -> None:
    """Its successor is freed as well, although it has sent nothing that the client had not."""
    n_told = bench.kvsup.log().count("a request was re")
    with _request(bench, path, body_of(path, model="words", stream=stream)) as connection:
        _until_repeated(bench, connection, stream=stream)
        bench.kill("words")
        eventually(lambda: [0 < n < N_BEFORE_DEATH for n in bench.decoded("words")] == [True])

    bench.is_as_before(path)
    assert bench.kvsup.log().count("a request was re") == n_told


@each_of(RESUMED)
def test_leaving_in_the_backoff(bench: Bench, path: str, *, stream: bool) -> None:
    """Its process crashed, and the next start is a minute away."""
    with _request(bench, path, body_of(path, model="slowly", stream=stream)):
        eventually(lambda: bench.state("slowly") == "ready" and bench.decoded("slowly") > [2])
        bench.kill("slowly", signal.SIGSEGV)
        eventually(lambda: bench.state("slowly") == "backoff")
        assert bench.in_flight("slowly") == 1

    eventually(lambda: bench.in_flight("slowly") == 0, timeout_s=FREED_S)
    bench.unload("slowly")
    bench.answers(path, model="slowly")
    bench.unload("slowly")
    bench.is_as_before(path)


@pytest.mark.parametrize("is_first", [True, False], ids=["who runs", "who waits"])
@each_of(RESUMED[::3])
def test_suspect_that_leaves(bench: Bench, path: str, *, stream: bool, is_first: bool) -> None:
    """Of two under which a process crashed one is run alone; either may leave, the other stays."""
    whole = body_of("/api/generate", model="words", stream=False)
    mine = body_of(path, model="words", stream=stream)
    asked = [(path, mine), ("/api/generate", whole)]

    with ExitStack() as other:
        with ExitStack() as leaver:
            for of, body in asked if is_first else reversed(asked):
                stack = leaver if body is mine else other
                stack.enter_context(_request(bench, of, body))
                eventually(lambda: min(bench.decoded("words"), default=0) > 2)
            eventually(lambda: [n > 2 for n in bench.decoded("words")] == [True, True])
            pid = bench.kvsup.models()["words"]["pid"]
            bench.kill("words", signal.SIGSEGV)
            eventually(lambda: bench.kvsup.models()["words"]["pid"] not in (pid, None))
            eventually(lambda: bench.busy("words") == 1)
            assert bench.in_flight("words") == 2

        eventually(lambda: bench.in_flight("words") == 1 == bench.busy("words"), timeout_s=FREED_S)
    bench.is_as_before(path)


def test_leaving_while_the_request_is_sent(bench: Bench) -> None:
    """Half a body is no request."""
    address = urlsplit(bench.kvsup.url)

    with closing(socket.create_connection((address.hostname, address.port))) as half:
        half.sendall(
            b'POST /api/chat HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{"mo'
        )

    bench.is_as_before("/api/chat")
