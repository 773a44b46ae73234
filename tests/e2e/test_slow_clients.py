"""Clients that send slowly, or read slowly, on a real kvsup with a real llama-server."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import StartKvsup
from tests.e2e.sockets import connect, hear, request, say
from tests.running import RunningKvsup, eventually

TWO_SLOTS = """
model = "{path}"
num_ctx = 2048
num_parallel = 2
threads = 1
extra_args = ["--ignore-eos"]
"""

IMPATIENT = 'client_timeout = "1s"\nidle_timeout = "1s"\nslow_reader_timeout = "1s"\n'
BODY = b'{"model":"m"}'
N_TOKENS = 100
WINDOW_BYTES = 64 << 10
"""What the kernel keeps for a client that does not read."""


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return a kvsup that gives every client a second."""
    folder = tmp_path_factory.mktemp("impatient") / "kvsup"
    models = {"m": TWO_SLOTS.format(path=smollm2)}
    with RunningKvsup(folder, models=models, llama_server=llama_server, host=IMPATIENT) as running:
        yield running
    assert "Traceback" not in running.log()
    assert running.children() == []


@pytest.fixture(scope="module")
def patient(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return a kvsup as it is without settings."""
    folder = tmp_path_factory.mktemp("patient") / "kvsup"
    models = {"m": TWO_SLOTS.format(path=smollm2)}
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert "Traceback" not in running.log()
    assert running.children() == []


def in_flight(kvsup: RunningKvsup) -> int:
    """Return how many requests the model serves."""
    return int(kvsup.models()["m"]["in_flight"])


def wide_stream(*, n_tokens: int) -> bytes:
    """Return a request whose answer has some 80 KB a token."""
    body = {"model": "m", "prompt": "Count:", "stream": True, "n_probs": 1000}
    return request("POST /completion", json.dumps({**body, "n_predict": n_tokens}).encode())


# Those that send slowly


@pytest.mark.parametrize(
    ("sent", "is_told"),
    [
        (b"", False),
        (b"P", True),
        (b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n", True),
        (request("GET /api/version", is_last=False) + b"GET /", True),
    ],
)
def test_head_that_does_not_come_is_given_up(
    impatient: RunningKvsup,
    sent: bytes,
    is_told: bool,  # noqa: FBT001
) -> None:
    """With 408, or without a word where nothing was asked."""
    heard = say(impatient, sent)

    assert heard.statuses[-1:] == ([408] if is_told else [])


def test_connection_between_two_requests_is_closed_after_its_time(impatient: RunningKvsup) -> None:
    """Without a word: its client may be about to send."""
    heard = say(impatient, request("GET /api/version", is_last=False))

    assert heard.statuses == [200]


def test_client_may_be_waited_for_for_ever(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """Each kind of waiting."""
    keys = ("client_timeout", "idle_timeout", "slow_reader_timeout")
    kvsup = start_kvsup(
        {"m": TWO_SLOTS.format(path=smollm2)}, host="".join(f'{key} = "-1"\n' for key in keys)
    )
    version = request("GET /api/version", is_last=False)

    assert say(kvsup, version + request("POST /api/show", BODY)).statuses == [200, 200]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_that_stops_is_408_in_the_shape_of_its_api(
    impatient: RunningKvsup,
    is_chunked: bool,  # noqa: FBT001
) -> None:
    """The request that waits for it is let go."""
    sent = request("POST /v1/messages", BODY, length=1000)
    if is_chunked:
        sent = sent.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked")
        sent = sent.replace(BODY, b"d\r\n" + BODY + b"\r\n")

    heard = say(impatient, sent)

    assert heard.statuses == [408]
    assert json.loads(heard.body)["type"] == "error"


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nX: ",
        request("POST /api/show", length=1 << 20),
        request("POST /api/show", b"x" * (4 << 20), length=5 << 20),
    ],
    ids=["head", "body", "end of a body"],
)
def test_client_that_sends_a_byte_now_and_then_is_given_up(
    impatient: RunningKvsup, start: bytes
) -> None:
    """Each byte is progress, but not enough of it, however much came at once before."""
    with closing(connect(impatient)) as connection:
        connection.sendall(start)
        connection.settimeout(0.1)
        answer = b""
        while not answer:
            with suppress(TimeoutError):
                answer = connection.recv(1 << 16)
            connection.send(b"a")

    assert answer.startswith(b"HTTP/1.1 408 ")


def test_body_that_comes_slowly_but_surely_is_served(impatient: RunningKvsup) -> None:
    """It takes three times as long as any part of it may."""
    body = b'{"model":"m","x":"' + b"x" * 30_000 + b'"}'
    pause = threading.Event()
    with closing(connect(impatient)) as connection:
        connection.sendall(request("POST /api/show", length=len(body)))
        for at in range(0, len(body), 5001):
            pause.wait(0.5)
            connection.sendall(body[at : at + 5001])
        heard = hear(connection)

    assert heard.statuses == [200]


def test_many_that_do_not_end_their_heads_keep_nobody_out(patient: RunningKvsup) -> None:
    """A thousand of them hold no more than a little memory."""
    process = psutil.Process(patient.process.pid)
    before_bytes = process.memory_info().rss
    with ExitStack() as stack:
        for _ in range(1000):
            connection = stack.enter_context(closing(connect(patient)))
            connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nX: ")

        assert say(patient, request("GET /api/version")).statuses == [200]
        assert process.memory_info().rss - before_bytes < 50 << 20
        n_files = process.num_fds()
    assert n_files > 1000
    eventually(lambda: process.num_fds() < 100)


# Those that read slowly


def _read_all(connection: socket.socket) -> bytes:
    return hear(connection).data


def test_reader_that_stops_costs_no_memory_and_no_neighbour_and_gets_all_in_the_end(
    patient: RunningKvsup,
) -> None:
    """Its stream of megabytes waits at llama-server, not in kvsup; the other slot goes on."""
    process = psutil.Process(patient.process.pid)
    say(patient, wide_stream(n_tokens=20))
    before_bytes = process.memory_info().rss
    with closing(connect(patient, receive_bytes=WINDOW_BYTES)) as stopped:
        stopped.sendall(wide_stream(n_tokens=N_TOKENS))
        start = stopped.recv(100)

        other = say(patient, wide_stream(n_tokens=N_TOKENS))
        most_bytes = process.memory_info().rss
        assert in_flight(patient) == 1
        assert other.data.count(b"data: ") >= N_TOKENS

        rest = hear(stopped).data

    assert (start + rest).count(b"data: ") == other.data.count(b"data: ")
    assert rest.endswith(b"0\r\n\r\n")
    assert len(rest) > 4 << 20
    assert most_bytes - before_bytes < len(rest) // 2
    eventually(lambda: in_flight(patient) == 0)


def test_reader_that_never_goes_on_is_cut_off_and_its_slot_is_free(
    impatient: RunningKvsup,
) -> None:
    """A frozen client does not hold a slot for ever."""
    with closing(connect(impatient, receive_bytes=WINDOW_BYTES)) as stopped:
        stopped.sendall(wide_stream(n_tokens=100))
        stopped.recv(100)

        eventually(lambda: "took none of its answer" in impatient.log(), timeout_s=50)
        eventually(lambda: in_flight(impatient) == 0)


def test_reader_that_is_slow_but_reads_is_not_cut_off(impatient: RunningKvsup) -> None:
    """Each part that it takes counts."""
    pause = threading.Event()
    with closing(connect(impatient, receive_bytes=WINDOW_BYTES)) as slow:
        slow.sendall(wide_stream(n_tokens=30))
        data = b""
        while part := slow.recv(1 << 15):
            data += part
            pause.wait(0.02)

    assert data.endswith(b"0\r\n\r\n")
