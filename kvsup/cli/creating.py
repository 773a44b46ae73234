"""``kvsup create``: read a Modelfile, bring the files that it names, and have the model made."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from kvsup.cli import client, offline
from kvsup.cli.progress import Line, shown
from kvsup.errors import KvsupError
from kvsup.gguf import split_paths
from kvsup.ollama.creation import request_body
from kvsup.ollama.modelfiles import Modelfile, parse_modelfile
from kvsup.ollama.names import quoted, valid_name
from kvsup.ollama.storerequests import decode_create
from kvsup.runtime.bringing import digest_of

Show = Callable[[Line], None]
Bring = Callable[[Path, Show], str]
"""Has a file in the store, and returns its digest as ``sha256:…``."""


def create(model: str, path: Path, quantize: str, config: Path | None) -> None:
    """Make ``model`` as the Modelfile at ``path`` says.

    Raises:
        KvsupError: it cannot be read, is wrong, or its model cannot be made.
    """
    try:
        file = parse_modelfile(path.read_bytes())
    except OSError as error:
        raise KvsupError(f"{path} cannot be read: {error.strerror}; name it by --file") from error
    is_running = client.get_if_running("/api/version") is not None
    bring = _upload if is_running else offline.bringing(config)
    with shown() as show:
        body = _body(
            model,
            file,
            path.parent,
            quantize=quantize,
            bring=lambda found: bring(found, show),
            show=show,
        )
        if is_running:
            for line in client.objects_if_running("/api/create", body) or ():
                show(line)
        else:
            request = decode_create(json.dumps(body).encode())
            offline.follow(lambda works: works.create(request), config, show)


def _body(
    model: str,
    file: Modelfile,
    folder: Path,
    *,
    quantize: str,
    bring: Callable[[Path], str],
    show: Show,
) -> dict[str, object]:
    """Return the request for ``/api/create``, once every file that it names is in the store."""
    bases = [text for text in file.models if not _is_path(text, folder)]
    if len(bases) > 1:
        raise KvsupError(f"a model is built on one other, not on {' and '.join(bases)}")
    for base in bases:
        if not valid_name(base):
            raise KvsupError(f"FROM {quoted(base)} is no file that is there, and no model's name")
    request_body(model, file, base="", files={}, adapters={}, drafts={})  # told before files come

    def brought(texts: Iterable[str]) -> dict[PurePath, str]:
        paths = [path for text in texts for path in _files(text, folder)]
        return {path: bring(path) for path in paths}

    body, dead = request_body(
        model,
        file,
        base="".join(bases),
        files=brought(text for text in file.models if text not in bases),
        adapters=brought(file.adapters),
        drafts=brought([file.draft] if file.draft else []),
        quantize=quantize,
    )
    for name in dead:
        show({"status": f"PARAMETER {name} does nothing any more"})
    return body


def _is_path(text: str, folder: Path) -> bool:
    return text.startswith(("/", "./", "../", "~")) or (folder / text).exists()


def _files(text: str, folder: Path) -> list[Path]:
    """Return the GGUF files that a Modelfile means: one, all its parts, or those of a folder."""
    path = folder / Path(text).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        if not found:
            raise KvsupError(
                f"{path} has no GGUF file; convert what it has by llama.cpp's convert_hf_to_gguf.py"
            )
        return found
    if not path.is_file():
        raise KvsupError(f"{path}: no such file")
    return list(split_paths(path))


def _upload(path: Path, show: Show) -> str:
    size_bytes = path.stat().st_size

    def told(n_bytes: int) -> None:
        show({"status": f"hashing {path.name}", "total": size_bytes, "completed": n_bytes})

    try:
        digest = f"sha256:{digest_of(path, told)}"
        if not client.has(f"/api/blobs/{digest}"):
            show({"status": f"copying {path.name}"})
            with path.open("rb") as file:
                client.send_file("POST", f"/api/blobs/{digest}", file)
    except OSError as error:
        raise KvsupError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest
