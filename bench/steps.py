"""What each step of a token's way through kvsup costs, warm, without the kernel.

    python -m bench.steps [--rounds 9]

The events are the token source's, one a call, as they come of a llama-server with one slot. A
cold cache, as on a machine that does other things between two tokens, costs several times as much;
which step costs most stays the same.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import httptools

from bench.bytecopy import _End
from bench.table import print_table
from bench.token_source import Script
from kvsup.api.protocol import Protocol
from kvsup.llama.seam import Seam
from kvsup.llama.transcript import CHAT
from kvsup.ollama.from_llama import ChatReplies
from kvsup.runtime.upstream import Response, Upstream

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
N_CALLS = 5000

Step = Callable[[bytes], object]
"""Takes a chunk, or the event in it."""


class _Wire:
    """A transport that goes nowhere."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        pass


def us_per_call(step: Step, inputs: list[bytes], n_rounds: int) -> float:
    """Return the microseconds of a call of ``step``, the least of all rounds."""
    given = (inputs * (N_CALLS // len(inputs) + 1))[:N_CALLS]
    least_s = float("inf")
    for _ in range(n_rounds):
        began_s = time.thread_time()
        for data in given:
            step(data)
        least_s = min(least_s, time.thread_time() - began_s)
    return least_s / N_CALLS * 1e6


def parsing() -> Step:
    """Return httptools alone, with no one who listens."""
    parser = httptools.HttpResponseParser(SimpleNamespace(on_body=lambda _data: None))
    parser.feed_data(HEAD)
    return cast("Step", parser.feed_data)


def pouring(sink: Callable[[bytes], bool]) -> Step:
    """Return what reads a chunk of llama-server's and gives its body to ``sink``."""
    response = Response(Upstream(""))
    response.data_received(HEAD)
    pour = response.pour(sink)
    pour.send(None)  # until it waits for the first piece
    _POURING.append(pour)
    return response.data_received


_POURING: list[object] = []
"""What must not be collected, as it would pour no more."""


def putting() -> Callable[[bytes], bool]:
    """Return what sends a piece of an answer to the client."""
    connection = SimpleNamespace(transport=_Wire(), flow=SimpleNamespace(write_paused=False))
    return lambda data: Protocol.put(cast("Protocol", connection), data)


def byte_copy() -> Step:
    """Return what the floor does with a chunk."""
    one, other = _End(), _End()
    for end in (one, other):
        end.connection_made(cast("asyncio.Transport", _Wire()))
    one.pair_with(other)
    return one.data_received


def ollama_lines(first: bytes) -> Callable[[bytes], bytes]:
    """Return what makes Ollama's line of an event that is like ``first``."""
    replies = ChatReplies("m")
    replies.feed(first, time.time_ns())
    return lambda data: replies.feed(data, time.time_ns())


async def measured(n_rounds: int) -> list[tuple[str, str]]:
    """Return a row for each step."""
    chunks = Script("m").tokens
    events = [chunk.partition(b"\r\n")[2][:-2] for chunk in chunks]
    put, lines = putting(), ollama_lines(events[0])
    seams = [Seam(CHAT) for _ in range(3)]
    steps: dict[str, tuple[Step, list[bytes]]] = {
        "byte copy": (byte_copy(), chunks),
        "the chunk parsed (httptools)": (parsing(), chunks),
        "the chunk parsed and given on (runtime/upstream.py)": (pouring(lambda _: True), chunks),
        "what was delivered, read (llama/seam.py)": (seams[0].feed, events),
        "Ollama's line (ollama/from_llama.py)": (lines, events),
        "the client's chunk (api/protocol.py)": (put, events),
        "all of it, /v1": (pouring(lambda data: put(seams[1].feed(data))), chunks),
        "all of it, /api/chat": (pouring(lambda data: put(lines(seams[2].feed(data)))), chunks),
    }
    return [
        (name, f"{us_per_call(step, inputs, n_rounds):.2f}")
        for name, (step, inputs) in steps.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    print_table(("step", "µs a token"), asyncio.run(measured(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
