"""Bring files of the disk into kvsup's own store: linked or copied, hashed as they lie there."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from anyio import from_thread, to_thread

from kvsup.errors import KvsupError
from kvsup.runtime.ownstore import OwnStore
from kvsup.stores.manifest import Blob

Told = Callable[[int], None]
"""Takes the bytes that are done so far."""

_STEP_BYTES = 32 << 20
_READ_BYTES = 1 << 20
_NO_REFERENCE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
"""What tells that the kernel does not copy between two files by itself."""


class OtherFileError(KvsupError):
    """A file is not what its name says."""


async def copy_in(store: OwnStore, source: Path, told: Told) -> Blob:
    """Copy a file into the store; where the file system can, no byte is written twice.

    Raises:
        KvsupError: it cannot be read, or the store not be written.
    """
    return await _bring(store, source, None, _copy, told)


async def link_in(store: OwnStore, source: Path, blob: Blob, told: Told) -> Blob:
    """Bring the file of another store, under a second name where it lies on the same disk.

    Raises:
        OtherFileError: it is not ``blob``.
        KvsupError: it cannot be read, or the store not be written.
    """
    return await _bring(store, source, blob, _link, told)


def digest_of(path: Path, told: Told) -> str:
    """Return the SHA-256 of a file; ``told`` may raise, which ends it.

    Raises:
        OSError: it cannot be read.
    """
    sha256, n_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            sha256.update(piece)
            n_bytes += len(piece)
            told(n_bytes)
    return sha256.hexdigest()


async def _bring(
    store: OwnStore,
    source: Path,
    expected: Blob | None,
    put: Callable[[Path, Path, Told], None],
    told: Told,
) -> Blob:
    beside = store.incoming / f"file-{os.urandom(8).hex()}"

    def bring() -> Blob:
        def checked(n_bytes: int) -> None:
            from_thread.check_cancelled()
            from_thread.run_sync(told, n_bytes)

        held = store.hold()
        try:
            if put is _copy:
                store.check_room(source.stat().st_size)
            put(source, beside, checked)
            digest = digest_of(beside, lambda _n_bytes: from_thread.check_cancelled())
            blob = Blob(digest, beside.stat().st_size)
            if expected is not None and blob != expected:
                raise OtherFileError(f"{source} is not what its name says; fetch it again")
            store.place(beside, blob)
        except OSError as error:
            raise KvsupError(f"{source} cannot be brought into {store.root}: {error}") from error
        finally:
            beside.unlink(missing_ok=True)
            held.close()
        return blob

    return await to_thread.run_sync(bring)


def _link(source: Path, target: Path, told: Told) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file of another user (fs.protected_hardlinks)
        _copy(source, target, told)


def _copy(source: Path, target: Path, told: Told) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        n_bytes = 0
        while n_copied := _copied(read.fileno(), written.fileno(), n_bytes):
            n_bytes += n_copied
            told(n_bytes)
    target.chmod(0o644)


def _copied(source: int, target: int, offset: int) -> int:
    """Copy some bytes from ``offset`` on, and return how many; 0 at the end."""
    try:
        return os.copy_file_range(source, target, _STEP_BYTES, offset, offset)
    except OSError as error:
        if error.errno not in _NO_REFERENCE:
            raise
    return os.pwrite(target, os.pread(source, _STEP_BYTES, offset), offset)
