"""The history of models in the state folder: lines of JSON, and evidence beside them.

``STATE/history/NAME-DIGEST.jsonl`` holds the records of one model, ``kvsup.jsonl`` those of kvsup
itself; ``STATE/evidence/NAME-DIGEST/TIME.json`` what was known at an end. All is private to the
user, and bounded. Synchronous: the running kvsup calls it in a thread, the command line as it is.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from kvsup.filenames import file_name
from kvsup.history import Record
from kvsup.runtime.privatefiles import UNFINISHED, make_folder, replace_file, write_all

MAX_RECORDS = 1000
"""Kept of each model, in memory and on disk."""

MAX_AGE_S = 30 * 86400.0
"""Older records are dropped."""

MAX_FILE_BYTES = 512 << 10
"""A file that would grow beyond is written anew with its newer half."""

MAX_EVIDENCE_FILES = 5
"""Kept of each model; the oldest goes first."""

_OWN = "kvsup"
"""The file of what is about kvsup itself; names of models' files have a digest."""

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Record)


class HistoryFiles:
    """The history below one state folder; only one process writes there, it holds the lock."""

    def __init__(self, state: Path) -> None:
        self._history = state / "history"
        self._evidence = state / "evidence"
        self._to_rewrite: set[Path] = set()
        """Files that end in a torn line, or may."""

    def read(self, *, now_s: float) -> dict[str | None, list[Record]]:
        """Return every record that is kept, by model and in order; None is kvsup itself.

        A line that cannot be read is skipped: torn by a crash, or of an older kvsup.
        """
        found: dict[str | None, list[Record]] = {}
        with suppress(OSError):
            for path in sorted(self._history.glob("*.jsonl")):
                for record in self._records(path):
                    found.setdefault(record.model, []).append(record)
        return {model: kept(records, now_s=now_s) for model, records in found.items()}

    def sweep(self, *, now_s: float) -> None:
        """Remove what a kill has left unfinished and what is too old; of models long gone, all."""
        with suppress(OSError):
            for path in (*self._history.glob("*"), *self._evidence.glob("*/*")):
                with suppress(OSError):
                    is_old = now_s - path.stat().st_mtime > MAX_AGE_S
                    if is_old or path.suffix == UNFINISHED:
                        path.unlink()
            for folder in self._evidence.glob("*"):
                with suppress(OSError):  # most are not empty
                    folder.rmdir()

    def append(
        self, model: str | None, new: Sequence[Record], everything: Iterable[Record]
    ) -> None:
        """Add ``new`` to a model's file, or write it anew from ``everything`` where it must be.

        Raises:
            OSError: it cannot be written; the next call writes the file anew.
        """
        path = self._path(model)
        data = b"".join(_ENCODER.encode(record) + b"\n" for record in new)
        try:
            make_folder(self._history)
            if path in self._to_rewrite or not _append(path, data):
                self._rewrite(path, everything)
        except OSError:
            self._to_rewrite.add(path)
            raise
        self._to_rewrite.discard(path)

    def keep_evidence(self, model: str, document: object, *, at_s: float) -> Path:
        """Write what was known at an end, drop the oldest of it, and return its path.

        Raises:
            OSError: it cannot be written.
        """
        folder = self._evidence / file_name(model)
        make_folder(self._evidence)
        make_folder(folder)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(at_s))
        path = folder / f"{stamp}.{int(at_s * 1e6) % 1_000_000:06d}.json"
        data = msgspec.json.format(msgspec.json.encode(document), indent=1)
        replace_file(path, data)
        for old in sorted(folder.glob("*.json"))[:-MAX_EVIDENCE_FILES]:
            old.unlink(missing_ok=True)
        return path

    def _records(self, path: Path) -> list[Record]:
        try:
            data = path.read_bytes()
        except OSError:
            return []
        records = [record for line in data.splitlines() if (record := _decoded(line)) is not None]
        if len(records) < data.count(b"\n") or not data.endswith(b"\n"):
            self._to_rewrite.add(path)
        return records

    def _rewrite(self, path: Path, records: Iterable[Record]) -> None:
        lines = [_ENCODER.encode(record) + b"\n" for record in records]
        size_bytes = sum(map(len, lines))
        for first, line in enumerate(lines):
            if size_bytes <= MAX_FILE_BYTES // 2:
                replace_file(path, b"".join(lines[first:]))
                return
            size_bytes -= len(line)
        replace_file(path, b"")

    def _path(self, model: str | None) -> Path:
        return self._history / f"{_OWN if model is None else file_name(model)}.jsonl"


def kept(records: Sequence[Record], *, now_s: float) -> list[Record]:
    """Return the newest ``MAX_RECORDS`` of ``records`` that are not too old."""
    return [r for r in records[-MAX_RECORDS:] if now_s - r.at_s <= MAX_AGE_S]


def _decoded(line: bytes) -> Record | None:
    try:
        return _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _append(path: Path, data: bytes) -> bool:
    """Append to a file, mode 0600; return False where it would be too large then."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(file).st_size + len(data) > MAX_FILE_BYTES:
            return False
        write_all(file, data)
        return True
    finally:
        os.close(file)
