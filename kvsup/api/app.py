"""The route table, and what answers for routes that are not there."""

import socket
from collections.abc import Awaitable, Callable

import psutil
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from kvsup.api.control import ControlHandlers
from kvsup.api.errors import OLLAMA, OPENAI, ErrorShape
from kvsup.api.exchange import Endpoint, Handler
from kvsup.api.guard import Guard
from kvsup.api.handlers import OllamaHandlers
from kvsup.api.passthrough import PassthroughHandlers
from kvsup.config import HostConfig
from kvsup.ollama.access import OriginRules
from kvsup.runtime.fleet import Fleet

Handles = Endpoint | Callable[[Request], Awaitable[Response]]

_LOOPBACK = ("127.", "localhost", "::1")


def create_app(fleet: Fleet, host: HostConfig, *, reload: Callable[[], Awaitable[None]]) -> ASGIApp:
    """Return the ASGI application that serves ``fleet``.

    Args:
        fleet: the instances.
        host: addresses, origins and the body limit.
        reload: reads the configuration again; raises ``ConfigError`` and changes nothing if it is
            wrong.

    Raises:
        ValueError: an entry of ``origins`` is malformed.
    """
    max_body_bytes = host.max_body_bytes

    def serve(handler: Handler, shape: ErrorShape = OLLAMA) -> Endpoint:
        return Endpoint(handler, shape=shape, max_body_bytes=max_body_bytes)

    ollama = OllamaHandlers(fleet)
    passed = PassthroughHandlers(fleet)
    control = ControlHandlers(fleet, reload=reload)
    get, post, both = {"GET"}, {"POST"}, {"GET", "HEAD"}
    app = Starlette(
        routes=[
            _route("/", _hello, both),
            _route("/api/version", serve(ollama.version), both),
            _route("/api/tags", serve(ollama.tags), both),
            _route("/api/ps", serve(ollama.ps), get),
            _route("/api/show", serve(ollama.show), post),
            _route("/api/chat", serve(ollama.chat), post),
            _route("/api/generate", serve(ollama.generate), post),
            _route("/api/embed", serve(ollama.embed), post),
            _route("/api/embeddings", serve(ollama.embeddings), post),
            _route("/v1/models", serve(passed.models, OPENAI), both),
            _route("/v1/models/{name:path}", serve(passed.model, OPENAI), get),
            _route("/v1/{path:path}", serve(passed.v1, OPENAI), post),
            _route(
                "/upstream/{rest:path}",
                serve(passed.upstream, OPENAI),
                {"GET", "POST", "DELETE"},
            ),
            _route("/kvsup/models", serve(control.models), get),
            _route("/kvsup/stop", serve(control.stop), post),
            _route("/kvsup/reset", serve(control.reset), post),
            _route("/kvsup/reload", serve(control.reload), post),
            _route("/kvsup/logs/{name:path}", serve(control.logs), get),
        ],
        exception_handlers={HTTPException: _not_routed},
    )
    return Guard(
        app,
        origins=OriginRules(host.origins),
        bound_to_loopback=host.host.startswith(_LOOPBACK),
        own_names={socket.gethostname().lower()},
        own_addresses={a.address for many in psutil.net_if_addrs().values() for a in many},
    )


def _route(path: str, endpoint: Handles, methods: set[str]) -> BaseRoute:
    """Return a route for exactly ``methods``: Starlette adds HEAD to GET, Ollama does not."""
    route = Route(path, endpoint, methods=sorted(methods))
    route.methods = methods
    return route


async def _hello(_request: Request) -> Response:
    return PlainTextResponse("Ollama is running")


async def _not_routed(_request: Request, error: Exception) -> Response:
    """Answer as gin does: Ollama's clients see these texts."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    texts = {404: "404 page not found", 405: "405 method not allowed"}
    text = texts.get(error.status_code, error.detail)
    return PlainTextResponse(text, error.status_code, headers=error.headers)
