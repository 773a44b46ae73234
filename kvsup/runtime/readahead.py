"""Reads the weights of the next model into the page cache while it waits for its place.

One model at a time: the first in the queue that is not loaded. ``posix_fadvise`` with ``WILLNEED``
queues no more of a file than the read-ahead of its disk (``force_page_cache_readahead`` of Linux;
with 6.18 here 8 of 241 MiB), and calls for each part queue without a bound and cannot be taken
back. So a thread reads it, step by step.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import anyio.to_thread

from kvsup.hostconfig import HostConfig
from kvsup.plan import Plan
from kvsup.readahead import readable_bytes
from kvsup.residency import RAM
from kvsup.runtime.host import is_on_network, memory_available_bytes
from kvsup.runtime.instance import Instance
from kvsup.runtime.news import News
from kvsup.units import format_bytes

logger = logging.getLogger(__name__)

_STEP_BYTES = 16 << 20
"""After so much it is looked whether there is still room, and someone who waits."""

_BUFFER_BYTES = 1 << 20


class ReadAhead:
    """What is read ahead, by one task; ``want`` says of which plan."""

    def __init__(self, loaded: Mapping[str, Instance], *, host: Callable[[], HostConfig]) -> None:
        """Read beside what is ``loaded``, and leave the ``memory_headroom`` of ``host``."""
        self._loaded = loaded
        self._host = host
        self._wanted: Plan | None = None
        self._news = News()

    def want(self, waiting: Iterable[Instance]) -> None:
        """Read for the first of ``waiting`` that is not loaded, and for nobody else any more."""
        first = next((i.plan for i in waiting if i.key not in self._loaded), None)
        if (first and first.key) != (self._wanted and self._wanted.key):
            self._wanted = first
            self._news.tell()

    async def run(self) -> None:
        """Read for whoever waits, until it is cancelled."""
        while True:
            plan, started_s = self._wanted, time.monotonic()
            if plan is not None:
                n_bytes = await self._read(plan)
                took_s = time.monotonic() - started_s
                size = format_bytes(n_bytes)
                logger.debug("%s: read %s of its weights ahead in %.1f s", plan.name, size, took_s)
            while self._wanted is plan:
                await self._news.wait()

    async def _read(self, plan: Plan) -> int:
        """Read the files of ``plan`` while it is wanted and there is room; return the bytes."""
        n_bytes = 0
        try:
            mapped = {path for i in self._loaded.values() for path, _ in i.plan.file.parts}
            files = await anyio.to_thread.run_sync(_local_files, plan, mapped)
            file_bytes = sum(size_bytes for _, size_bytes in files)
            for path, size_bytes in files:
                for offset in range(0, size_bytes, _STEP_BYTES):
                    until_bytes = n_bytes + min(_STEP_BYTES, size_bytes - offset)
                    if self._wanted is not plan or until_bytes > self._readable_bytes(file_bytes):
                        return n_bytes
                    n_bytes += await anyio.to_thread.run_sync(
                        _read_step, path, offset, abandon_on_cancel=True
                    )
        except OSError as error:  # the load will tell it better
            logger.debug("%s: not read ahead: %s", plan.name, error)
        return n_bytes

    def _readable_bytes(self, file_bytes: int) -> int:
        serving = [i for i in self._loaded.values() if i.leases or not i.is_leaving]
        return readable_bytes(
            file_bytes=file_bytes,
            available_bytes=memory_available_bytes(),
            headroom_bytes=self._host().memory_headroom_bytes,
            kept_bytes=sum(max(0, i.size_by_device.get(RAM, 0) - i.private_bytes) for i in serving),
        )


def _local_files(plan: Plan, mapped: AbstractSet[str]) -> list[tuple[Path, int]]:
    """Return the files that ``plan`` loads from this machine's disks, with their sizes.

    Those in ``mapped`` are in memory already.

    Raises:
        OSError: one of them is gone.
    """
    named = [path for path, _ in plan.file.parts]
    if plan.model.mmproj is not None:
        named.append(plan.model.mmproj)
    named += plan.model.adapters
    paths = [Path(path) for path in named if path not in mapped]
    remote = {folder for folder in {path.parent for path in paths} if is_on_network(folder)}
    return [(path, path.stat().st_size) for path in paths if path.parent not in remote]


def _read_step(path: Path, offset: int) -> int:
    """Read a step of a file, and return how many bytes there were of it."""
    buffer = bytearray(_BUFFER_BYTES)
    n_bytes = 0
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while n_bytes < _STEP_BYTES and (n := file.readinto(buffer)):
            n_bytes += n
    return n_bytes
