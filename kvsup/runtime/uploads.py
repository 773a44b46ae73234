"""Files that clients send to the store, piece by piece, each checked by its digest."""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread

from kvsup.errors import KvsupError, RequestError
from kvsup.ollama.names import quoted
from kvsup.runtime.filling import filling
from kvsup.runtime.ownstore import OwnStore
from kvsup.stores.manifest import Blob

_WRITE_BYTES = 4 << 20


@asynccontextmanager
async def uploading(store: OwnStore, *, size_bytes: int | None) -> AsyncIterator["Upload"]:
    """Give a file that is to come into a store; nothing of it stays that is not whole.

    Raises:
        CapacityError: the disk has no room for ``size_bytes``, where that is known.
        KvsupError: the store cannot be written.
    """
    async with filling(store):
        store.check_room(size_bytes or 0)
        path = store.incoming / f"file-{os.urandom(8).hex()}"
        try:
            with await to_thread.run_sync(path.open, "xb") as file:
                yield Upload(store, path, file)
        except ConnectionError:  # the client left
            raise
        except OSError as error:
            raise KvsupError(f"{store.root} cannot be written: {error.strerror}") from error
        finally:
            path.unlink(missing_ok=True)


class Upload:
    """One file on its way."""

    def __init__(self, store: OwnStore, path: Path, file: BinaryIO) -> None:
        self._store = store
        self._path = path
        self._file = file
        self._sha256 = hashlib.sha256()
        self._waiting = bytearray()
        self._size_bytes = 0

    async def write(self, data: bytes) -> None:
        """Take a piece; raises ``OSError`` where it cannot be written."""
        self._waiting += data
        if len(self._waiting) >= _WRITE_BYTES:
            await to_thread.run_sync(self._flush)

    async def finish(self, digest: str) -> None:
        """Give it its place in the store, under what it is.

        Raises:
            RequestError: it is not what ``digest``, 64 hex digits, says; it is kept all the same.
            KvsupError: it cannot be written.
        """
        await to_thread.run_sync(self._flush)
        found = self._sha256.hexdigest()
        self._file.close()
        await to_thread.run_sync(self._store.place, self._path, Blob(found, self._size_bytes))
        if found != digest:
            raise RequestError(
                f"digest mismatch, expected {quoted(f'sha256:{digest}')}, got"
                f" {quoted(f'sha256:{found}')}"
            )

    def _flush(self) -> None:
        data, self._waiting = self._waiting, bytearray()
        self._sha256.update(data)
        self._size_bytes += len(data)
        self._file.write(data)
        self._file.flush()
