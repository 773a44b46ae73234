"""Fetch images that requests name by URL, from listed hosts alone, never from a private network.

The name is resolved first, and the connection goes to an address that was checked, so that a name
cannot mean one thing when it is looked at and another when it is called (DNS rebinding). Redirects
are followed by the same rules. llama-server itself is never given an address.
"""

import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import anyio.to_thread
import httpx

from kvsup.errors import RequestError

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

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that has been given out for the public Internet (IANA, RFC 4291 section 2.4)."""
_RESERVED = tuple(ipaddress.ip_network(text) for text in ("192.0.0.0/24", "3fff::/20"))
"""What Python 3.11 takes for global, and IANA does not."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Image(NamedTuple):
    """An image that was fetched."""

    media_type: str
    base64: str


def is_public(address: Address) -> bool:
    """Say whether an address is one of the public Internet, seen through every tunnel."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:
            return False
    is_reserved = any(address in network for network in _RESERVED)
    return address.is_global and not address.is_multicast and not is_reserved


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, the preferred first.

    Raises:
        OSError: there is none.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


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
        for text in addresses:
            if not is_public(ipaddress.ip_address(text.partition("%")[0])):
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
