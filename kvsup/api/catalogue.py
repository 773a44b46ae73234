"""Ollama's endpoints about which models there are, and those that copy and delete them."""

import time

from kvsup import __version__
from kvsup.api import listing
from kvsup.api.exchange import Exchange
from kvsup.api.naming import not_found_as
from kvsup.errors import RequestError
from kvsup.ollama import catalog
from kvsup.ollama.names import quoted, valid_name, without_source
from kvsup.ollama.ndjson import encode
from kvsup.ollama.storerequests import decode_copy, decode_named
from kvsup.runtime.changes import Changes
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.warming import Store


class CatalogueHandlers:
    """Listings of one fleet, and changes of what it comes from."""

    def __init__(self, fleet: Fleet, changes: Changes, *, kept: Store) -> None:
        self._fleet = fleet
        self._changes = changes
        self._kept = kept

    async def tags(self, exchange: Exchange) -> None:
        """Answer ``GET /api/tags``."""
        entries = [listing.catalog_entry(plan) for plan in self._fleet.plans()]
        await exchange.answer(encode(catalog.tags(entries)))

    async def ps(self, exchange: Exchange) -> None:
        """Answer ``GET /api/ps``."""
        entries = listing.running_entries(
            self._fleet.loaded(), self._kept, now_s=time.monotonic(), now_ns=time.time_ns()
        )
        await exchange.answer(encode(catalog.ps(entries)))

    async def version(self, exchange: Exchange) -> None:
        """Answer ``GET /api/version``."""
        version = {**catalog.version(listing.OLLAMA_VERSION), "kvsup": __version__}
        await exchange.answer(encode(version))

    async def copy(self, exchange: Exchange) -> None:
        """Answer ``POST /api/copy``: the same weights under a second name."""
        request = decode_copy(exchange.body)
        for part, name in (("source", request.source), ("destination", request.destination)):
            if not valid_name(name) or without_source(name) != name:
                raise RequestError(f"{part} {quoted(name)} is invalid")
        with not_found_as(f"model {quoted(request.source)} not found"):
            await self._changes.copy(request.source, request.destination)
        await exchange.answer_empty()

    async def delete(self, exchange: Exchange) -> None:
        """Answer ``DELETE /api/delete``."""
        request = decode_named(exchange.body)
        if not request.model:
            raise RequestError("model is required")
        if not valid_name(request.model):
            raise RequestError(f"name {quoted(request.model)} is invalid")
        await self._changes.delete(request.model)
        await exchange.answer_empty()
