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


def _room(folder: Path, *, max_bodies_bytes: int, patience_s: float = 60.0) -> BodyRoom:
    return BodyRoom(
        max_body_bytes=4 * MIB,
        max_bodies_bytes=max_bodies_bytes,
        patience_s=patience_s,
        folder=folder,
    )


def _request(*headers: tuple[bytes, bytes]) -> Request:
    return Request({"type": "http", "method": "POST", "path": "/", "headers": list(headers)})


async def test_compressed_bodies_are_unpacked_one_at_a_time_and_counted_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kilobyte becomes as much as a body may have: all at once would take any memory."""
    packed = zstd.compress(b'"' + b"a" * (4 * MIB - 2) + b'"')
    room = _room(tmp_path, max_bodies_bytes=9 * MIB)
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


class _Client:
    """One that sends a part of its body, and the rest when it is told to."""

    def __init__(self, room: BodyRoom, *, part_bytes: int) -> None:
        self.go_on = anyio.Event()
        self.end = anyio.Event()
        self.outcome = ""
        self._room = room
        self._parts = [b"x" * part_bytes, b"x"]

    async def run(self) -> None:
        """Ask, and hold what was read until ``end``."""
        with self._room.share() as share:
            try:
                body = await share.read(_request(), self._receive)
            except BodiesFull as error:
                self.outcome = str(error)
            else:
                self.outcome = f"{len(body)}"
                await self.end.wait()

    async def _receive(self) -> Message:
        part = self._parts.pop(0)
        if not self._parts:
            await self.go_on.wait()
        return {"type": "http.request", "body": part, "more_body": bool(self._parts)}


async def test_body_that_still_comes_after_its_time_gives_way_the_largest_first(
    tmp_path: Path,
) -> None:
    """Only where another needs its room; whoever holds nothing yet is left alone."""
    room = _room(tmp_path, max_bodies_bytes=8 * MIB, patience_s=0.0)
    small, large, empty, other = (_Client(room, part_bytes=n * MIB) for n in (2, 4, 0, 3))
    async with anyio.create_task_group() as tasks:
        for client in (small, large, empty):
            tasks.start_soon(client.run)
            await anyio.wait_all_tasks_blocked()
        assert room.held_bytes == 6 * MIB

        other.go_on.set()
        tasks.start_soon(other.run)
        await anyio.wait_all_tasks_blocked()

        assert "came slowly, and others needed its room" in large.outcome
        assert other.outcome == f"{3 * MIB + 1}"
        assert room.held_bytes == 5 * MIB + 1
        for client in (small, empty, other):
            client.go_on.set()
            client.end.set()

    assert small.outcome == f"{2 * MIB + 1}"
    assert empty.outcome == "1"
    assert room.held_bytes == 0


async def test_body_keeps_its_room_while_it_comes_in_time(tmp_path: Path) -> None:
    """And once it is there, however long its request takes."""
    for patience_s, has_come in ((60.0, False), (0.0, True)):
        room = _room(tmp_path, max_bodies_bytes=6 * MIB, patience_s=patience_s)
        first, other = (_Client(room, part_bytes=3 * MIB + 1) for _ in range(2))
        async with anyio.create_task_group() as tasks:
            if has_come:
                first.go_on.set()
            tasks.start_soon(first.run)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(other.run)
            await anyio.wait_all_tasks_blocked()
            first.go_on.set()
            first.end.set()

        assert "request bodies take 3 MiB together" in other.outcome
        assert first.outcome == f"{3 * MIB + 2}"
        assert room.held_bytes == 0


async def test_body_that_gives_way_as_its_end_comes_is_refused(tmp_path: Path) -> None:
    """What it holds is no longer counted, so that it may not be kept."""
    room = _room(tmp_path, max_bodies_bytes=6 * MIB, patience_s=0.0)
    first, other = (_Client(room, part_bytes=3 * MIB + 1) for _ in range(2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.run)
        await anyio.wait_all_tasks_blocked()
        for client in (other, first):
            client.go_on.set()
            client.end.set()
        await other.run()

    assert "others needed its room" in first.outcome
    assert other.outcome == f"{3 * MIB + 2}"
    assert room.held_bytes == 0
