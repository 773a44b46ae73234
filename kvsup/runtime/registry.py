"""A registry of models: its protocol, and how it is told who asks.

``/v2/NAMESPACE/MODEL/manifests/TAG`` and ``…/blobs/DIGEST`` (the distribution specification of the
Open Container Initiative; server/images.go, upload.go and auth.go of Ollama v0.17.4).
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NoReturn

import httpx

from kvsup.errors import KvsupError
from kvsup.runtime import ollamakey
from kvsup.runtime.credentials import basic_of
from kvsup.stores.manifest import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Blob
from kvsup.stores.references import OllamaName
from kvsup.stores.registries import Registry

_MEMBER = re.compile(r'(\w+)="([^"]*)"')
_MAX_TOLD_BYTES = 500
_MAX_TOKEN_BYTES = 1 << 20


class RegistryError(KvsupError):
    """A registry refused; ``status`` is its HTTP status, 0 where it could not be asked."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        self.status = status
        super().__init__(message)


class Repository:
    """One model of a registry."""

    def __init__(self, registry: Registry, name: OllamaName, http: httpx.AsyncClient) -> None:
        self._http = http
        self._tag = name.tag
        self._url = f"{registry.url}/v2/{name.namespace}/{name.model}"
        self._auth = _Auth(registry, http)

    async def manifest(self) -> bytes:
        """Return the manifest as it is.

        Raises:
            RegistryError: there is none, or it cannot be had.
        """
        url = f"{self._url}/manifests/{self._tag}"
        with _told():
            async with self._http.stream(
                "GET", url, headers={"accept": MANIFEST_TYPE}, auth=self._auth
            ) as response:
                await _check(response)
                return await _read(response, MAX_MANIFEST_BYTES)

    @asynccontextmanager
    async def open(self, blob: Blob, start: int, end: int) -> AsyncIterator[httpx.Response]:
        """Give the answer to a request for bytes ``start`` to ``end`` (not with it) of a file."""
        async with self._http.stream(
            "GET",
            f"{self._url}/blobs/{blob.oci_digest}",
            headers={"range": f"bytes={start}-{end - 1}"},
            auth=self._auth,
        ) as response:
            yield response

    async def has(self, blob: Blob) -> bool:
        """Say whether the registry has a file already."""
        with _told():
            url = f"{self._url}/blobs/{blob.oci_digest}"
            response = await self._http.head(url, auth=self._auth)
            if response.status_code == 404:
                return False
            await _check(response)
            return True

    async def begin(self) -> str:
        """Begin an upload; return where its bytes go."""
        with _told():
            url = f"{self._url}/blobs/uploads/"
            response = await self._http.post(url, auth=self._auth)
            await _check(response)
            return _next(response)

    async def append(self, where: str, start: int, data: bytes) -> str:
        """Send the next bytes of an upload; return where more go."""
        headers = {
            "content-range": f"{start}-{start + len(data) - 1}",
            "content-type": "application/octet-stream",
        }
        with _told():
            response = await self._http.patch(where, content=data, headers=headers, auth=self._auth)
            await _check(response)
            return _next(response)

    async def finish(self, where: str, blob: Blob) -> None:
        """End an upload, which is ``blob``."""
        url = httpx.URL(where).copy_merge_params({"digest": blob.oci_digest})
        with _told():
            await _check(await self._http.put(url, auth=self._auth))

    async def write_manifest(self, data: bytes) -> None:
        """Write the manifest, by which the model is there."""
        url = f"{self._url}/manifests/{self._tag}"
        headers = {"content-type": MANIFEST_TYPE}
        with _told():
            await _check(await self._http.put(url, content=data, headers=headers, auth=self._auth))


