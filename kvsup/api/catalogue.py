"""Ollama's endpoints about which models there are, and those that change it."""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from anyio import CancelScope, Lock, to_thread

from kvsup import __version__
from kvsup.api import listing
from kvsup.api.exchange import NDJSON, Exchange
from kvsup.api.naming import not_found_as
from kvsup.errors import ConfigError, ModelNotFound, RequestError, Unsupported
from kvsup.ollama import catalog
from kvsup.ollama.names import quoted, valid_name, without_source
from kvsup.ollama.ndjson import encode
from kvsup.ollama.requests import decode_copy, decode_named
from kvsup.plan import Plan
from kvsup.runtime.catalogue import copy_model, delete_model
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.warming import Store

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")

_PULLED = (b'{"status":"pulling manifest"}\n', b'{"status":"success"}\n')


class CatalogueHandlers:
    """Listings of one fleet, and changes of the files that it comes from."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        folder: Path,
        trash: Path,
        reload: Callable[[], Awaitable[None]],
        kept: Store,
    ) -> None:
        """Change the files of ``folder``; deleted ones go to ``trash``, but what is ``kept``."""
        self._fleet = fleet
        self._kept = kept
        self._folder = folder
        self._trash = trash
        self._reload = reload
        self._changing = Lock()

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
        """Answer ``POST /api/copy``: a further file that serves the same weights."""
        request = decode_copy(exchange.body)
        for part, name in (("source", request.source), ("destination", request.destination)):
            if not valid_name(name) or without_source(name) != name:
                raise RequestError(f"{part} {quoted(name)} is invalid")
        async with self._changed():
            with not_found_as(f"model {quoted(request.source)} not found"):
                source = self._fleet.instance(request.source).plan
            existing = self._plan_of(request.destination)
            written = await to_thread.run_sync(
                partial(
                    copy_model,
                    self._folder,
                    source,
                    request.destination,
                    existing=existing,
                    trash=self._trash,
                )
            )
            try:
                await self._reload()
            except ConfigError:
                if existing is None:
                    written.unlink(missing_ok=True)
                raise
        await exchange.answer_empty()

    async def delete(self, exchange: Exchange) -> None:
        """Answer ``DELETE /api/delete``: the model's file goes to the trash folder."""
        request = decode_named(exchange.body)
        if not request.model:
            raise RequestError("model is required")
        if not valid_name(request.model):
            raise RequestError(f"name {quoted(request.model)} is invalid")
        async with self._changed():
            plan = self._fleet.instance(request.model).plan
            await to_thread.run_sync(
                partial(delete_model, self._folder, plan, request.model, trash=self._trash)
            )
            await self._reload()
            self._kept.files.clear(plan.name)
        await exchange.answer_empty()

    async def pull(self, exchange: Exchange) -> None:
        """Answer ``POST /api/pull``: what is here already needs no pulling."""
        request = decode_named(exchange.body)
        if not valid_name(request.model):
            raise RequestError("invalid model name")
        if self._plan_of(request.model) is None:
            raise Unsupported(
                "kvsup does not pull models yet; download the GGUF file and name it in a TOML file"
                " of the configuration folder"
            )
        if request.stream:
            await exchange.answer(b"".join(_PULLED), content_type=NDJSON)
        else:
            await exchange.answer(_PULLED[-1].strip())

    async def push(self, exchange: Exchange) -> None:
        """Answer ``POST /api/push``."""
        if not decode_named(exchange.body).model:
            raise RequestError("model is required")
        raise Unsupported("kvsup does not push models")

    async def create(self, exchange: Exchange) -> None:
        """Answer ``POST /api/create``."""
        if not valid_name(decode_named(exchange.body).model):
            raise RequestError("invalid model name")
        raise Unsupported(
            "kvsup does not create models from requests yet; write a TOML file in the configuration"
            " folder, or copy a model (POST /api/copy)"
        )

    async def blob(self, exchange: Exchange) -> None:
        """Answer ``/api/blobs/DIGEST``: there is no store of blobs."""
        if not _DIGEST.fullmatch(exchange.request.path_params["digest"]):
            raise RequestError("invalid digest format")
        if exchange.request.method == "HEAD":
            await exchange.answer_empty(status=404)
            return
        raise Unsupported("kvsup takes no blobs yet; put the file in a folder and name it in TOML")

    @asynccontextmanager
    async def _changed(self) -> AsyncIterator[None]:
        """Let one change after the other look, write and take up, whether its client stays or not.

        Beside a broken file nothing is changed.
        """
        async with self._changing:
            await self._reload()
            with CancelScope(shield=True):
                yield

    def _plan_of(self, name: str) -> Plan | None:
        try:
            return self._fleet.instance(name).plan
        except ModelNotFound:
            return None
