"""Ollama's endpoints that fetch, send and make models, with their lines of progress."""

from contextlib import AbstractContextManager

from kvsup.api.exchange import NDJSON, Body, Exchange
from kvsup.errors import RequestError
from kvsup.ollama.names import valid_name
from kvsup.ollama.ndjson import encode
from kvsup.ollama.storerequests import decode_create, decode_transfer
from kvsup.runtime.modelworks import ModelWorks
from kvsup.runtime.uploads import uploading
from kvsup.runtime.works import Line, Work
from kvsup.stores.manifest import digest_in

_PLAIN_JSON = b"application/json"
"""Without a charset, as Ollama has it where it keeps the last line of a stream."""


class StoreHandlers:
    """What is done with the models of kvsup's own store."""

    def __init__(self, works: ModelWorks) -> None:
        self._works = works

    async def pull(self, exchange: Exchange) -> None:
        """Answer ``POST /api/pull``."""
        request = decode_transfer(exchange.body)
        if not valid_name(request.model):
            raise RequestError("invalid model name")
        working = self._works.pull(request.model, is_insecure=request.insecure)
        await _told(exchange, working, is_stream=request.stream)

    async def push(self, exchange: Exchange) -> None:
        """Answer ``POST /api/push``."""
        request = decode_transfer(exchange.body)
        if not request.model:
            raise RequestError("model is required")
        working = self._works.push(request.model, is_insecure=request.insecure)
        await _told(exchange, working, is_stream=request.stream)

    async def create(self, exchange: Exchange) -> None:
        """Answer ``POST /api/create``."""
        request = decode_create(exchange.body)
        await _told(exchange, self._works.create(request), is_stream=request.stream)

    async def blob(self, exchange: Exchange, body: Body) -> None:
        """Answer ``/api/blobs/DIGEST``: say whether a file is here, or keep it for a creation."""
        digest = digest_in(exchange.request.path_params["digest"].lower())
        if digest is None:
            raise RequestError("invalid digest format")
        is_here = self._works.store.has_digest(digest)
        if exchange.request.method == "HEAD":
            await exchange.answer_empty(status=200 if is_here else 404)
        elif is_here:
            while await body.next():  # no client hears an answer before it has said all
                pass
            await exchange.answer_empty()
        else:
            await self._take(exchange, body, digest)

    async def _take(self, exchange: Exchange, body: Body, digest: str) -> None:
        length = exchange.request.headers.get("content-length", "")
        size_bytes = int(length) if length.isdecimal() else None
        try:
            async with uploading(self._works.store, size_bytes=size_bytes) as upload:
                while piece := await body.next():
                    await upload.write(piece)
                await upload.finish(digest)
        except ConnectionError:
            return
        await exchange.answer_empty(status=201)


async def _told(
    exchange: Exchange, working: AbstractContextManager[Work], *, is_stream: bool
) -> None:
    """Answer with the lines of a work as they come, or with the last one alone."""
    line: Line = {}
    with working as work:
        async for line in work.lines():
            if is_stream:
                if not exchange.is_started:
                    await exchange.start(NDJSON)
                await exchange.write(encode(line) + b"\n")
    if is_stream:
        await exchange.end()
    else:
        await exchange.answer(encode(line), content_type=_PLAIN_JSON)
