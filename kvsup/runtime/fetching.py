"""Fetch one file of a model in parallel ranges, and go on where an earlier try ended."""

import re
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio
import httpx
from anyio import from_thread, to_thread

from kvsup.errors import KvsupError
from kvsup.runtime.bringing import digest_of
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.partial import Partial, Span, partial_of
from kvsup.runtime.registry import RegistryError, reason
from kvsup.stores.manifest import Blob

N_CONNECTIONS = 8
PART_BYTES = 32 << 20
"""What one request asks for."""
KEPT_BYTES = 8 << 20
"""After as many bytes of a part the journal has them."""

_READ_BYTES = 1 << 20
_FIRST_BYTES = 1 << 20
"""What the first request asks for, by which the server shows whether it gives ranges at all."""
_MAX_TRIES = 6
_FIRST_WAIT_S = 0.5
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Files(Protocol):
    """Where files come from."""

    def open(self, blob: Blob, start: int, end: int) -> AbstractAsyncContextManager[httpx.Response]:
        """Give the answer to a request for bytes ``start`` to ``end`` (not with it) of a file."""


class FetchError(KvsupError):
    """A file cannot be had."""


class _Again(Exception):  # noqa: N818 - it says what to do
    """It may work another time."""


async def fetch(files: Files, blob: Blob, store: OwnStore, told: Callable[[int], None]) -> None:
    """Have ``blob`` in the store.

    Args:
        files: where it comes from.
        blob: the file.
        store: where it goes; whoever calls holds ``filling``.
        told: takes how many bytes are there.

    Raises:
        FetchError: it cannot be had, or is not what its digest says.
        KvsupError: the store cannot be written.
    """
    try:
        async with partial_of(store, blob) as partial:
            if partial is None:
                return
            await _Fetch(files, blob, partial, told).run()
            digest = await to_thread.run_sync(
                digest_of, partial.path, lambda _n_bytes: from_thread.check_cancelled()
            )
            if digest != blob.digest:
                partial.forget()
                raise FetchError(
                    "digest mismatch, file must be downloaded again: want"
                    f" {blob.oci_digest}, got sha256:{digest}"
                )
            await to_thread.run_sync(store.place, partial.path, blob)
            partial.end()
    except OSError as error:
        raise KvsupError(f"{store.root} cannot be written: {error.strerror}") from error


class _Fetch:
    def __init__(
        self, files: Files, blob: Blob, partial: Partial, told: Callable[[int], None]
    ) -> None:
        self._files = files
        self._blob = blob
        self._partial = partial
        self._told = told
        self._n_bytes = partial.n_done_bytes
        self._gives_ranges = False
        """Whether the server has shown that it does; else the first answer is the whole file."""
        self._n_failed = 0
        """Tries in a row that brought nothing, over all connections."""

    async def run(self) -> None:
        """Fetch what is missing."""
        self._told(self._n_bytes)
        first = next(self._partial.missing(_FIRST_BYTES), None)
        if first is None:
            return
        await self._part(first)
        parts = deque(self._partial.missing(PART_BYTES))

        failed: list[Exception] = []

        async def work() -> None:
            try:
                while parts:
                    await self._part(parts.popleft())
            except (KvsupError, OSError) as error:
                failed.append(error)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for _ in range(min(N_CONNECTIONS, len(parts))):
                tasks.start_soon(work)
        if failed:
            raise failed[0]

    async def _part(self, span: Span) -> None:
        """Fetch a span, however often that has to be tried."""
        start, end = span
        while start < end:
            before = start
            try:
                start = await self._some(start, end)
                continue
            except (_Again, httpx.TransportError) as error:
                why = reason(error) if isinstance(error, httpx.HTTPError) else str(error)
            except RegistryError as error:  # of the token, which is asked for in between
                if not _is_passing(error.status):
                    raise
                why = str(error)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise FetchError(reason(error)) from error
            start = self._partial.first_missing(start, end)
            self._n_failed = 0 if start > before else self._n_failed + 1
            if self._n_failed >= _MAX_TRIES:
                raise FetchError(f"max retries exceeded: {why}")
            await anyio.sleep(_FIRST_WAIT_S * 2 ** min(self._n_failed, 5))

    async def _some(self, start: int, end: int) -> int:
        """Fetch from ``start`` on; return how far it came, which is at least ``end``."""
        async with self._files.open(self._blob, start, end) as response:
            first, last = self._range(response, start, end)
            at = kept = first
            try:
                async for data in response.aiter_raw(_READ_BYTES):
                    if at + len(data) > last:
                        raise FetchError("the registry sends more than its manifest says")
                    await to_thread.run_sync(self._partial.write, at, data)
                    at += len(data)
                    self._n_bytes += len(data)
                    self._told(self._n_bytes)
                    if at - kept >= KEPT_BYTES or at == last:
                        await self._partial.keep((kept, at))
                        kept = at
            finally:
                self._n_bytes -= at - kept
            if at < last:
                raise _Again(f"the answer broke off after {at - first} of {last - first} bytes")
            self._n_failed = 0
        return last

    def _range(self, response: httpx.Response, start: int, end: int) -> Span:
        """Return which bytes an answer brings: those asked for, or all from the first on."""
        status, size_bytes = response.status_code, self._blob.size_bytes
        if _is_passing(status):
            raise _Again(f"the registry answered {status}")
        if status == 404:
            raise FetchError(f"{self._blob.oci_digest}: file does not exist")
        if status == 200 and self._gives_ranges:
            raise _Again("the registry answered with the whole file in the place of a part")
        if status == 200:
            length = response.headers.get("content-length", str(size_bytes))
            if length != str(size_bytes):
                raise FetchError(_changed(length, size_bytes))
            return 0, size_bytes
        match = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if status != 206 or match is None:
            raise FetchError(f"{self._blob.oci_digest}: the registry answered {status}")
        if int(match[3]) != size_bytes:
            raise FetchError(_changed(match[3], size_bytes))
        if (int(match[1]), int(match[2]) + 1) != (start, end):
            raise _Again("the registry answered with other bytes than it was asked for")
        self._gives_ranges = True
        return start, end


def _is_passing(status: int) -> bool:
    """Say whether what was refused with ``status`` may work later; 0: nobody answered."""
    return status in {0, 408, 425, 429} or status >= 500


def _changed(found: str, expected: int) -> str:
    return (
        f"the file has {found[:20]} bytes instead of {expected}: it has changed there; pull again"
    )
