"""Ollama's generating endpoints: decode, lease, relay."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from kvsup import __version__
from kvsup.api import listing
from kvsup.api.exchange import JSON, NDJSON, Exchange, Header
from kvsup.api.relay import Answer, ask, relay
from kvsup.errors import EngineError, ModelNotFound, RequestError
from kvsup.ollama import catalog, embeddings, requests, to_llama
from kvsup.ollama.from_llama import ChatReplies, Folded, GenerateReplies
from kvsup.ollama.names import display_name, valid_name
from kvsup.ollama.ndjson import encode
from kvsup.ollama.to_llama import LlamaCall
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.instance import Instance
from kvsup.runtime.upstream import Response

Replies = ChatReplies | GenerateReplies
Request = requests.ChatRequest | requests.GenerateRequest


class OllamaHandlers:
    """``/api/*`` on one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def chat(self, exchange: Exchange) -> None:
        """Answer ``POST /api/chat``."""
        request = requests.decode_chat(exchange.body)
        if not request.model:
            raise RequestError("model is required")
        kind = _Generation(to_llama.chat_body, ChatReplies, catalog.chat_done)
        await self._generate(exchange, request, kind)

    async def generate(self, exchange: Exchange) -> None:
        """Answer ``POST /api/generate``."""
        request = requests.decode_generate(exchange.body)
        kind = _Generation(to_llama.generate_body, GenerateReplies, catalog.generate_done)
        await self._generate(exchange, request, kind)

    async def embed(self, exchange: Exchange) -> None:
        """Answer ``POST /api/embed``."""
        started_ns = time.monotonic_ns()
        request = requests.decode_embed(exchange.body)
        _check_grammar(request.model)
        texts = request.texts()
        self._check_there(request.model)
        async with self._fleet.lease(request.model, keep_alive_s=request.keep_alive_s) as instance:
            await instance.ready()
            load_ns = time.monotonic_ns() - started_ns
            if not texts:
                await exchange.answer(encode(embeddings.embed_done(request.model)))
                return
            body = await _embed(instance, texts)
        reply = embeddings.embed_reply(
            body,
            model=request.model,
            dimensions=request.dimensions,
            total_ns=time.monotonic_ns() - started_ns,
            load_ns=load_ns,
        )
        await exchange.answer(reply)

    async def embeddings(self, exchange: Exchange) -> None:
        """Answer ``POST /api/embeddings``, the older form for one text."""
        request = requests.decode_embeddings(exchange.body)
        if not request.model:
            raise RequestError("model is required")
        _check_grammar(request.model)
        self._check_there(request.model)
        async with self._fleet.lease(request.model, keep_alive_s=request.keep_alive_s) as instance:
            if request.is_load_only:
                await instance.ready()
                await exchange.answer(encode({"embedding": []}))
                return
            body = await _embed(instance, (request.prompt,))
        await exchange.answer(embeddings.embeddings_reply(body))

    async def show(self, exchange: Exchange) -> None:
        """Answer ``POST /api/show``."""
        request = requests.decode_show(exchange.body)
        if not request.model:
            raise RequestError("model is required")
        _check_grammar(request.model)
        with _as_ollama_says(f"model '{display_name(request.model)}' not found"):
            plan = self._fleet.instance(request.model).plan
        await exchange.answer(encode(listing.show(plan, request)))

    async def tags(self, exchange: Exchange) -> None:
        """Answer ``GET /api/tags``."""
        entries = [listing.catalog_entry(plan) for plan in self._fleet.plans()]
        await exchange.answer(encode(catalog.tags(entries)))

    async def ps(self, exchange: Exchange) -> None:
        """Answer ``GET /api/ps``."""
        entries = listing.running_entries(
            self._fleet.loaded(), now_s=time.monotonic(), now_ns=time.time_ns()
        )
        await exchange.answer(encode(catalog.ps(entries)))

    async def version(self, exchange: Exchange) -> None:
        """Answer ``GET /api/version``."""
        version = {**catalog.version(listing.OLLAMA_VERSION), "kvsup": __version__}
        await exchange.answer(encode(version))

    def _check_there(self, name: str) -> None:
        """Raise with the text that the routes for embeddings have for a missing model."""
        with _as_ollama_says(f'model "{name}" not found, try pulling it first'):
            self._fleet.instance(name)

    async def _generate(self, exchange: Exchange, request: Request, kind: "_Generation") -> None:
        """Unload or load the model, or relay an answer, as the request asks."""
        started_ns = time.monotonic_ns()
        _check_grammar(request.model)
        model = self._fleet.instance(request.model).plan.model
        if request.is_unload:
            self._fleet.unload(request.model, "asked by a client")
            reply = kind.done(request.model, reason="unload", now_ns=time.time_ns())
            await exchange.answer(encode(reply))
            return
        call = None
        if not request.is_load_only:
            call = kind.body(
                request,
                model=model.name,
                system=model.system,
                options=model.options,
                num_ctx=model.num_ctx,
            )
        async with self._fleet.lease(
            request.model, keep_alive_s=request.keep_alive_s, slots=1 if call else 0
        ) as instance:
            await instance.ready()
            load_ns = time.monotonic_ns() - started_ns
            if call is None:
                reply = kind.done(request.model, reason="load", now_ns=time.time_ns())
                await exchange.answer(encode(reply))
                return

            def make_answer(_response: Response) -> Answer:
                replies = kind.replies(request.model, top_logprobs=request.top_logprobs)
                return _OllamaAnswer(
                    replies if request.stream else Folded(replies),
                    NDJSON if request.stream else JSON,
                    started_ns=started_ns,
                    load_ns=load_ns,
                )

            body = msgspec.json.encode(call.body)
            await relay(exchange, instance, path=call.path, body=body, make_answer=make_answer)


class _Done(Protocol):
    def __call__(
        self, model: str, *, reason: Literal["load", "unload"], now_ns: int
    ) -> dict[str, object]: ...


@dataclass(frozen=True, slots=True)
class _Generation:
    """What tells ``/api/chat`` and ``/api/generate`` apart."""

    body: Callable[..., LlamaCall]
    replies: type[ChatReplies] | type[GenerateReplies]
    done: _Done


class _OllamaAnswer:
    """Replies with the clock that they need."""

    headers: tuple[Header, ...] = ()

    def __init__(
        self, replies: Replies | Folded, content_type: bytes, *, started_ns: int, load_ns: int
    ) -> None:
        self.content_type = content_type
        self._replies = replies
        self._started_ns = started_ns
        self._load_ns = load_ns

    def feed(self, data: bytes) -> bytes:
        """Return the lines for ``data``."""
        return self._replies.feed(data, time.time_ns())

    def finish(self) -> bytes:
        """Return the last line, or the whole folded object."""
        total_ns = time.monotonic_ns() - self._started_ns
        return self._replies.finish(time.time_ns(), total_ns=total_ns, load_ns=self._load_ns)


async def _embed(instance: Instance, texts: tuple[str, ...]) -> bytes:
    call = to_llama.embed_body(texts, model=instance.plan.name)
    try:
        return await ask(instance, path=call.path, body=msgspec.json.encode(call.body))
    except EngineError as error:
        if error.status != 501:
            raise
        name = instance.plan.name
        mend = f'{name} does not support embeddings; set embedding = "on" in its file'
        raise EngineError(mend, status=501) from error


def _check_grammar(name: str) -> None:
    """Raise as Ollama does for a name that no model can have; an empty one is just not found."""
    if not name:
        raise ModelNotFound(name)
    if not valid_name(name):
        raise RequestError("invalid model name")


@contextmanager
def _as_ollama_says(text: str) -> Iterator[None]:
    """Give a missing model the text that Ollama has for this route: clients match it."""
    try:
        yield
    except ModelNotFound as error:
        raise ModelNotFound(error.name, text) from error
