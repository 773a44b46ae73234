"""Long works: what their followers hear, and when they end."""

from collections.abc import AsyncIterator

import anyio
import pytest

from kvsup.errors import KvsupError
from kvsup.runtime import works as module
from kvsup.runtime.works import Line, Work, Works


@pytest.fixture
async def works(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Works]:
    """Return works that are being done."""
    monkeypatch.setattr(module, "INTERVAL_S", 0.0)
    works = Works()
    async with anyio.create_task_group() as tasks:
        await tasks.start(works.run)
        yield works
        tasks.cancel_scope.cancel()


async def _lines(works: Works, key: object, job: module.Job) -> list[Line]:
    with works.joined(key, job) as work:
        return [line async for line in work.lines()]


async def test_each_status_is_heard_and_progress_takes_its_place(works: Works) -> None:
    """Whoever is slow misses bytes, no status; the last line of each has them all."""

    async def job(work: Work) -> None:
        work.say("begin")
        for n_bytes in range(1, 1001):
            work.say("pulling", digest="sha256:a", total=1000, completed=n_bytes)
        work.say("pulling", digest="sha256:b", total=1)
        work.say("end")

    assert await _lines(works, "a", job) == [
        {"status": "begin"},
        {"status": "pulling", "digest": "sha256:a", "total": 1000, "completed": 1000},
        {"status": "pulling", "digest": "sha256:b", "total": 1},
        {"status": "end"},
    ]


async def test_equal_works_are_one(works: Works) -> None:
    """Who comes later hears what was said before; the next one after its end is new."""
    n_begun = 0
    go = anyio.Event()

    async def job(work: Work) -> None:
        nonlocal n_begun
        n_begun += 1
        work.say("first")
        await go.wait()
        work.say("last")

    with works.joined("a", job) as one, works.joined("a", job) as other:
        assert one is other
        go.set()
        first = [line["status"] async for line in one.lines()]
        second = [line["status"] async for line in other.lines()]
    again = await _lines(works, "a", job)

    assert first == second == ["first", "last"]
    assert again[-1] == {"status": "last"}
    assert n_begun == 2


async def test_work_ends_with_its_last_follower(works: Works) -> None:
    """Not with the first that leaves."""
    ended = anyio.Event()

    async def job(work: Work) -> None:
        try:
            work.say("on")
            await anyio.sleep_forever()
        finally:
            ended.set()

    with works.joined("a", job):
        with works.joined("a", job):
            await anyio.wait_all_tasks_blocked()
        await anyio.wait_all_tasks_blocked()
        assert not ended.is_set()
    with anyio.fail_after(5):
        await ended.wait()


async def test_failure_is_heard_by_all(works: Works) -> None:
    """After what was said before; a bug as well."""

    async def job(work: Work) -> None:
        work.say("on")
        raise KvsupError("no")

    async def bug(_work: Work) -> None:
        raise ZeroDivisionError

    with works.joined("a", job) as work:
        lines = work.lines()
        assert await anext(lines) == {"status": "on"}
        with pytest.raises(KvsupError, match="no"):
            await anext(lines)
    with pytest.raises(ZeroDivisionError):
        await _lines(works, "b", bug)

    assert await _lines(works, "c", _quiet) == []


async def _quiet(_work: Work) -> None:
    """Do nothing."""