class _Auth(httpx.Auth):
    """Answers what a registry asks for, once, and goes on with what it got."""

    def __init__(self, registry: Registry, http: httpx.AsyncClient) -> None:
        self._host = registry.host
        self._origin = httpx.URL(registry.url)
        self._http = http
        self._header: str | None = None

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send a request, and where it is refused a second time with what was asked for."""
        is_own = (request.url.scheme, request.url.netloc) == (
            self._origin.scheme,
            self._origin.netloc,
        )
        if self._header is not None and is_own:
            request.headers["authorization"] = self._header
        response = yield request
        challenge = response.headers.get("www-authenticate", "")
        if response.status_code != 401 or not challenge or not is_own:
            return
        kind, members = challenge.partition(" ")[0].lower(), dict(_MEMBER.findall(challenge))
        if kind == "bearer" and "realm" in members:
            self._header = f"Bearer {await self._token(members)}"
        elif kind == "basic" and (basic := basic_of(self._host)):
            self._header = f"Basic {basic}"
        else:
            return
        request.headers["authorization"] = self._header
        yield request

    async def _token(self, members: dict[str, str]) -> str:
        """Return a token from where the registry says that it can be had."""
        scopes = members.get("scope", "").split()
        query = [("service", members.get("service", "")), *(("scope", s) for s in scopes)]
        url, basic = httpx.URL(members["realm"]), basic_of(self._host)
        is_signed = (
            basic is None and self._host in ollamakey.HOSTS and url.host == self._origin.host
        )
        for key, value in (*query, *(ollamakey.stamp() if is_signed else ())):
            if value:
                url = url.copy_add_param(key, value)
        known = ollamakey.signature(str(url), Path.home()) if is_signed else None
        who = known if basic is None else f"Basic {basic}"
        headers = {} if who is None else {"authorization": who}
        async with self._http.stream("GET", url, headers=headers) as response:
            await _check(response)
            data = await _read(response, _MAX_TOKEN_BYTES)
        try:
            found = httpx.Response(200, content=data).json()
            return str(found.get("token") or found["access_token"])
        except (ValueError, KeyError, AttributeError) as error:
            raise RegistryError(f"{url.host} gave no token") from error


@contextmanager
def _told() -> Iterator[None]:
    """Tell what goes wrong on the way."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise RegistryError(reason(error)) from error


def reason(error: Exception) -> str:
    """Return what went wrong with a request, in words."""
    request = getattr(error, "_request", None)
    where = f"{request.method} {request.url.copy_with(query=None)}: " if request else ""
    return f"{where}{str(error) or type(error).__name__}"


async def _check(response: httpx.Response) -> None:
    """Raise ``RegistryError`` for an answer that is an error."""
    if response.status_code < 400:
        return
    said = (await _read(response, _MAX_TOLD_BYTES, is_cut=True)).decode("utf-8", "replace").strip()
    await _refuse(response, said)


async def _refuse(response: httpx.Response, said: str) -> NoReturn:
    status = response.status_code
    if status == 404:
        raise RegistryError("file does not exist", status=status)
    text = f"{status}: {said}" if said else str(status)
    if status in {401, 403}:
        host = response.url.netloc.decode()
        mend = "ollama signin" if host in ollamakey.HOSTS else f"docker login {host}"
        text = f"unauthorized: access denied ({text}); {mend}"
    raise RegistryError(text, status=status)


async def _read(response: httpx.Response, max_bytes: int, *, is_cut: bool = False) -> bytes:
    if response.is_closed or response.is_stream_consumed:
        return response.content[:max_bytes]
    data = bytearray()
    async for part in response.aiter_raw():
        data += part
        if len(data) > max_bytes:
            if is_cut:
                break
            raise RegistryError(f"{response.url.host} sends more than {max_bytes} bytes")
    return bytes(data[:max_bytes])


def _next(response: httpx.Response) -> str:
    where = response.headers.get("docker-upload-location") or response.headers.get("location")
    if not where:
        raise RegistryError(f"{response.url.host} does not say where an upload goes on")
    return str(response.url.join(where))
