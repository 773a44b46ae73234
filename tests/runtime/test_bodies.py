"""Bodies of requests in the memory that they share."""

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from backports import zstd
from starlette.requests import Request
from starlette.types import Message

from kvsup.api import bodies
from kvsup.api.bodies import BodiesFull, BodyRoom
from kvsup.api.contentcoding import decoded

MIB = 1 << 20


def _request(*headers: tuple[bytes, bytes]) -> Request:
    return Request({"type": "http", "method": "POST", "path": "/", "headers": list(headers)})


async def test_compressed_bodies_are_unpacked_one_at_a_time_and_counted_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kilobyte becomes as much as a body may have: all at once would take any memory."""
    packed = zstd.compress(b'"' + b"a" * (4 * MIB - 2) + b'"')
    room = BodyRoom(max_body_bytes=4 * MIB, max_bodies_bytes=9 * MIB, folder=tmp_path)
    answered = anyio.Event()
    lock = threading.Lock()
    outcomes = []
    overlaps = []

    def watched(*arguments: Any, **named: Any) -> bytes:
        is_alone = lock.acquire(blocking=False)
        overlaps.append(not is_alone)
        try:
            return decoded(*arguments, **named)
        finally:
            if is_alone:
                lock.release()

    async def receive() -> Message:
        return {"type": "http.request", "body": packed}

    async def ask() -> None:
        with room.share() as share:
            try:
                await share.read(_request((b"content-encoding", b"zstd")), receive)
            except BodiesFull:
                outcomes.append(False)
            else:
                outcomes.append(True)
            if len(outcomes) == 20:
                answered.set()
            await answered.wait()

    monkeypatch.setattr(bodies, "decoded", watched)
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask)

    assert outcomes.count(True) == 2
    assert overlaps == [False] * 20
    assert room.held_bytes == 0
