"""Talk to registries: only over addresses that may be talked to.

A registry that a person listed may lie anywhere. Whatever it leads to by a redirect, such as the
store of its files, must be of the public Internet and be asked by TLS; so a registry cannot have
kvsup call what only this machine reaches. A name is resolved once, and the connection goes to the
address that was checked.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
from anyio import to_thread

from kvsup.errors import KvsupError
from kvsup.runtime.publicnet import Resolve, all_public, resolve
from kvsup.stores.registries import Registries

STALL_S = 30.0
"""How long a server may send nothing."""

_MAX_REDIRECTS = 5


class Refused(KvsupError):  # noqa: N818 - it says what happened
    """An address must not be talked to."""


@asynccontextmanager
async def client(
    registries: Registries, *, resolve: Resolve = resolve
) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client that talks to ``registries`` and to the public Internet; it follows redirects.

    Requests raise ``Refused`` for any other address.
    """
    tls = await to_thread.run_sync(partial(httpx.create_ssl_context, trust_env=True))
    inner = httpx.AsyncHTTPTransport(verify=tls, limits=httpx.Limits(max_connections=32))
    async with httpx.AsyncClient(
        transport=_Guarded(inner, registries, resolve),
        timeout=httpx.Timeout(STALL_S, pool=None),
        follow_redirects=True,
        max_redirects=_MAX_REDIRECTS,
        headers={"user-agent": "kvsup", "accept-encoding": "identity"},
    ) as client:
        yield client


class _Guarded(httpx.AsyncBaseTransport):
    def __init__(
        self, inner: httpx.AsyncBaseTransport, registries: Registries, resolve: Resolve
    ) -> None:
        self._inner = inner
        self._registries = registries
        self._resolve = resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, each of a chain of redirects by itself."""
        scheme, host = request.url.scheme, request.url.host
        port = request.url.port or (443 if scheme == "https" else 80)
        if not self._registries.allows(scheme, host, port):
            request = await self._checked(request, port)
        return await self._inner.handle_async_request(request)

    async def _checked(self, request: httpx.Request, port: int) -> httpx.Request:
        """Return ``request`` to a checked address of its host."""
        host = request.url.host
        if request.url.scheme != "https":
            raise Refused(f"{host[:100]} is no registry that is listed, and asked without TLS")
        addresses = await self._resolve(host, port)
        if not all_public(addresses):
            raise Refused(
                f"{host[:100]} is no host of the public Internet; list it in registries of"
                " kvsup.toml if it is a registry of yours"
            )
        return httpx.Request(
            request.method,
            request.url.copy_with(host=addresses[0]),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()
