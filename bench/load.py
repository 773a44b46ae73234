"""What kvsup adds to a cold load, over the same llama-server started by hand.

Both are timed from the wish to the first byte of the answer, turn by turn. By hand means: the same
command line and environment, ``/health`` asked every 2 ms, then the same request.
"""

import argparse
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bench.record import Run
from bench.report import load_table
from kvsup.plan import Plan
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.configdir import read_configuration
from kvsup.runtime.paths import cache_dir
from tests.running import RunningKvsup, eventually

POLL_S = 0.002
TIMEOUT_S = 60.0
_KEPT = "--slot-save-path"
MODEL_TOML = """\
model = "kvsup:SmolLM2-135M-Instruct.Q4_1.gguf"
kv_cache_type = "q8_0:q5_1"
num_ctx = 512
threads = 1
keep_alive = 0
"""
BODY = msgspec.json.encode(
    {
        "model": "demo",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "max_tokens": 1,
    }
)
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(BODY), BODY)
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def answer(connection: socket.socket, request: bytes) -> Iterator[bytes]:
    """Yield what comes back for ``request``, until the server closes."""
    connection.settimeout(TIMEOUT_S)
    connection.sendall(request)
    while data := connection.recv(65536):
        yield data


def await_first_byte(connection: socket.socket) -> None:
    """Send the request, return when the first event has begun, and read the rest."""
    heard = b""
    for data in answer(connection, REQUEST):
        heard += data
        if b"data: " in heard:
            return
    raise RuntimeError(f"no event in the answer: {heard!r}")


def through_kvsup(kvsup: RunningKvsup) -> float:
    """Return the seconds from the request to its first byte, the model being cold."""
    port = int(kvsup.url.rsplit(":", 1)[1])
    started_s = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        await_first_byte(connection)
        return time.perf_counter() - started_s


def by_hand(
    plan: Plan, *, argv: Sequence[str] | None = None, poll_s: float = POLL_S
) -> tuple[float, float]:
    """Return the seconds until it is ready, and until the first byte.

    Args:
        plan: what is run.
        argv: another command line than that of the plan.
        poll_s: how often it is asked whether it is ready.
    """
    Path(plan.socket).parent.mkdir(parents=True, exist_ok=True)
    if _KEPT in plan.argv:  # llama-server wants the folder to be there
        Path(plan.argv[plan.argv.index(_KEPT) + 1]).mkdir(parents=True, exist_ok=True)
    started_s = time.perf_counter()
    with subprocess.Popen(
        argv or plan.argv,
        env=dict(plan.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not is_ready(plan.socket):
            if process.poll() is not None or time.perf_counter() - started_s > TIMEOUT_S:
                raise RuntimeError(f"llama-server does not get ready: {process.returncode}")
            time.sleep(poll_s)
        ready_s = time.perf_counter() - started_s
        with connect(plan.socket) as connection:
            await_first_byte(connection)
            first_byte_s = time.perf_counter() - started_s
        assert process.stdin is not None
        process.stdin.close()
        process.wait(TIMEOUT_S)
    Path(plan.socket).unlink(missing_ok=True)
    return ready_s, first_byte_s


def is_ready(path: str) -> bool:
    """Say whether llama-server answers ``/health`` with 200."""
    try:
        with connect(path) as connection:
            return b"".join(answer(connection, HEALTH)).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def connect(path: str) -> socket.socket:
    """Return a connection to a UNIX socket."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def measure(server: Path, n_rounds: int) -> tuple[dict[str, list[float]], str]:
    """Return the seconds of so many cold loads by name, turn by turn, and the build."""
    found: dict[str, list[float]] = {"by hand, ready": [], "by hand": [], "through kvsup": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        RunningKvsup(Path(folder), models={"demo": MODEL_TOML}, llama_server=server) as kvsup,
    ):
        (plan,) = read_configuration(kvsup.configs, {}).plans
        for number in range(n_rounds + 1):
            eventually(lambda: kvsup.models()["demo"]["state"] == "stopped")
            times = *by_hand(plan), through_kvsup(kvsup)
            if number:  # the first round fills the page cache
                for name, seconds in zip(found, times, strict=True):
                    found[name].append(seconds)
    return found, plan.binary.label


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--llama-server", default=default_binary(cache_dir()))
    given = parser.parse_args()
    run = Run()
    run.load_s, run.load_build = measure(Path(given.llama_server), given.rounds)
    print(load_table(run))


if __name__ == "__main__":
    main()
