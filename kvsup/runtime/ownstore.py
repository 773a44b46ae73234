"""kvsup's own store of models, in Ollama's layout, so that one folder can serve both.

A model is there once its manifest is, and that comes last, when all of its files lie whole on the
disk. What is still on its way lies in ``kvsup/`` beside ``blobs`` and ``manifests``: whatever is in
``blobs`` and in no manifest Ollama deletes at its start (server/routes.go, 2026-08).

Files go only while nobody fills the store: whoever brings a model holds a shared lock until its
manifest is there, and what would delete needs that lock alone, or leaves it for another time.
"""

import fcntl
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread

from kvsup.errors import KvsupError
from kvsup.runtime.ollamastore import OllamaStore, shown_name
from kvsup.runtime.storefiles import files_in, read_small
from kvsup.stores.manifest import MAX_MANIFEST_BYTES, Blob, Manifest, blob_of, decode_manifest
from kvsup.stores.references import OllamaName

_OWN = "kvsup"
_BLOB = re.compile(r"sha256-([0-9a-f]{64})")

SPARED_S = 3600.0
"""Age below which a file that no manifest names may still be wanted, as Ollama has it."""

RESUMED_S = 7 * 86400.0
"""Age up to which an interrupted download is kept, to go on from."""


class OwnStore(OllamaStore):
    """The one store that kvsup writes to."""

    @property
    def incoming(self) -> Path:
        """Return the folder of what is on its way, on the same disk; ``make`` makes it."""
        return self.root / _OWN / "incoming"

    def make(self) -> None:
        """Make the folders.

        Raises:
            KvsupError: they cannot be made.
        """
        try:
            for folder in (self.root / "blobs", self.root / "manifests", self.incoming):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"{self.root} cannot be written: {error.strerror}"
            raise KvsupError(f"{why}; name another folder in models_dir") from error

    @asynccontextmanager
    async def filling(self) -> AsyncIterator[None]:
        """Hold every file where it is, until the manifest that names it is written.

        Raises:
            KvsupError: the store cannot be written.
        """
        self.make()
        with await to_thread.run_sync(self._lock, fcntl.LOCK_SH):
            yield

    def has(self, blob: Blob) -> bool:
        """Say whether a file is there in its full length; what it holds was checked as it came."""
        try:
            return self.blob_path(blob).stat().st_size == blob.size_bytes
        except OSError:
            return False

    def place(self, path: Path, blob: Blob) -> None:
        """Give a file of ``incoming``, which was found to be ``blob``, its name.

        Raises:
            KvsupError: it cannot be written.
        """
        with self._told():
            _sync(path)
            path.replace(self.blob_path(blob))
            _sync(self.root / "blobs")

    def put(self, data: bytes) -> Blob:
        """Store a small file; raises as ``place``."""
        blob = blob_of(data)
        if not self.has(blob):
            with self._told(), self._written(data) as path:
                self.place(path, blob)
        return blob

    def write(self, name: OllamaName, data: bytes) -> None:
        """Write a manifest, by which the model is there; one of that name goes, with its files.

        Raises:
            KvsupError: a file that it names is missing, or it cannot be written.
            ValueError: it is no manifest.
        """
        manifest = decode_manifest(data)
        for blob in manifest.files():
            if not self.has(blob):
                raise KvsupError(f"{self.blob_path(blob)} is gone; do it again")
        name = self.find(name) or name
        path = self.manifest_path(name)
        with self._told(), self._written(data) as written:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sync(written)
            written.replace(path)
            _sync(path.parent)

    def manifest(self, name: OllamaName) -> tuple[Manifest, bytes]:
        """Return the manifest of a model, and as it is written.

        Raises:
            ValueError: it cannot be read.
        """
        data = read_small(self.manifest_path(name), self.root, max_bytes=MAX_MANIFEST_BYTES)
        return decode_manifest(data), data

    def remove(self, name: OllamaName) -> None:
        """Remove a model, and of its files those that no other has.

        Raises:
            KvsupError: it cannot be removed.
        """
        files: list[Blob] = []
        with suppress(ValueError):
            files += self.manifest(name)[0].files()
        path = self.manifest_path(name)
        with self._told():
            path.unlink(missing_ok=True)
            _sync(path.parent)
            for folder in list(path.parents)[:3]:
                with suppress(OSError):
                    folder.rmdir()
        self.drop(files)

    def drop(self, files: Iterable[Blob]) -> None:
        """Delete those of ``files`` that no manifest names, or leave them to ``collect``."""
        with suppress(BlockingIOError), self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            named = self._named()
            for blob in files:
                if named is not None and blob.digest not in named:
                    self.blob_path(blob).unlink(missing_ok=True)

    def collect(self, now_s: float | None = None) -> int:
        """Delete what nobody needs any more, unless somebody fills the store; return its bytes.

        That are files that no manifest names, after an hour, and downloads that were interrupted,
        after a week.
        """
        now_s, freed_bytes = time.time() if now_s is None else now_s, 0
        if not self.is_there():
            return 0
        with suppress(BlockingIOError, OSError), self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            named = self._named()
            for path in files_in(self.root / "blobs"):
                match = _BLOB.fullmatch(path.name)
                if match and named is not None and match[1] not in named:
                    freed_bytes += _removed(path, now_s - SPARED_S)
            for path in files_in(self.incoming):
                freed_bytes += _removed(path, now_s - RESUMED_S)
        return freed_bytes

    def _named(self) -> set[str] | None:
        """Return the digests of all manifests; None where one cannot be read: it may name any."""
        try:
            manifests = [self.manifest(name)[0] for name in self.names()]
        except ValueError:
            return None
        return {blob.digest for manifest in manifests for blob in manifest.files()}

    @contextmanager
    def _written(self, data: bytes) -> Iterator[Path]:
        handle, name = tempfile.mkstemp(dir=self.incoming, prefix="small-")
        path = Path(name)
        try:
            with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor, no path
                file.write(data)
            path.chmod(0o644)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _lock(self, kind: int) -> BinaryIO:
        """Return the lock of the store, held until it is closed.

        Raises:
            BlockingIOError: it is not free, and ``kind`` says not to wait.
        """
        file = (self.root / _OWN / "lock").open("ab")
        try:
            fcntl.flock(file, kind)
        except BaseException:
            file.close()
            raise
        return file

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KvsupError(f"{self.root} cannot be written: {error}") from error


def described(name: OllamaName) -> str:
    """Return a model of the store as a TOML file names it."""
    return f"ollama:{shown_name(name)}"


def _removed(path: Path, before_s: float) -> int:
    """Delete a file that is older, and return its bytes."""
    try:
        status = path.lstat()
        if status.st_mtime >= before_s:
            return 0
        path.unlink()
    except OSError:
        return 0
    return status.st_size


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
