"""SHA-256 of model files, each computed once for as long as the file stays the same."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import anyio
import msgspec

from kvsup.runtime.filestamps import Stamp, stamp_of
from kvsup.runtime.remembered import Remembered, key_of

_KIND = "sums"
_PIECE_BYTES = 1 << 20


class _Sum(msgspec.Struct):
    sha256: str


class WeightSums:
    """Sums of files, remembered between runs by device, inode, size and time of writing."""

    def __init__(self, store: Remembered) -> None:
        self._store = store
        self._one_at_a_time = anyio.CapacityLimiter(1)
        """Two at once read a slow disk to and fro."""

    async def of(self, paths: Iterable[str], *, also: Iterable[str] = ()) -> dict[str, str]:
        """Return the sum of each of ``paths``; some seconds for a large one that is new.

        Of ``also`` it is that of those that are files.

        Raises:
            OSError: one cannot be read, or was written while it was.
        """

        def sums() -> dict[str, str]:
            wanted = [*paths, *(path for path in also if Path(path).is_file())]
            return {path: self._sum(Path(path)) for path in dict.fromkeys(wanted)}

        return await anyio.to_thread.run_sync(
            sums, abandon_on_cancel=True, limiter=self._one_at_a_time
        )

    def known(self, path: Path) -> str | None:
        """Return the sum of a file if it was computed before; raises ``OSError`` as ``of``."""
        known = self._store.read(_KIND, key_of(stamp_of(path)), _Sum)
        return known.sha256 if known else None

    def learn(self, path: Path, stamp: Stamp, sha256: str) -> None:
        """Note the sum of a file that was ``stamp`` before it was read, if it still is."""
        if stamp_of(path) == stamp:
            self._store.write(_KIND, key_of(stamp), _Sum(sha256))

    def _sum(self, path: Path) -> str:
        if known := self.known(path):
            return known
        stamp = stamp_of(path)
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
        if stamp_of(path) != stamp:
            raise OSError(f"{path} was written while it was read")
        self._store.write(_KIND, key_of(stamp), _Sum(digest.hexdigest()))
        return digest.hexdigest()
