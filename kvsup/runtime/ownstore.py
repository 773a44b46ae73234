"""kvsup's own store of models, in Ollama's layout, so that one folder can serve both.

A model is there once its manifest is, and that comes last, when all of its files lie whole on the
disk. What is still on its way lies in ``kvsup/`` beside ``blobs`` and ``manifests``: whatever is in
``blobs`` and in no manifest Ollama deletes at its start (server/routes.go, 2026-08).

Files go only while nobody fills the store: whoever brings a model holds a shared lock until its
manifest is there, and what would delete needs that lock alone, or leaves it for another time.
"""

import fcntl
import hashlib
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kvsup.errors import CapacityError, KvsupError
from kvsup.runtime.ollamastore import OllamaStore
from kvsup.runtime.storefiles import files_in, folders_in
from kvsup.stores.manifest import Blob, blob_of, decode_manifest
from kvsup.stores.references import OllamaName
from kvsup.units import format_bytes

_OWN = "kvsup"
_BLOB = re.compile(r"sha256-([0-9a-f]{64})")

_SPARE_BYTES = 64 << 20
"""Of the disk are left free."""

SPARED_S = 3600.0
"""Age below which a file that no manifest names may still be wanted, as Ollama has it."""

RESUMED_S = 7 * 86400.0
"""Age up to which an interrupted download is kept, to go on from."""


class OwnStore(OllamaStore):
    """The one store that kvsup writes to."""

    pull = "kvsup pull"

    @property
    def incoming(self) -> Path:
        """Return the folder of what is on its way, on the same disk; ``make`` makes it."""
        return self.root / _OWN / "incoming"

    @property
    def _parts(self) -> Path:
        return self.root / _OWN / "parts"

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

    def hold(self) -> BinaryIO:
        """Hold every file where it is, for as long as what is returned is open.

        Raises:
            KvsupError: the store cannot be written.
        """
        self.make()
        with self._told():
            return self._lock(fcntl.LOCK_SH)

    def has_digest(self, digest: str) -> bool:
        """Say whether a file is there that hashes to ``digest``, 64 hex digits."""
        return self.blob_path(Blob(digest, 0)).is_file()

    def partial_bytes(self, blob: Blob) -> int:
        """Return what an interrupted download has taken of the disk."""
        try:
            return (self.incoming / blob.file_name).stat().st_blocks * 512
        except OSError:
            return 0

    def check_room(self, needed_bytes: int) -> None:
        """Raise CapacityError where the disk has no room for so many bytes more."""
        free_bytes = shutil.disk_usage(self.root).free
        if needed_bytes + _SPARE_BYTES > free_bytes:
            raise CapacityError(
                f"{format_bytes(needed_bytes)} do not fit: {format_bytes(free_bytes)} are free at"
                f" {self.root}; make room, or name another disk in models_dir"
            )

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
        """Write a manifest, by which the model is there, in the place of one of that name.

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

    def remove(self, name: OllamaName) -> None:
        """Remove a model, and of its files those that no other has.

        Raises:
            KvsupError: it cannot be removed.
        """
        path = self.manifest_path(name)
        try:
            data = self.manifest_data(name)
        except ValueError as error:
            raise KvsupError(str(error)) from error
        with self._told():
            path.unlink(missing_ok=True)
            _sync(path.parent)
            for folder in list(path.parents)[:3]:
                with suppress(OSError):
                    folder.rmdir()
        self.let_go(data)

    def let_go(self, manifest: bytes | None) -> None:
        """Delete the files of a manifest that no other names, or leave them to ``collect``."""
        with suppress(BlockingIOError, ValueError), self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            files = decode_manifest(manifest or b"").files()
            named = self._named()
            for blob in files:
                if named is not None and blob.digest not in named:
                    self.blob_path(blob).unlink(missing_ok=True)

    def joined(self, parts: Sequence[Path]) -> Path:
        """Return the first of some links to the parts of a split model, as declared.

        llama-server finds the parts by their names (llama_split_path of llama.h, b11434).
        """
        digests = "\0".join(path.name for path in parts)
        folder = self._parts / hashlib.sha256(digests.encode()).hexdigest()[:32]
        links = [folder / f"model-{n:05}-of-{len(parts):05}.gguf" for n in range(1, len(parts) + 1)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for link, file in zip(links, parts, strict=True):
                with suppress(FileExistsError):
                    link.symlink_to(os.path.relpath(file, folder))
        except OSError as error:
            raise ValueError(f"{folder} cannot be made: {error.strerror}") from None
        return links[0]

    def collect(self, now_s: float | None = None) -> int:
        """Delete what nobody needs any more, unless somebody fills the store; return its bytes.

        That are files that no manifest names, after an hour, downloads that were interrupted, after
        a week, and other files whose writer was killed.
        """
        now_s, freed_bytes = time.time() if now_s is None else now_s, 0
        if not self.incoming.is_dir():
            return 0
        with suppress(BlockingIOError, OSError), self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            named = self._named()
            for path in files_in(self.root / "blobs"):
                match = _BLOB.fullmatch(path.name)
                if match and named is not None and match[1] not in named:
                    freed_bytes += _removed(path, now_s - SPARED_S)
            for path in files_in(self.incoming):
                is_resumed = path.name.startswith("sha256-")
                freed_bytes += _removed(path, now_s - RESUMED_S if is_resumed else math.inf)
            for folder in folders_in(self._parts):
                if not all(link.exists() for link in files_in(folder)):
                    shutil.rmtree(folder)
        return freed_bytes

    def _named(self) -> set[str] | None:
        """Return the digests of all manifests; None where one cannot be read: it may name any."""
        try:
            manifests = [decode_manifest(self.manifest_data(name)) for name in self.names()]
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
