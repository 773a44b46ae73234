"""Bodies that are huge, deep or many, on a real kvsup: what is refused, and what goes on."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import StartKvsup
from tests.e2e.sockets import connect, hear, request, say
from tests.running import RunningKvsup, eventually

MODEL = """
model = "{path}"
num_ctx = 256
threads = 1
"""

LIMITS = 'max_body = "16MiB"\nmax_bodies_memory = "24MiB"\n'
MIB = 1 << 20
PATHS = ("/api/chat", "/api/show", "/v1/chat/completions", "/v1/messages", "/completion")
DEEP = b'{"model":"m","messages":' + b"[" * 128 + b"]" * 128 + b"}"
MANY = b'{"model":"m","messages":[' + b"{}," * 300_000 + b"{}]}"


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one kvsup whose bounds are small."""
    folder = tmp_path_factory.mktemp("huge") / "kvsup"
    models = {"m": MODEL.format(path=smollm2)}
    with RunningKvsup(folder, models=models, llama_server=llama_server, host=LIMITS) as running:
        yield running
    assert "Traceback" not in running.log()
    assert running.children() == []


def text_of(body: bytes) -> str:
    """Return the text of an error in any API's shape."""
    error = json.loads(body)["error"]
    return str(error if isinstance(error, str) else error["message"])


def show(n_bytes: int) -> bytes:
    """Return a right request of so many bytes."""
    return b'{"model":"m","x":"' + b"x" * (n_bytes - 20) + b'"}'


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "text"),
    [
        (DEEP, "nests deeper than 128 levels"),
        (b" " * 100 + DEEP, "nests deeper than 128 levels"),
        (MANY, "holds more than 1000000 values"),
    ],
)
def test_json_that_nests_or_holds_too_much_is_400(
    kvsup: RunningKvsup, path: str, body: bytes, text: str
) -> None:
    """In words and in the shape of each API, before anything decodes it."""
    answer = kvsup.client.post(path, content=body)

    assert answer.status_code == 400
    assert text in text_of(answer.content)


@pytest.mark.parametrize("path", PATHS)
def test_body_over_max_body_is_413(kvsup: RunningKvsup, path: str) -> None:
    """Announced or in chunks, and heard by a client that sends all of it first."""
    body = show(16 * MIB + 1)
    announced = say(kvsup, request(f"POST {path}", body))
    chunks = kvsup.client.post(path, content=iter([body]))

    assert announced.statuses == [413]
    assert chunks.status_code == 413
    assert text_of(announced.body) == text_of(chunks.content)
    assert text_of(announced.body) == "request body is larger than 16777216 bytes"


@pytest.mark.parametrize("path", ["/api/show", "/v1/chat/completions", "/v1/messages"])
def test_bodies_that_are_too_much_together_are_503_until_there_is_room(
    kvsup: RunningKvsup, path: str
) -> None:
    """Whoever came first is served; what was only announced takes nothing."""
    body = show(15 * MIB)
    with closing(connect(kvsup)) as announced, closing(connect(kvsup)) as first:
        announced.sendall(request("POST /api/show", b"{", length=15 * MIB))
        first.sendall(request("POST /api/show", body[:-1], length=len(body)))
        refused: list[httpx.Response] = []

        def is_refused() -> bool:
            refused.append(kvsup.client.post(path, content=body))
            return refused[-1].status_code == 503

        eventually(is_refused)
        first.sendall(body[-1:])
        assert hear(first).statuses == [200]

    assert "request bodies take" in text_of(refused[-1].content)
    assert "max_bodies_memory" in text_of(refused[-1].content)
    eventually(lambda: kvsup.client.post("/api/show", content=body).status_code == 200)


def test_body_that_comes_slowly_gives_way_to_one_that_needs_its_room(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Once it is late: fast enough not to be given up, it would hold the room for hours."""
    models = {"m": MODEL.format(path=smollm2)}
    kvsup = start_kvsup(models, host=f'{LIMITS}client_timeout = "3s"\n')
    body = show(15 * MIB)
    with closing(connect(kvsup)) as slow:
        slow.sendall(request("POST /api/show", body[: 12 * MIB], length=len(body)))

        def is_served() -> bool:
            slow.sendall(b"x" * 2048)
            return kvsup.client.post("/api/show", content=body).status_code == 200

        eventually(is_served)
        heard = hear(slow)

    assert heard.statuses == [503]
    assert "came slowly, and others needed its room" in text_of(heard.body)


def test_thousand_large_requests_leave_no_memory_behind(kvsup: RunningKvsup) -> None:
    """Allocators like to keep what large bodies took."""
    process = psutil.Process(kvsup.process.pid)
    body = show(3 * MIB)

    def ask(times: int) -> int:
        for _ in range(times):
            assert kvsup.client.post("/api/show", content=body).status_code == 200
        return int(process.memory_info().rss)

    before_bytes = ask(20)

    assert ask(200) - before_bytes < 12 * MIB
