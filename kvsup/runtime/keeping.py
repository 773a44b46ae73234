"""Request bodies kept until their request ends, so that they can be sent again.

A small one stays in memory. A large one lies in a file of the state folder that has no name, mode
0600, so that a queue of long conversations costs disk instead of memory, and nothing is left of it
when kvsup dies. Where the disk is full the body stays in memory, where it counts as any other.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread

from kvsup.errors import KvsupError

logger = logging.getLogger(__name__)

IN_MEMORY_BYTES = 1 << 20
"""Larger bodies go to disk."""


class Kept:
    """One body: read it as often as needed, then close it. Reading a closed one is a bug."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._file: BinaryIO | None = None

    @property
    def is_on_disk(self) -> bool:
        """Say whether the body lies in a file."""
        return self._file is not None

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            KvsupError: the disk does not give it back.
        """
        if self._body is not None:
            return self._body
        assert self._file is not None, "the body has been closed"  # noqa: S101 - the caller's bug
        try:
            return await anyio.to_thread.run_sync(_read, self._file)
        except OSError as error:
            reason = error.strerror or error
            raise KvsupError(
                f"this request was put on disk and cannot be read: {reason}"
            ) from error

    def close(self) -> None:
        """Forget the body; may be called twice."""
        self._body = None
        file, self._file = self._file, None
        if file is not None:
            file.close()

    async def spill(self, folder: Path) -> None:
        """Move the body from memory to a file of ``folder``.

        Raises:
            OSError: it could not be written; it is still in memory.
        """
        body = self._body
        assert body is not None, "the body has been closed"  # noqa: S101 - as above
        with anyio.CancelScope(shield=True):  # the file's owner must see it
            file = await anyio.to_thread.run_sync(_written, body, folder)
        self._file, self._body = file, None


class Keeping:
    """Keeps bodies; the large ones in ``folder``, which exists."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_told = False

    async def keep(self, body: bytes) -> Kept:
        """Return ``body`` kept: on disk where it is large, in memory where the disk fails."""
        kept = Kept(body)
        if len(body) <= IN_MEMORY_BYTES:
            return kept
        try:
            await kept.spill(self._folder)
        except OSError as error:
            if not self._has_told:
                logger.warning(
                    "%s cannot take request bodies (%s); they are kept in memory, which may grow",
                    self._folder,
                    error.strerror or error,
                )
            self._has_told = True
        else:
            self._has_told = False
        return kept


def _written(body: bytes, folder: Path) -> BinaryIO:
    """Return an open file without a name that holds ``body``."""
    file: BinaryIO = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - Kept closes it
    try:
        rest = memoryview(body)
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        file.close()
        raise
    return file


def _read(file: BinaryIO) -> bytes:
    size = os.fstat(file.fileno()).st_size
    parts, at = [], 0
    while at < size and (part := os.pread(file.fileno(), size - at, at)):
        parts.append(part)
        at += len(part)
    if at < size:
        raise OSError(f"only {at} of {size} bytes of a kept request could be read")
    return parts[0] if len(parts) == 1 else b"".join(parts)
