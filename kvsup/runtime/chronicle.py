"""Keeps what happened to each model: in memory at once, on disk by a task of its own.

``note`` costs the event loop a few microseconds; files are written in a thread. Where the disk does
not take them, history goes on in memory, which is said once, and is written when the disk does.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskStatus

from kvsup import events
from kvsup.history import Record, record_of
from kvsup.runtime.historyfiles import MAX_RECORDS, HistoryFiles, kept

logger = logging.getLogger(__name__)

_MAX_DOCUMENTS = 32
"""That wait to be written; a storm of deaths drops the oldest."""

_Books = dict[str | None, deque[Record]]
_Document = tuple[str, msgspec.Struct, float]


class Chronicle:
    """The history of one kvsup; every method runs on the event loop's thread."""

    def __init__(
        self, files: HistoryFiles, *, version: str, emit: Callable[[events.Event], None]
    ) -> None:
        """Read what is kept.

        Args:
            files: where it is kept.
            version: kvsup's own.
            emit: takes ``events.Evidence`` once a file is written.
        """
        self._files = files
        self._version = version
        self._emit = emit
        self._books: _Books = {}
        files.sweep(now_s=time.time())
        for model, records in files.read(now_s=time.time()).items():
            self._books[model] = deque(records, MAX_RECORDS)
        self._unwritten: _Books = {}
        self._documents: list[_Document] = []
        self._news = anyio.Event()
        self._is_failing = False
        self._one_at_a_time = anyio.CapacityLimiter(1)

    def note(self, event: events.Event) -> None:
        """Take up what happens now."""
        record = record_of(event, at_s=time.time())
        for books in (self._books, self._unwritten):
            books.setdefault(record.model, deque(maxlen=MAX_RECORDS)).append(record)
        self._news.set()

    def keep(self, model: str, document: msgspec.Struct) -> None:
        """Keep what is known of an end of ``model``; ``events.Evidence`` tells where."""
        self._documents.append((model, document, time.time()))
        del self._documents[:-_MAX_DOCUMENTS]
        self._news.set()

    def models(self) -> list[str]:
        """Return the names of all models of which something is kept."""
        return [model for model in self._books if model is not None]

    def of(self, model: str) -> list[Record]:
        """Return what is kept of ``model`` and of kvsup itself."""
        return self._kept(model) + self._kept(None)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Write what is noted, until it is cancelled; then the rest."""
        self.note(events.Began(os.getpid(), self._version))
        task_status.started()
        try:
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                await self._write()
        finally:
            self.note(events.Ended(os.getpid()))
            await self._write()

    async def _write(self) -> None:
        """Write what is new. A model whose file failed is written anew, as a whole, next time."""
        unwritten, self._unwritten = self._unwritten, {}
        documents, self._documents = self._documents, []
        batch = [(model, list(new), self._kept(model)) for model, new in unwritten.items()]
        # A cancel before the thread begins would lose the batch; later it is waited for anyway.
        try:
            with anyio.CancelScope(shield=True):
                done = await anyio.to_thread.run_sync(
                    _write_all, self._files, batch, documents, limiter=self._one_at_a_time
                )
        except RuntimeError as error:  # no thread can be started: all of it next time
            self._say(error)
            self._documents = [*documents, *self._documents][-_MAX_DOCUMENTS:]
            for model, new in unwritten.items():
                later = self._unwritten.get(model, ())
                self._unwritten[model] = deque([*new, *later], MAX_RECORDS)
            return
        for model in done.failed:
            self._unwritten.setdefault(model, deque(maxlen=MAX_RECORDS))
        self._say(done.error)
        for event in done.evidence:
            self._emit(event)

    def _kept(self, model: str | None) -> list[Record]:
        return kept(list(self._books.get(model, ())), now_s=time.time())

    def _say(self, error: Exception | None) -> None:
        if error is not None and not self._is_failing:
            logger.warning(
                "history cannot be written: %s; it goes on in memory until there is space, or the"
                " folder can be written to",
                error,
            )
        elif error is None and self._is_failing:
            logger.info("history is written again")
        self._is_failing = error is not None


@dataclass(slots=True)
class _Done:
    """What a write brought about."""

    evidence: list[events.Evidence] = field(default_factory=list)
    failed: list[str | None] = field(default_factory=list)
    error: Exception | None = None


def _write_all(
    files: HistoryFiles,
    batch: Sequence[tuple[str | None, list[Record], list[Record]]],
    documents: Sequence[_Document],
) -> _Done:
    done = _Done()

    @contextmanager
    def noting(model: str | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - history never ends what it tells of
            done.error = error
            done.failed.append(model)

    for model, document, at_s in documents:
        with noting(model):
            path = files.keep_evidence(model, document, at_s=at_s)
            done.evidence.append(events.Evidence(model, str(path)))
    for own, new, everything in batch:
        with noting(own):
            files.append(own, new, everything)
    return done
