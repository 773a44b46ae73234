"""A client that times first tokens, turn by turn through a route and straight from its source.

``python -m bench.first_token_client PROBING`` takes a ``Probing`` and prints the milliseconds of
both, ``[[straight, ...], [through, ...]]``, as JSON. A time is from the opening of a connection to
the first word of the answer. Meanwhile all streams but one run through the route.
"""

import asyncio
import random
import re
import sys
import time
from typing import cast

import msgspec
import uvloop

from bench.stream_client import opened, request

WORD = re.compile(rb'"content":"[^"]')
"""In the first event that has text, of either API."""

PAUSE_S = 0.004
"""Before each request, at random up to this, so that it meets the other streams at any moment."""

PROBE_TIMEOUT_S = 30.0
_ENDLESS = 20_000
_CHAT = "/v1/chat/completions"


class Probing(msgspec.Struct, frozen=True):
    """What to ask, and beside how many streams."""

    port: int
    path: str
    model: str
    n_streams: int
    straight: str
    """Where the source listens: a UNIX socket, or a port."""
    n_pairs: int
    limit_s: float
    """After which no further pair is begun."""


class _Probe(asyncio.Protocol):
    def __init__(self, asked: bytes) -> None:
        self.began_s = time.perf_counter()
        self.first_s = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked = asked
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing
        self._transport.write(self._asked)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if not self.first_s and WORD.search(self._heard):
            self.first_s = time.perf_counter()
        if self._heard.endswith(b"\r\n0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self.ended.done():
            return
        if self.first_s:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(RuntimeError(f"no token in the answer: {self._heard!r}"))


async def _timed_ms(where: int | str, asked: bytes) -> float:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(random.uniform(0, PAUSE_S))
    probe = _Probe(asked)
    if isinstance(where, int):
        await loop.create_connection(lambda: probe, "127.0.0.1", where)
    else:
        await loop.create_unix_connection(lambda: probe, where)
    await asyncio.wait_for(probe.ended, PROBE_TIMEOUT_S)
    return (probe.first_s - probe.began_s) * 1e3


async def _measure(asked: Probing) -> tuple[list[float], list[float]]:
    endless = request(asked.path, asked.model, _ENDLESS)
    beside = await opened(asked.port, endless, asked.n_streams - 1)
    straight = int(asked.straight) if asked.straight.isdigit() else asked.straight
    plain, one = request(_CHAT, asked.model, 1), request(asked.path, asked.model, 1)
    straight_ms, through_ms = [], []
    end_s = time.monotonic() + asked.limit_s
    for number in range(asked.n_pairs + 1):
        if number > 1 and time.monotonic() > end_s:
            break
        pair = await _timed_ms(straight, plain), await _timed_ms(asked.port, one)
        if number:  # the first pair warms up
            straight_ms.append(pair[0])
            through_ms.append(pair[1])
    if any(stream.ended.done() for stream in beside):
        raise RuntimeError("a stream ended before it was left")
    for stream in beside:
        stream.leave()
    return straight_ms, through_ms


if __name__ == "__main__":
    found = uvloop.run(_measure(msgspec.json.decode(sys.argv[1], type=Probing)))
    print(msgspec.json.encode(found).decode())
