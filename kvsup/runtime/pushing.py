"""Push a model to a registry, file by file, the manifest last.

The lines are those of Ollama (server/images.go ``PushModel``, v0.17.4).
"""

from collections.abc import Callable

from anyio import to_thread

from kvsup.errors import KvsupError
from kvsup.runtime.ollamastore import OllamaStore
from kvsup.runtime.registry import RegistryError, Repository
from kvsup.runtime.works import Work
from kvsup.stores.manifest import Blob, decode_manifest
from kvsup.stores.references import OllamaName

PIECE_BYTES = 16 << 20
"""Of a file in one request, which is repeated as a whole where it fails."""

_MAX_TRIES = 4

Say = Callable[[int], None]


async def push(repository: Repository, store: OllamaStore, name: OllamaName, work: Work) -> None:
    """Have a model of ``store`` in ``repository``.

    Raises:
        KvsupError: something of it cannot be read, or the registry does not take it.
    """
    work.say("retrieving manifest")
    try:
        data = store.manifest_data(name)
        manifest = decode_manifest(data)
    except ValueError as error:
        work.say("couldn't retrieve manifest")
        raise KvsupError(str(error)) from error
    for blob in manifest.files():
        say = work.progress(f"pushing {blob.digest[:12]}", blob.oci_digest, blob.size_bytes)
        say(0)
        if not await repository.has(blob):
            await _send(repository, store, blob, say)
        say(blob.size_bytes)
    work.say("pushing manifest")
    await repository.write_manifest(data)


async def _send(repository: Repository, store: OllamaStore, blob: Blob, say: Say) -> None:
    """Send a file, from its begin where that breaks off."""
    for n_tries in range(1, _MAX_TRIES + 1):
        failed = await _sent(repository, store, blob, say)
        if failed is None:
            return
        if 400 <= failed.status < 500 or n_tries == _MAX_TRIES:
            raise failed


async def _sent(
    repository: Repository, store: OllamaStore, blob: Blob, say: Say
) -> RegistryError | None:
    """Send a file; return what went wrong on the way."""
    path = store.blob_path(blob)
    try:
        where = await repository.begin()
        with await to_thread.run_sync(path.open, "rb") as file:
            at = 0
            while piece := await to_thread.run_sync(file.read, PIECE_BYTES):
                where = await repository.append(where, at, piece)
                at += len(piece)
                say(at)
        await repository.finish(where, blob)
    except RegistryError as error:
        return error
    except OSError as error:
        raise KvsupError(f"{path} cannot be read: {error}") from error
    return None
