"""The route table, and what answers for routes that are not there."""

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kvsup import __version__
from kvsup.api import cloud, openapi
from kvsup.api.auth import Auth, is_loopback
from kvsup.api.bodies import BodyRoom
from kvsup.api.catalogue import CatalogueHandlers
from kvsup.api.control import ControlHandlers
from kvsup.api.embedding import EmbeddingHandlers
from kvsup.api.errors import OLLAMA, OPENAI, ErrorShape
from kvsup.api.exchange import Endpoint, Exchange, Handler, UploadEndpoint
from kvsup.api.generation import GenerationHandlers
from kvsup.api.guard import Guard
from kvsup.api.kept import KeptHandlers
from kvsup.api.passthrough import (
    ANTHROPIC_DIALECT,
    CANONICAL,
    NATIVE_DIALECT,
    OPENAI_DIALECT,
    Dialect,
    FetchImage,
    PassthroughHandlers,
)
from kvsup.api.router import RouterHandlers
from kvsup.api.show import ShowHandlers
from kvsup.api.store import StoreHandlers
from kvsup.api.why import WhyHandlers
from kvsup.hostconfig import HostConfig
from kvsup.keys import KeyRing
from kvsup.ollama.access import OriginRules
from kvsup.runtime.changes import Changes
from kvsup.runtime.chronicle import Chronicle
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.modelworks import ModelWorks
from kvsup.runtime.warming import Store as KVStore

_GET, _POST, _BOTH = {"GET"}, {"POST"}, {"GET", "HEAD"}

_NATIVE_PATHS = (
    "/completion", "/completions", "/infill", "/embedding", "/embeddings", "/tokenize",
    "/detokenize", "/apply-template", "/rerank", "/reranking",
)  # fmt: skip
"""llama-server's own (tools/server/server.cpp, b11434)."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where the catalogue is kept, and how it is taken up anew."""

    changes: Changes
    """What copies and deletes models."""
    works: ModelWorks
    """What fetches, sends and makes them."""
    reload: Callable[[], Awaitable[None]]
    """Reads the configuration again; raises ``ConfigError`` and changes nothing if it is wrong."""
    refusal: Callable[[], str | None]
    """Returns what is wrong with the folder, where it is not what is in force."""
    kept: KVStore
    """Conversations that outlive their llama-server."""
    is_stopping: Callable[[], bool] = lambda: False
    """Says whether kvsup is on its way out."""


def create_app(
    fleet: Fleet,
    host: HostConfig,
    *,
    store: Store,
    chronicle: Chronicle,
    keys: Callable[[], KeyRing | None],
    state_dir: Path,
) -> ASGIApp:
    """Return the ASGI application that serves ``fleet``.

    Args:
        fleet: the instances.
        host: addresses, origins and the body limit.
        store: what changes which models there are, and takes it up.
        chronicle: what happened to the models.
        keys: returns the API keys as they are now, None where none is asked for.
        state_dir: where large bodies lie while they may be needed again.

    Raises:
        ValueError: an entry of ``origins`` is malformed.
    """
    most_bytes = host.max_bodies_memory_bytes or 4 * host.max_body_bytes
    room = BodyRoom(
        max_body_bytes=host.max_body_bytes,
        max_bodies_bytes=most_bytes,
        patience_s=host.client_timeout_s,
        folder=state_dir,
    )
    routes = _routes(fleet, store, chronicle, room=room, fetch=_fetcher(host.image_hosts))
    app = Starlette(routes=routes, exception_handlers={HTTPException: _not_routed})
    app.router.redirect_slashes = False
    return Guard(
        Auth(_Slashes(app, routes), keys=keys),
        origins=OriginRules(host.origins),
        bound_to_loopback=host.host == "localhost" or is_loopback(host.host),
        own_names={socket.gethostname().lower()},
        asks_for_keys=lambda: keys() is not None,
        own_addresses={a.address for many in psutil.net_if_addrs().values() for a in many},
    )


def _fetcher(hosts: Sequence[str]) -> FetchImage | None:
    """Return what fetches images from ``hosts``; None, and nothing loaded, where there are none."""
    if not hosts:
        return None
    from kvsup.runtime.images import Images  # noqa: PLC0415 - httpx is slow to load, few need it

    return Images(hosts).fetch


