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

from bench.record import Reading

EVENT_MARK = b'"created'
"""Once in every event of either API: ``created`` in one, ``created_at`` in the other."""

ENDS = (b"[DONE]", b'"done":true')
"""What the tail of a whole answer holds, one for each API."""

SETTLE_S = 0.3
"""Time between the first token of the last stream and the window, and after the last end."""

SPARE_S = 0.6
"""How much longer than needed a stream is, for a machine that is busy."""

AT_ONCE = 4
"""Connections opened together: cpp-httplib, so llama-server, lets only 5 wait to be accepted, and
one more than that is answered after seconds, or never."""

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
    opening_s: float = 0.0
    """How long it takes until the last stream has begun."""

    @property
    def n_tokens(self) -> int:
        """Return how many tokens each stream has: enough for the window and what is around it."""
        around_s = 2 * SETTLE_S + SPARE_S + self.opening_s
        return round(self.tokens_per_s * (self.window_s + around_s))

    def request(self) -> bytes:
        """Return the HTTP request of a stream, in the dialect of its path."""
        return request(self.path, self.model, self.n_tokens)


def request(path: str, model: str, n_tokens: int) -> bytes:
    """Return an HTTP request for a stream of ``n_tokens``, in the dialect of ``path``."""
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me about KV caches."}],
        "stream": True,
    }
    if path.startswith("/api/"):
        body["options"] = {"num_predict": n_tokens}
    else:
        body["max_tokens"] = n_tokens
    payload = msgspec.json.encode(body)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


class Stream(asyncio.Protocol):
    """One request and its answer, counted event by event."""

    def __init__(self, request: bytes) -> None:
        self.n_events = 0
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        """By its first token."""
        self.flowing: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._request = request
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count the events; know the end."""
        self.n_events += data.count(EVENT_MARK)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if self.n_events and not self.begun.done():
            self.begun.set_result(None)
        if self.n_events > 1 and not self.flowing.done():
            self.flowing.set_result(None)
        if self._tail.endswith(b"\r\n0\r\n\r\n"):
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Fail, if that was no end."""
        self._finish()

    def leave(self) -> None:
        """Close the connection in the middle of the answer."""
        self.ended.cancel()
        self._transport.abort()

    def _finish(self) -> None:
        if self.ended.done() or any(s.done() and s.exception() for s in (self.begun, self.flowing)):
            return
        if any(end in self._tail for end in ENDS):
            self.ended.set_result(None)
        else:
            broken = RuntimeError(f"a stream broke off: {self._tail!r}")
            states = (self.begun, self.flowing, self.ended)
            next(state for state in states if not state.done()).set_exception(broken)
        self._transport.close()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds (user and system) that a process has used.

    Linux counts nanoseconds on the process's own clock; ``/proc`` rounds to 10 ms.
    """
    if sys.platform == "linux":
        return time.clock_gettime((~pid << 3) | 2)  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def opened(port: int, asked: bytes, n_streams: int) -> list[Stream]:
    """Return so many streams in which tokens flow."""
    loop = asyncio.get_running_loop()
    streams: list[Stream] = []
    while len(streams) < n_streams:
        for _ in range(min(AT_ONCE, n_streams - len(streams))):
            _, stream = await loop.create_connection(lambda: Stream(asked), "127.0.0.1", port)
            streams.append(stream)
        await asyncio.gather(*(stream.begun for stream in streams[-AT_ONCE:]))
    await asyncio.gather(*(stream.flowing for stream in streams))
    return streams


async def _measure(load: Load) -> Reading:
    before_s = cpu_s(load.pid)
    streams = await opened(load.port, load.request(), load.n_streams)
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


def _events(streams: list[Stream]) -> int:
    return sum(stream.n_events for stream in streams)


if __name__ == "__main__":
    reading = uvloop.run(_measure(msgspec.json.decode(sys.argv[1], type=Load)))
    print(msgspec.json.encode(reading).decode())
