"""A client that opens many streams at once and reads a server's CPU time while all of them run.

``python -m bench.stream_client LOAD`` takes a ``Load`` and prints a ``Reading``, both as JSON.
"""

import asyncio
import sys
import time
from typing import cast

import msgspec
import psutil
import uvloop

EVENT_MARK = b'"created'
"""Once in every event of either API: ``created`` in one, ``created_at`` in the other."""

ENDS = (b"[DONE]", b'"done":true')
"""What the tail of a whole answer holds, one for each API."""

SETTLE_S = 0.3
"""Time between the first token of the last stream and the window, and after the last end."""

SPARE_S = 0.4
"""How much longer than needed a stream is, for a machine that is busy."""

_TAIL_BYTES = 600


class Load(msgspec.Struct, frozen=True):
    """What to ask, how often at once, and of which process to read the CPU time."""

    port: int
    path: str
    model: str
    n_streams: int
    tokens_per_s: float
    """The pace of the source, for each stream."""
    window_s: float
    pid: int

    @property
    def n_tokens(self) -> int:
        """Return how many tokens each stream has: enough for the window and what is around it."""
        return round(self.tokens_per_s * (self.window_s + 2 * SETTLE_S + SPARE_S))

    def request(self) -> bytes:
        """Return the HTTP request, in the dialect of its path."""
        body: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Tell me about KV caches."}],
            "stream": True,
        }
        if self.path.startswith("/api/"):
            body["options"] = {"num_predict": self.n_tokens}
        else:
            body["max_tokens"] = self.n_tokens
        payload = msgspec.json.encode(body)
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        return head.encode() + payload


class Reading(msgspec.Struct, frozen=True):
    """What one load cost the server."""

    us_per_token: float
    """CPU microseconds (user and system) per token, while all streams run."""
    ms_per_request: float
    """CPU milliseconds of a request beside its tokens: its coming, its end."""
    tokens_per_s: float
    """All streams together, in the window."""
    core_share: float
    """The server's share of one core in the window, 0 to 1."""


class _Stream(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self.n_events = 0
        loop = asyncio.get_running_loop()
        self.flowing: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._request = request
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.n_events += data.count(EVENT_MARK)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if self.n_events > 1 and not self.flowing.done():
            self.flowing.set_result(None)
        if self._tail.endswith(b"\r\n0\r\n\r\n"):
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._finish()

    def _finish(self) -> None:
        if self.ended.done() or (self.flowing.done() and self.flowing.exception()):
            return
        if any(end in self._tail for end in ENDS):
            self.ended.set_result(None)
        else:
            broken = RuntimeError(f"a stream broke off: {self._tail!r}")
            (self.ended if self.flowing.done() else self.flowing).set_exception(broken)
        self._transport.close()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds (user and system) that a process has used.

    Linux counts nanoseconds on the process's own clock; ``/proc`` rounds to 10 ms.
    """
    if sys.platform == "linux":
        return time.clock_gettime((~pid << 3) | 2)  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def _measure(load: Load) -> Reading:
    loop = asyncio.get_running_loop()
    request = load.request()
    before_s = cpu_s(load.pid)
    streams = [
        (await loop.create_connection(lambda: _Stream(request), "127.0.0.1", load.port))[1]
        for _ in range(load.n_streams)
    ]
    await asyncio.gather(*(stream.flowing for stream in streams))
    await asyncio.sleep(SETTLE_S)
    opened_at, opened_s, n_opened = time.perf_counter(), cpu_s(load.pid), _events(streams)
    await asyncio.sleep(load.window_s)
    wall_s = time.perf_counter() - opened_at
    spent_s, n_events = cpu_s(load.pid) - opened_s, _events(streams) - n_opened
    if any(stream.ended.done() for stream in streams):
        raise RuntimeError("a stream ended inside the window")
    await asyncio.gather(*(stream.ended for stream in streams))
    await asyncio.sleep(SETTLE_S)
    per_token_s = spent_s / n_events
    beside_s = cpu_s(load.pid) - before_s - per_token_s * _events(streams)
    return Reading(
        us_per_token=per_token_s * 1e6,
        ms_per_request=beside_s / load.n_streams * 1e3,
        tokens_per_s=n_events / wall_s,
        core_share=spent_s / wall_s,
    )


def _events(streams: list[_Stream]) -> int:
    return sum(stream.n_events for stream in streams)


if __name__ == "__main__":
    reading = uvloop.run(_measure(msgspec.json.decode(sys.argv[1], type=Load)))
    print(msgspec.json.encode(reading).decode())
