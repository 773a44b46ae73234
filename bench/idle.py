"""What a thousand silent connections cost: CPU and memory of kvsup, and of streams beside.

    python -m bench.idle [--connections 1000] [--rounds 5]

They are opened and left alone, as pools of clients and open browser tabs do.
"""

import argparse
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psutil

from bench.clients import ask
from bench.record import Reading
from bench.routes import supervised
from bench.stream_client import Load, cpu_s
from bench.table import print_table
from tests.running import RunningKvsup

PACES = {16: 200.0}
QUIET_S = 3.0
"""How long kvsup is watched doing nothing."""


@contextmanager
def idle_connections(port: int, n: int) -> Iterator[None]:
    """Hold ``n`` connections open; none sends a byte, and none is closed meanwhile."""
    with ExitStack() as stack:
        opened = [
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
            for _ in range(n)
        ]
        yield
        for connection in opened:
            connection.setblocking(False)
            try:
                if not connection.recv(1):
                    raise RuntimeError("kvsup closed an idle connection while it was watched")
            except BlockingIOError:
                pass


def readings(kvsup: RunningKvsup, port: int) -> tuple[float, float, float]:
    """Return CPU ms a second at rest, CPU µs a token of 16 streams, and resident MB."""
    pid = kvsup.process.pid
    before_s = cpu_s(pid)
    time.sleep(QUIET_S)
    at_rest_ms = (cpu_s(pid) - before_s) / QUIET_S * 1e3
    ((n, pace),) = PACES.items()
    load = Load(port, "/v1/chat/completions", f"streams{n}", n, pace, 1.0, pid)
    us_per_token = ask("stream_client", load, Reading).us_per_token
    return at_rest_ms, us_per_token, psutil.Process(pid).memory_info().rss / 1e6


def main() -> None:
    """Measure turn by turn without and with the connections, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found: dict[int, list[tuple[float, float, float]]] = {0: [], given.connections: []}
    with tempfile.TemporaryDirectory() as folder, supervised(Path(folder), PACES) as kvsup:
        port = int(kvsup.url.rsplit(":", 1)[1])
        for _ in range(given.rounds):
            for n, each in found.items():
                with idle_connections(port, n):
                    each.append(readings(kvsup, port))
    head = ("idle connections", "CPU ms/s at rest", "CPU µs/token", "MB resident")
    print_table(
        head,
        (
            (str(n), *(f"{statistics.median(values):.1f}" for values in zip(*each, strict=True)))
            for n, each in found.items()
        ),
    )


if __name__ == "__main__":
    main()