def _routes(
    fleet: Fleet, store: Store, chronicle: Chronicle, *, room: BodyRoom, fetch: FetchImage | None
) -> list[BaseRoute]:
    def serve(
        path: str, handler: Handler, methods: set[str] = _POST, shape: ErrorShape = OLLAMA
    ) -> BaseRoute:
        return _route(path, Endpoint(handler, shape=shape, room=room), methods)

    def passed(path: str, dialect: Dialect) -> BaseRoute:
        return serve(path, passthrough.of(dialect), shape=dialect.shape)

    generation, embedding = GenerationHandlers(fleet), EmbeddingHandlers(fleet)
    catalogue = CatalogueHandlers(fleet, store.changes, kept=store.kept)
    models = StoreHandlers(store.works)
    kept = KeptHandlers(fleet, store.kept, is_stopping=store.is_stopping)
    passthrough, router = PassthroughHandlers(fleet, fetch=fetch), RouterHandlers(fleet)
    control = ControlHandlers(fleet, store.kept, reload=store.reload, refusal=store.refusal)
    why = WhyHandlers(fleet, chronicle)
    return [
        # What is asked most comes first: they are tried one after the other.
        serve("/api/chat", generation.chat),
        serve("/api/generate", generation.generate),
        serve("/v1/health", _health, _BOTH),
        serve("/v1/models", passthrough.models, _BOTH, OPENAI),
        serve("/v1/models/{name:path}", passthrough.model, _GET, OPENAI),
        passed("/v1/messages", ANTHROPIC_DIALECT),
        passed("/v1/messages/count_tokens", ANTHROPIC_DIALECT),
        passed("/v1/{path:path}", OPENAI_DIALECT),
        serve("/", _hello, _BOTH),
        serve("/health", _health, _BOTH),
        serve("/openapi.json", _openapi, _GET),
        serve("/api/version", catalogue.version, _BOTH),
        serve("/api/tags", catalogue.tags, _BOTH),
        serve("/api/ps", catalogue.ps, _GET),
        serve("/api/show", ShowHandlers(fleet).show),
        serve("/api/embed", embedding.embed),
        serve("/api/embeddings", embedding.embeddings),
        serve("/api/copy", catalogue.copy),
        serve("/api/delete", catalogue.delete, {"DELETE"}),
        serve("/api/pull", models.pull),
        serve("/api/push", models.push),
        serve("/api/create", models.create),
        _route("/api/blobs/{digest}", UploadEndpoint(models.blob, room=room), {"HEAD", "POST"}),
        serve("/api/status", cloud.status, _GET),
        serve("/api/me", cloud.me),
        serve("/api/signout", cloud.signout),
        serve("/api/user/keys/{key}", cloud.signout, {"DELETE"}),
        serve("/api/experimental/web_search", cloud.web_search),
        serve("/api/experimental/web_fetch", cloud.web_fetch),
        serve("/api/experimental/model-recommendations", cloud.recommendations, _GET),
        *(passed(path, OPENAI_DIALECT) for path in CANONICAL),
        *(passed(path, NATIVE_DIALECT) for path in _NATIVE_PATHS),
        serve("/models", router.models, _GET, OPENAI),
        serve("/models/load", router.load, shape=OPENAI),
        serve("/models/unload", router.unload, shape=OPENAI),
        serve("/models/sse", router.sse, _GET, OPENAI),
        serve("/upstream/{rest:path}", passthrough.upstream, {"GET", "POST", "DELETE"}, OPENAI),
        serve("/kvsup/models", control.models, _GET),
        serve("/kvsup/why", why.all, _GET),
        serve("/kvsup/why/{name:path}", why.one, _GET),
        serve("/kvsup/kv", kept.all, _GET),
        serve("/kvsup/kv", kept.clear, {"DELETE"}),
        serve("/kvsup/kv/archive", kept.pack, _GET),
        _route("/kvsup/kv/archive", UploadEndpoint(kept.take, room=room), {"PUT"}),
        serve("/kvsup/stop", control.stop),
        serve("/kvsup/reset", control.reset),
        serve("/kvsup/reload", control.reload),
        serve("/kvsup/logs/{name:path}", control.logs, _GET),
    ]


def _route(path: str, endpoint: Endpoint | UploadEndpoint, methods: set[str]) -> BaseRoute:
    """Return a route for exactly ``methods``: Starlette adds HEAD to GET, Ollama does not."""
    route = Route(path, endpoint, methods=sorted(methods))
    route.methods = methods
    return route


async def _hello(exchange: Exchange) -> None:
    await exchange.answer(b"Ollama is running", content_type=b"text/plain; charset=utf-8")


async def _health(exchange: Exchange) -> None:
    await exchange.answer(b'{"status":"ok"}')


async def _openapi(exchange: Exchange) -> None:
    await exchange.answer(msgspec.json.encode(openapi.document(__version__)))


async def _not_routed(_request: Request, error: Exception) -> Response:
    """Answer as gin does: Ollama's clients see these texts."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    texts = {404: b"404 page not found", 405: b"405 method not allowed"}
    text = texts.get(error.status_code, error.detail.encode())
    headers = {"content-type": "text/plain", **(error.headers or {})}
    return Response(text, error.status_code, headers=headers)


class _Slashes:
    """Leads from a path with a slash too many to the one without it, as gin does."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 301 to a GET, 307 to other methods; pass on what is right as it is."""
        path: str = scope.get("path", "")
        bare = path.rstrip("/")
        if path == bare or not bare or path.startswith("/upstream/") or not self._is_route(bare):
            await self._app(scope, receive, send)
            return
        status = 301 if scope["method"] == "GET" else 307
        to = Request(scope).url.replace(path=bare)
        await RedirectResponse(to, status)(scope, receive, send)

    def _is_route(self, path: str) -> bool:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        return any(route.matches(scope)[0] is not Match.NONE for route in self._routes)
