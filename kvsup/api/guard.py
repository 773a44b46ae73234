"""Refuse foreign web pages and rebound names before anything is routed, by Ollama's rules.

Two holes in those are closed: on a server that other machines can reach and that asks for no keys,
a page whose name was led to it by DNS would be of the same origin; and pages of any origin may load
what they show, such as an image or a frame, from a path that starts a model.
"""

from collections.abc import Callable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvsup.ollama.access import OriginRules, could_be_rebound, host_allowed, is_own_name


class Guard:
    """An ASGI layer around the routes: first the Origin, then the Host."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: OriginRules,
        bound_to_loopback: bool,
        own_names: Collection[str],
        own_addresses: Collection[str],
        asks_for_keys: Callable[[], bool],
    ) -> None:
        self._app = app
        self._asks_for_keys = asks_for_keys
        self._origins = origins
        self._bound_to_loopback = bound_to_loopback
        self._own_names = own_names
        self._own_addresses = own_addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403 (204 for an allowed preflight) without a body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is None:
            extra: list[tuple[str, str]] = []
            if _is_shown_elsewhere(headers):
                await _answer(send, 403, [])
                return
        elif not self._origins.allows(origin, host) or self._is_rebound(origin, host):
            await _answer(send, 403, [])
            return
        elif scope["method"] == "OPTIONS" and (extra := self._origins.headers(origin, host)):
            await _answer(send, 204, self._origins.preflight_headers(origin))
            return
        else:
            extra = self._origins.headers(origin, host)
        if not host_allowed(
            host,
            bound_to_loopback=self._bound_to_loopback,
            own_names=self._own_names,
            own_addresses=self._own_addresses,
        ):
            await _answer(send, 403, extra)
            return
        is_preflight = scope["method"] == "OPTIONS" and origin is None and self._bound_to_loopback
        if is_preflight and is_own_name(host, self._own_names):
            await _answer(send, 204, [])
            return
        await self._app(scope, receive, _adding(send, extra) if extra else send)

    def _is_rebound(self, origin: str, host: str) -> bool:
        return (
            not self._bound_to_loopback
            and could_be_rebound(host, self._own_names)
            and not self._asks_for_keys()
            and not self._origins.lists(origin)
        )


def _is_shown_elsewhere(headers: Headers) -> bool:
    """Say whether a page of another site loads this as a part of itself, not by a script of it.

    Browsers say so to loopback addresses; they send no Origin then. A frame navigates as a link
    does, but not to a document of its own (Fetch Metadata, W3C).
    """
    is_foreign = headers.get("sec-fetch-site") == "cross-site"
    is_followed = (
        headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest", "document") == "document"
    )
    return is_foreign and not is_followed


def _adding(send: Send, extra: list[tuple[str, str]]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            for name, value in extra:
                headers[name] = value
            message = {**message, "headers": headers.raw}
        await send(message)

    return send_with_headers


async def _answer(send: Send, status: int, headers: list[tuple[str, str]]) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    if status != 204:
        raw.append((b"content-length", b"0"))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
