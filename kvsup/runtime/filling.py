"""The time between the first file of a model in a store and its manifest."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread

from kvsup.runtime.ownstore import OwnStore


@asynccontextmanager
async def filling(store: OwnStore) -> AsyncIterator[None]:
    """Hold every file of a store where it is, until the manifest that names it is written.

    Raises:
        KvsupError: the store cannot be written.
    """
    with await to_thread.run_sync(store.hold):
        yield
