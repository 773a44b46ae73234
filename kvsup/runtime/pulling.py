"""Pull a model: its manifest, then its files, each whole before the model is there.

The lines are those of Ollama (server/images.go ``PullModel``, v0.17.4).
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from anyio import to_thread

from kvsup.errors import KvsupError
from kvsup.gguf import GGUFError, read_metadata_of
from kvsup.runtime.bringing import OtherFileError, link_in
from kvsup.runtime.fetching import FetchError, Files, fetch
from kvsup.runtime.ollamastore import check_config
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.works import Work
from kvsup.stores.manifest import (
    GGUF_KINDS,
    MAX_TEXT_BYTES,
    Blob,
    Manifest,
    decode_config,
    decode_manifest,
    decode_messages,
    decode_params,
)


class Source(Files, Protocol):
    """One model somewhere else."""

    async def manifest(self) -> bytes:
        """Return its manifest; raises ``KvsupError``."""


class Shelf(Protocol):
    """What another program keeps on this machine."""

    def file_of(self, blob: Blob) -> Path | None:
        """Return where a file lies, None where it is not there."""


async def pull(
    source: Source, shown: str, store: OwnStore, readable: Sequence[Shelf], work: Work
) -> bytes:
    """Have every file of a model in the store, and return its manifest.

    Args:
        source: where it is.
        shown: what it is called.
        store: where it goes; whoever calls holds ``filling``.
        readable: what lies on this machine, and need not come a second time.
        work: is told of it.

    Raises:
        CapacityError: the disk has no room for it.
        KvsupError: it cannot be had, or cannot be served.
    """
    work.say("pulling manifest")
    try:
        data = await source.manifest()
        manifest = decode_manifest(data)
        _check_sizes(manifest)
    except (KvsupError, ValueError) as error:
        raise FetchError(f"pull model manifest: {error}") from error
    wanted = [blob for blob in manifest.files() if not store.has(blob)]
    store.check_room(sum(blob.size_bytes - store.partial_bytes(blob) for blob in wanted))
    if manifest.config in wanted:  # whether llama-server can serve it is told before anything large
        await fetch(source, manifest.config, store, lambda _n_bytes: None)
    _check_text(manifest.config, "config", shown, store)
    for blob in manifest.files():
        await _have(source, blob, store, readable, work)
    work.say("verifying sha256 digest")
    for layer in manifest.layers:
        if layer.kind in GGUF_KINDS:
            await _check_gguf(store.blob_path(layer.blob), layer.kind, shown)
        else:
            _check_text(layer.blob, layer.kind, shown, store)
    return data


async def _have(
    source: Source, blob: Blob, store: OwnStore, readable: Sequence[Shelf], work: Work
) -> None:
    told = work.progress(f"pulling {blob.digest[:12]}", blob.oci_digest, blob.size_bytes)
    if not store.has(blob):
        for path in filter(None, [shelf.file_of(blob) for shelf in readable]):
            with suppress(OtherFileError):  # then it is spoilt there, and good where it comes from
                await link_in(store, path, blob, told)
                break
        else:
            await fetch(source, blob, store, told)
    told(blob.size_bytes)


def _check_sizes(manifest: Manifest) -> None:
    """Raise ValueError where a file is larger than what it is can be."""
    large = {layer.blob for layer in manifest.layers if layer.kind in GGUF_KINDS}
    for blob in manifest.files():
        if blob not in large and blob.size_bytes > MAX_TEXT_BYTES:
            raise ValueError(
                f"{blob.oci_digest} has {blob.size_bytes} bytes, and what it is"
                f" {MAX_TEXT_BYTES} at most"
            )
    _ = manifest.weights


def _check_text(blob: Blob, kind: str, shown: str, store: OwnStore) -> None:
    """Raise KvsupError where a small layer is not what it is to be, or cannot be served."""
    try:
        data = store.read(blob, shown)
        if kind == "config":
            check_config(decode_config(data), shown)
        elif kind == "params":
            decode_params(data)
        elif kind == "messages":
            decode_messages(data)
    except ValueError as error:
        raise FetchError(f"{shown} cannot be served: {error}") from error


async def _check_gguf(path: Path, kind: str, shown: str) -> None:
    try:
        await to_thread.run_sync(read_metadata_of, path)
    except (GGUFError, OSError) as error:
        raise FetchError(f"{shown} cannot be served: its {kind} is no GGUF: {error}") from error
