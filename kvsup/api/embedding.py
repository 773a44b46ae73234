"""``/api/embed`` and the older ``/api/embeddings``: check, lease, embed in parts."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from kvsup.api.exchange import Exchange
from kvsup.api.naming import check_grammar, not_found_as
from kvsup.api.prompting import tokenize
from kvsup.api.relay import ask, leased
from kvsup.errors import EngineError, RequestError
from kvsup.fitting import Asked
from kvsup.ollama import embeddings
from kvsup.ollama.options import load_time_options
from kvsup.ollama.requests import EmbeddingsRequest, EmbedRequest, decode_embed, decode_embeddings
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.instance import Instance


class EmbeddingHandlers:
    """The endpoints that give vectors, on one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def embed(self, exchange: Exchange) -> None:
        """Answer ``POST /api/embed``."""
        started_ns = time.monotonic_ns()
        request = decode_embed(exchange.body)
        check_grammar(request.model)
        texts = request.texts()
        self._check_there(request.model)
        async with self._ready(exchange, request, slots=1 if texts else 0) as instance:
            load_ns = time.monotonic_ns() - started_ns
            vectors: list[bytes] = []
            n_tokens = 0
            for start in range(0, len(texts), embeddings.MAX_INPUTS):
                part = texts[start : start + embeddings.MAX_INPUTS]
                body = await _embed(instance, part, truncate=request.truncate)
                more, n_more = embeddings.read_vectors(body, dimensions=request.dimensions)
                vectors += more
                n_tokens += n_more
        if not texts:
            await exchange.answer(embeddings.embed_done(request.model))
            return
        total_ns = time.monotonic_ns() - started_ns
        reply = embeddings.embed_reply(
            vectors, model=request.model, n_tokens=n_tokens, total_ns=total_ns, load_ns=load_ns
        )
        await exchange.answer(reply)

    async def embeddings(self, exchange: Exchange) -> None:
        """Answer ``POST /api/embeddings``, the older form for one text, which is never cut."""
        request = decode_embeddings(exchange.body)
        if not request.model:
            raise RequestError("model is required")
        check_grammar(request.model)
        self._check_there(request.model)
        slots = 0 if request.is_load_only else 1
        async with self._ready(exchange, request, slots=slots) as instance:
            if request.is_load_only:
                await exchange.answer(embeddings.embeddings_reply(b"[]"))
                return
            metadata = instance.plan.file.metadata
            raw = embeddings.is_raw(metadata.architecture, metadata.values)
            try:
                body = await _post(instance, (request.prompt,), raw=raw)
            except EngineError as error:
                raise EngineError(str(error), status=500) from error
        (vector, *_), _ = embeddings.read_vectors(body)
        await exchange.answer(embeddings.embeddings_reply(vector))

    @asynccontextmanager
    async def _ready(
        self, exchange: Exchange, request: EmbedRequest | EmbeddingsRequest, *, slots: int
    ) -> AsyncIterator[Instance]:
        """Yield the instance that serves ``request``, loaded and leased."""
        asked = Asked(**load_time_options(request.options))
        async with leased(
            exchange,
            self._fleet,
            request.model,
            asked=asked,
            keep_alive_s=request.keep_alive_s,
            slots=slots,
        ) as instance:
            yield instance

    def _check_there(self, name: str) -> None:
        """Raise with the text that these routes have for a missing model."""
        with not_found_as(embeddings.not_found_text(name)):
            self._fleet.instance(name)


async def _embed(instance: Instance, texts: Sequence[str], *, truncate: bool) -> bytes:
    """Return llama-server's answer for ``texts``; cut them only once it says that one is too long.

    Raises:
        RequestError: one is too long and is not to be cut.
        EngineError: llama-server answered with another error.
    """
    try:
        return await _post(instance, texts)
    except EngineError as error:
        room = embeddings.room_tokens(error.body or b"")
        if room is None:
            raise
        if not truncate:
            raise RequestError(embeddings.TOO_LONG) from error
    room = min(room, instance.plan.model.num_ctx)
    return await _post(instance, [await _cut(instance, text, room) for text in texts])


async def _cut(instance: Instance, text: str, room: int) -> str | list[int]:
    """Return ``text``, or as many of its tokens as there is room for."""
    whole = await tokenize(instance, text, add_special=True)
    if len(whole) <= room:
        return text
    bare = await tokenize(instance, text, add_special=False)
    return embeddings.cut_tokens(bare, whole, room=room)


async def _post(
    instance: Instance, inputs: Sequence[str | Sequence[int]], *, raw: bool = False
) -> bytes:
    name = instance.plan.name
    body = embeddings.embed_body(inputs, model=name, raw=raw)
    try:
        return await ask(instance, path=embeddings.EMBEDDINGS_PATH, body=body)
    except EngineError as error:
        if error.status != 501:
            raise
        mend = f'{name} does not support embeddings; set embedding = "on" in its file'
        raise EngineError(mend, status=501) from error
