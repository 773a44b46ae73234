"""A file that is being fetched: its bytes, and a journal of which of them are there.

The journal says only what is safe on the disk, one line a piece, so whatever a kill or a power cut
leaves can be gone on from. Whoever writes holds a lock on the file; another process waits for it.
"""

import fcntl
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio import to_thread

from kvsup.runtime.ownstore import OwnStore
from kvsup.stores.manifest import Blob

_LINE = re.compile(r"(\d{1,20})-(\d{1,20})\n")
_WAIT_S = 0.2

Span = tuple[int, int]
"""First byte, and the one behind the last."""


class Partial:
    """One such file, open and locked."""

    def __init__(self, path: Path, journal: Path, blob: Blob, file: int) -> None:
        self.path = path
        self._journal = journal
        self._blob = blob
        self._file = file
        self._done = self._read()

    @property
    def n_done_bytes(self) -> int:
        """Return how many bytes are there."""
        return sum(end - start for start, end in self._done)

    def missing(self, most_bytes: int) -> Iterator[Span]:
        """Yield what is not there, in spans of ``most_bytes`` at most."""
        at = 0
        for start, end in (*self._done, (self._blob.size_bytes, self._blob.size_bytes)):
            while at < start:
                yield at, min(start, at + most_bytes)
                at = min(start, at + most_bytes)
            at = max(at, end)

    def first_missing(self, start: int, end: int) -> int:
        """Return the first byte from ``start`` on that is not there; ``end`` if all are."""
        for done_start, done_end in self._done:
            if done_start <= start < done_end:
                start = done_end
        return min(start, end)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes where they belong; they do not count before ``keep``."""
        rest = memoryview(data)
        while rest:
            n_written = os.pwrite(self._file, rest, offset)
            offset, rest = offset + n_written, rest[n_written:]

    async def keep(self, span: Span) -> None:
        """Note that the bytes of a span are there, once they are safe."""
        await to_thread.run_sync(self._write_down, span)
        self._done = _merged([*self._done, span])

    def forget(self) -> None:
        """Let go of all bytes."""
        self._journal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def end(self) -> None:
        """Remove the journal of a file that has got its place."""
        self._journal.unlink(missing_ok=True)

    def _write_down(self, span: Span) -> None:
        os.fdatasync(self._file)
        with self._journal.open("a", encoding="ascii") as journal:
            journal.write(f"{span[0]}-{span[1]}\n")

    def _read(self) -> list[Span]:
        size_bytes = os.fstat(self._file).st_size
        text = ""
        with suppress(OSError, ValueError):
            text = self._journal.read_text("ascii")
        spans = [(int(m[1]), int(m[2])) for m in _LINE.finditer(text)]
        good = [s for s in spans if s[0] < s[1] <= min(size_bytes, self._blob.size_bytes)]
        return _merged(good)


@asynccontextmanager
async def partial_of(store: OwnStore, blob: Blob) -> AsyncIterator[Partial | None]:
    """Give the file of ``blob`` while it is fetched; None where it has come meanwhile.

    Raises:
        OSError: it cannot be opened.
    """
    path = store.incoming / blob.file_name
    while not store.has(blob):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if _is_locked(file) and _is_at(file, path):
                yield Partial(path, path.with_name(f"{path.name}.done"), blob, file)
                return
        finally:
            os.close(file)
        await anyio.sleep(_WAIT_S)
    yield None


def _is_locked(file: int) -> bool:
    """Lock a file; return whether that could be had."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Say whether an open file is still at ``path``: another may have given it its place."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
