"""Which key a request needs, and the layer that asks for it.

Without keys everything is allowed, but management only to clients on this machine. With keys a
request needs one, from wherever it comes: ``Authorization: Bearer KEY``, or ``X-Api-Key: KEY`` as
Anthropic's clients send it and llama-server takes it, too (b11434, tools/server/server-http.cpp).
"""

import ipaddress
import re
from collections.abc import Callable, Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from kvsup.api.errors import shape_for
from kvsup.keys import KeyRing, Scope

PRIORITY = "kvsup.priority"
"""Where a connection's scope holds the priority of its key."""

_PUBLIC = frozenset({"/", "/api/version", "/health", "/v1/health", "/openapi.json"})
_READING = frozenset({"GET", "HEAD"})

_MANAGING = re.compile(
    r"""/kvsup(?:/.*)?
    |/api/(?:pull|push|create|copy|delete)
    |/api/blobs/.*""",
    re.VERBOSE | re.DOTALL,
)

_WRITING = re.compile(r"(?:/models|/upstream)(?:/.*)?", re.DOTALL)
"""Paths where every method but GET and HEAD manages, but for the inference below."""

_UPSTREAM_INFERENCE = re.compile(
    r"""/upstream/[A-Za-z0-9_.:/-]+?
    (?:/v1)?
    /(?:completions?|infill|embeddings?|rerank|reranking|audio/transcriptions
      |messages(?:/count_tokens)?
      |(?:chat/completions|responses)(?:/input_tokens)?
      |tokenize|detokenize|apply-template)""",
    re.VERBOSE | re.ASCII,
)
"""What llama-server answers to a POST without changing anything but its cache (b11434, server.cpp).

Nothing that could end a path stands before it, so that it is what llama-server will see as well.
"""


class Auth:
    """An ASGI layer around the routes, inside the guard: a page may read why it was refused."""

    def __init__(self, app: ASGIApp, *, keys: Callable[[], KeyRing | None]) -> None:
        self._app = app
        self._keys = keys
        """The keys as they are now: a reload changes them. None: none are asked for."""

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403 in the shape of the API that it is for."""
        refusal = self._refusal(connection) if connection["type"] == "http" else None
        if refusal is None:
            await self._app(connection, receive, send)
            return
        status, text = refusal
        body = shape_for(connection["path"]).body(text, status)
        challenge = [(b"www-authenticate", b"Bearer")] if status == 401 else []
        headers = [
            (b"content-type", b"application/json; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            *challenge,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, connection: Connection) -> tuple[int, str] | None:
        """Return status and text of the refusal; None where there is no reason for one."""
        needed = needed_scope(connection["method"], connection["path"])
        keys = self._keys()
        if needed is None:
            return None
        if keys is None:
            client = connection.get("client")
            if needed < Scope.MANAGE or (client is not None and is_loopback(client[0])):
                return None
            return 403, (
                "management without API keys is only for clients on the machine of kvsup; "
                "set api_keys in kvsup.toml"
            )
        tokens = list(_tokens(Headers(scope=connection)))
        found = [key for token in tokens if (key := keys.key_of(token)) is not None]
        if not found:
            missing = "send Authorization: Bearer KEY or X-Api-Key: KEY"
            return 401, f"unauthorized: {'no such API key' if tokens else missing}"
        key = max(found, key=lambda key: key.scope)
        connection[PRIORITY] = key.priority
        if key.scope < needed:
            return 403, f"forbidden: this needs an API key of scope {needed.name.lower()}"
        return None


def needed_scope(method: str, path: str) -> Scope | None:
    """Return the scope that a request needs where there are keys; None where it needs no key.

    Args:
        method: in capitals.
        path: percent-decoded, as requests are routed by it.
    """
    if method == "OPTIONS" or (method in _READING and path in _PUBLIC):
        return None
    path = path.removesuffix("\n")  # a route's last $ matches before it, too
    if _MANAGING.fullmatch(path):
        return Scope.MANAGE
    if _WRITING.fullmatch(path) and method not in _READING:
        infers = method == "POST" and _UPSTREAM_INFERENCE.fullmatch(path)
        return Scope.INFER if infers else Scope.MANAGE
    return Scope.INFER


def is_loopback(address: str) -> bool:
    """Say whether ``address`` is this machine's own loopback; False for what is no address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)  # ::ffff:127.0.0.1, on a socket for both
    return bool((mapped or parsed).is_loopback)


def _tokens(headers: Headers) -> Iterator[str]:
    """Yield what a request brings as keys; the scheme's case does not count (RFC 9110, 11.1)."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        yield token.strip()
    if key := headers.get("x-api-key", "").strip():
        yield key
