"""Fetch images that requests name by URL, from listed hosts alone, never from a private network.

The name is resolved first, and the connection goes to an address that was checked, so that a name
cannot mean one thing when it is looked at and another when it is called (DNS rebinding). Redirects
are followed by the same rules. llama-server itself is never given an address.
"""

import base64
import re
import ssl
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import anyio.to_thread
import httpx

from kvsup.errors import RequestError
from kvsup.runtime.publicnet import Resolve, all_public, resolve

MAX_IMAGE_BYTES = 20 << 20
TIMEOUT_S = 20.0
"""For one image, with its redirects."""

_MAX_REDIRECTS = 3
_MAGIC = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"BM"), "image/bmp"),
)
"""What is an image is told by its bytes, not by whoever sends it."""


class Image(NamedTuple):
    """An image that was fetched."""

    media_type: str
    base64: str


class Images:
    """Fetches from ``hosts``: ``name``, ``name:port``, or ``*.name`` for every subdomain."""

    def __init__(self, hosts: Sequence[str], *, resolve: Resolve = resolve) -> None:
        self._hosts = [host.lower() for host in hosts]
        self._resolve = resolve
        self._tls: ssl.SSLContext | None = None

    async def fetch(self, url: str) -> Image:
        """Return the image at ``url``.

        Raises:
            RequestError: its host is not listed or not public; it is no image, too large or late.
        """
        try:
            with anyio.fail_after(TIMEOUT_S):
                return await self._fetched(url)
        except TimeoutError:
            raise RequestError(f"image URL: {_shown(url)} did not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise RequestError(f"image URL: {_shown(url)} cannot be fetched") from error

    async def _fetched(self, url: str) -> Image:
        if self._tls is None:  # reading the certificates takes longer than others may wait
            make = partial(httpx.create_ssl_context, trust_env=False)
            self._tls = await anyio.to_thread.run_sync(make)
        for _ in range(_MAX_REDIRECTS + 1):
            host, target = await self._checked(url)
            async with (
                httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S, verify=self._tls) as client,
                client.stream(
                    "GET",
                    target,
                    headers={"host": host, "accept-encoding": "identity"},
                    extensions={"sni_hostname": host},
                ) as response,
            ):
                if response.has_redirect_location:
                    url = urljoin(url, response.headers["location"])
                    continue
                if response.status_code != 200:
                    status = response.status_code
                    raise RequestError(f"image URL: {_shown(url)} answered {status}")
                return await _image_in(response, url)
        raise RequestError(f"image URL: {_shown(url)} is redirected too often")

    async def _checked(self, url: str) -> tuple[str, httpx.URL]:
        """Return the host of ``url``, and the URL with its checked address in the host's place."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise RequestError("image URL: it is malformed") from None
        scheme = parts.scheme.lower()
        if scheme not in {"http", "https"} or not host or "@" in parts.netloc:
            raise RequestError("image URL: it must be http:// or https:// and have no user name")
        port = port or (443 if scheme == "https" else 80)
        if not any(_matches(host, port, listed) for listed in self._hosts):
            raise RequestError(f"image URL: {host[:100]} is not listed in image_hosts")
        addresses = await self._resolve(host, port)
        if not all_public(addresses):
            raise RequestError(f"image URL: {host[:100]} is no host of the public Internet")
        return host, httpx.URL(url).copy_with(host=addresses[0], fragment=None)


def _matches(host: str, port: int, listed: str) -> bool:
    name, _, listed_port = listed.partition(":")
    if port not in ({int(listed_port)} if listed_port.isdigit() else {80, 443}):
        return False
    return host == name or (name.startswith("*.") and host.endswith(name[1:]))


def _shown(url: str) -> str:
    """Return what of a URL may stand in an error: neither path nor query, which may be secret."""
    return (urlsplit(url).hostname or "it")[:100]


async def _image_in(response: httpx.Response, url: str) -> Image:
    data = bytearray()
    async for part in response.aiter_raw():
        data += part
        if len(data) > MAX_IMAGE_BYTES:
            raise RequestError(f"image URL: {_shown(url)} sends more than {MAX_IMAGE_BYTES} bytes")
    for magic, media_type in _MAGIC:
        if magic.match(data):
            return Image(media_type, base64.b64encode(data).decode())
    raise RequestError(f"image URL: {_shown(url)} sends no PNG, JPEG, GIF, WebP or BMP image")
