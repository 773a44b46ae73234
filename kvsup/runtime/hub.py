"""Models of Hugging Face: what a repository has is asked through ``huggingface_hub``.

Its files come by the same ranges as a registry's. The manifest is made here: the hub gives the
SHA-256 of every large file (``files_metadata`` of its API). ``HF_ENDPOINT`` and ``HF_TOKEN`` hold
as for the library.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING

import httpx
import msgspec
from anyio import to_thread

from kvsup.errors import KvsupError, RequestError
from kvsup.ollama.names import DEFAULT_TAG
from kvsup.stores.folders import chosen, parts_of, projector_of, quantization_of, tagged
from kvsup.stores.manifest import (
    Blob,
    Layer,
    blob_of,
    digest_in,
    encode_manifest,
    hub_origin,
    ollama_layer,
)
from kvsup.stores.references import OllamaName

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_ENDPOINT = "https://huggingface.co"
_TIMEOUT_S = 30.0
_DENIED = {401, 403}


def endpoint() -> str:
    """Return where the hub is asked."""
    return (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")


class HubRepository:
    """A model of one repository: the file that its tag means, at the commit of now."""

    def __init__(self, name: OllamaName, http: httpx.AsyncClient) -> None:
        self._repository = f"{name.namespace}/{name.model}"
        self._tag = "" if name.tag == DEFAULT_TAG else name.tag
        self._http = http
        self._config = b""
        self._urls: dict[str, str] = {}
        """Where each file is, by its digest."""
        self._headers: dict[str, str] = {}

    async def manifest(self) -> bytes:
        """Return the manifest that the model would have in a registry.

        Raises:
            KvsupError: there is no such repository or file, or it cannot be had.
        """
        info = await to_thread.run_sync(self._info)
        files = {PurePath(one.rfilename): one for one in info.siblings or ()}
        try:
            models = tagged(files)
            file = models[chosen(models, self._tag)]
            weights = parts_of(file, files)
        except ValueError as error:
            raise RequestError(f"{self._repository}: {error}") from error
        commit = str(info.sha)
        parts = [self._layer("model", files[part], commit) for part in weights]
        if projector := projector_of(files, file):
            parts.append(self._layer("projector", files[projector], commit))
        self._config = msgspec.json.encode(
            {
                "model_format": "gguf",
                "file_type": quantization_of(file),
                "architecture": "amd64",
                "os": "linux",
            }
        )
        return encode_manifest(blob_of(self._config), parts)

    @asynccontextmanager
    async def open(self, blob: Blob, start: int, end: int) -> AsyncIterator[httpx.Response]:
        """Give the answer to a request for bytes ``start`` to ``end`` (not with it) of a file."""
        if blob == blob_of(self._config):
            length = {"content-length": str(blob.size_bytes)}
            yield httpx.Response(200, stream=httpx.ByteStream(self._config), headers=length)
            return
        headers = {**self._headers, "range": f"bytes={start}-{end - 1}"}
        async with self._http.stream("GET", self._urls[blob.digest], headers=headers) as response:
            is_hubs = response.url.netloc == httpx.URL(endpoint()).netloc
            if is_hubs and response.status_code in _DENIED:
                raise KvsupError(_refused(self._repository))
            yield response

    def _info(self) -> "ModelInfo":
        """Ask the hub what the repository has; the library is slow to load, and few need it."""
        from huggingface_hub import HfApi, get_token  # noqa: PLC0415
        from huggingface_hub.errors import (  # noqa: PLC0415
            GatedRepoError,
            HfHubHTTPError,
            RepositoryNotFoundError,
        )

        token = get_token()
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            return HfApi(endpoint=endpoint()).model_info(
                self._repository, files_metadata=True, timeout=_TIMEOUT_S
            )
        except GatedRepoError as error:
            raise KvsupError(_refused(self._repository)) from error
        except RepositoryNotFoundError as error:
            raise KvsupError(
                f"{self._repository}: file does not exist; or it is private, then {_LOGIN}"
            ) from error
        except Exception as error:  # its HTTP library was requests, httpx and httpx2 in turn
            if isinstance(error, HfHubHTTPError) and error.response.status_code in _DENIED:
                raise KvsupError(_refused(self._repository)) from error
            said = str(error).splitlines() or [type(error).__name__]
            raise KvsupError(
                f"{endpoint()} does not tell of {self._repository}: {said[0]}"
            ) from error

    def _layer(self, kind: str, file: "RepoSibling", commit: str) -> Layer:
        from huggingface_hub import hf_hub_url  # noqa: PLC0415 - as above

        sha256 = file.lfs.sha256 if file.lfs else ""
        digest = digest_in(f"sha256:{sha256}")
        if digest is None or file.size is None:
            raise KvsupError(f"{self._repository}: the hub has no digest of {file.rfilename}")
        self._urls[digest] = hf_hub_url(
            self._repository, file.rfilename, revision=commit, endpoint=endpoint()
        )
        origin = hub_origin(self._repository, commit, file.rfilename)
        return ollama_layer(kind, Blob(digest, file.size), origin=origin)


_LOGIN = "set HF_TOKEN, or hf auth login"


def _refused(repository: str) -> str:
    return (
        f"unauthorized: access denied to {repository}; accept its conditions at"
        f" {endpoint()}/{repository}, then {_LOGIN}"
    )
