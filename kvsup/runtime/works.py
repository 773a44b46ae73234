"""Long works that clients follow line by line: pulling, pushing and creating models.

Equal works are one. A client that leaves ends it only if nobody else follows it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
from anyio.abc import TaskGroup, TaskStatus

from kvsup.errors import KvsupError

INTERVAL_S = 0.06
"""Between two lines of progress, as Ollama has it (server/download.go, 2026-08)."""

Line = dict[str, str | int]
"""A line of Ollama's: ``status``; where there are bytes ``digest``, ``total``, ``completed``."""

Job = Callable[["Work"], Awaitable[None]]


class Work:
    """One work, as it is told."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.n_followers = 0
        self._lines: list[Line] = []
        self._error: BaseException | None = None
        self._is_over = False
        self._news = anyio.Event()

    def say(
        self, status: str, *, digest: str = "", total: int | None = None, completed: int = 0
    ) -> None:
        """Tell what is done now; more of the same takes the place of the line before.

        Args:
            status: what.
            digest: the file that it is done with, ``sha256:…``.
            total: its bytes.
            completed: how many of them are done.
        """
        line: Line = {"status": status}
        if digest:
            line["digest"] = digest
        if total is not None:
            line["total"] = total
        if completed:
            line["completed"] = completed
        last = self._lines[-1] if self._lines else {}
        if (last.get("status"), last.get("digest")) == (status, line.get("digest")):
            self._lines[-1] = line
        else:
            self._lines.append(line)
        self._tell()

    def progress(self, status: str, digest: str, total: int) -> Callable[[int], None]:
        """Return what tells how many bytes of ``total`` are done."""

        def told(n_bytes: int) -> None:
            self.say(status, digest=digest, total=total, completed=n_bytes)

        return told

    def end(self, error: BaseException | None) -> None:
        """Tell that it is over, and what went wrong."""
        self._is_over, self._error = True, error
        self._tell()

    async def lines(self) -> AsyncIterator[Line]:
        """Yield the lines from the first on, each as it is when there is time for it.

        Raises:
            KvsupError: the work failed.
        """
        n_told, last = 0, None
        while True:
            news, is_over = self._news, self._is_over
            if n_told and self._lines[n_told - 1] is not last:
                yield (last := self._lines[n_told - 1])
            while n_told < len(self._lines):
                n_told += 1
                yield (last := self._lines[n_told - 1])
            if is_over:
                break
            await news.wait()
            await anyio.sleep(0 if self._is_over else INTERVAL_S)
        if self._error is not None:
            raise self._error

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


class Works:
    """Those that are being done."""

    def __init__(self) -> None:
        self._running: dict[object, Work] = {}
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Do what is asked for, until it is cancelled."""
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            await anyio.sleep_forever()

    @contextmanager
    def joined(self, key: object, job: Job) -> Iterator[Work]:
        """Give the work that goes by ``key``; ``job`` is begun where there is none."""
        work = self._running.get(key)
        if work is None:
            if self._tasks is None:
                raise KvsupError("kvsup has not started yet")
            work = self._running[key] = Work()
            self._tasks.start_soon(self._do, key, work, job)
        work.n_followers += 1
        try:
            yield work
        finally:
            work.n_followers -= 1
            if not work.n_followers:
                self._forget(key, work)
                work.scope.cancel()

    async def _do(self, key: object, work: Work, job: Job) -> None:
        error: BaseException | None = KvsupError("it was ended")
        try:
            with work.scope:
                await job(work)
                error = None
        except Exception as failed:  # noqa: BLE001 - its followers tell it, a bug as any other
            error = failed
        finally:
            self._forget(key, work)
            work.end(error)

    def _forget(self, key: object, work: Work) -> None:
        if self._running.get(key) is work:
            del self._running[key]
