"""Ollama's store of models, read as it is: manifests, and the files that they name."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvsup.ollama.names import display_name, quoted, valid_name
from kvsup.runtime.storefiles import files_in, folders_in, inside, read_small
from kvsup.stores.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_TEXT_BYTES,
    Blob,
    Config,
    Manifest,
    decode_config,
    decode_manifest,
    decode_messages,
    decode_params,
)
from kvsup.stores.parameters import settings_of
from kvsup.stores.references import OLLAMA, OllamaName
from kvsup.stores.stored import Stored


class OllamaStore:
    """One folder with ``manifests`` and ``blobs``, of which nothing is ever changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._manifests = root / "manifests"

    def is_there(self) -> bool:
        """Say whether there is such a store that can be read."""
        return bool(folders_in(self._manifests))

    def folders(self) -> Iterator[Path]:
        """Yield each folder in which a manifest may appear."""
        levels = [self._manifests]
        for _ in range(4):
            yield from levels
            levels = [inner for folder in levels for inner in folders_in(folder)]

    def names(self) -> list[OllamaName]:
        """Return the names of all models: of manifests that lie where a name would put them."""
        found = []
        for host in folders_in(self._manifests):
            for namespace in folders_in(host):
                for model in folders_in(namespace):
                    for tag in files_in(model):
                        parts = (host.name, namespace.name, model.name, tag.name)
                        if valid_name(_spelled(parts)):
                            found.append(OllamaName(*parts))
        return found

    def manifest_path(self, name: OllamaName) -> Path:
        """Return where the manifest of a model lies."""
        return self._manifests.joinpath(*name.parts)

    def find(self, name: OllamaName) -> OllamaName | None:
        """Return ``name`` as the disk spells it, whatever its case; None if it is not there."""
        if self.manifest_path(name).is_file():
            return name
        wanted = [part.lower() for part in name.parts]
        same = (n for n in self.names() if [part.lower() for part in n.parts] == wanted)
        return next(same, None)

    def stored(self, name: OllamaName) -> Stored:
        """Return a model with all that the store says of it.

        Raises:
            ValueError: llama-server cannot serve it, or something of it is missing or wrong.
        """
        shown = display_name(_spelled(name.parts))
        data = read_small(self.manifest_path(name), self.root, max_bytes=MAX_MANIFEST_BYTES)
        manifest = decode_manifest(data)
        config = decode_config(self._read(manifest.config, shown))
        _check(config, shown)
        weights = self._path(manifest.weights, shown)
        return Stored(
            reference=f"{OLLAMA}{shown}",
            name=shown,
            weights=str(weights),
            table=self._table(manifest, shown),
            go_template=self._text(manifest, "template", "prompt", shown=shown),
            licenses=tuple(str(self._path(b, shown)) for b in manifest.blobs("license")),
            notes=tuple(self._notes(manifest, config, shown)),
        )

    def _table(self, manifest: Manifest, shown: str) -> dict[str, object]:
        parameters: dict[str, Any] = {}
        for blob in manifest.blobs("params"):
            parameters |= decode_params(self._read(blob, shown))
        table = settings_of(parameters)
        for key, kind in (("mmproj", "projector"), ("draft_model", "draft")):
            for blob in manifest.blobs(kind)[:1]:
                table[key] = str(self._path(blob, shown))
        if system := self._text(manifest, "system", shown=shown):
            table["system"] = system
        adapters = [str(self._path(blob, shown)) for blob in manifest.blobs("adapter")]
        if adapters:
            table["extra_args"] = [word for path in adapters for word in ("--lora", path)]
        return table

    def _notes(self, manifest: Manifest, config: Config, shown: str) -> Iterator[str]:
        if program := config.renderer or config.parser:
            yield (
                f"Ollama writes its prompts by a program of its own ({quoted(program[:40])});"
                " here the GGUF's chat template does"
            )
        if any(decode_messages(self._read(b, shown)) for b in manifest.blobs("messages")):
            yield "the messages that Ollama puts before each of its conversations are left out"

    def _text(self, manifest: Manifest, *kinds: str, shown: str) -> str:
        """Return the last layer of a kind as text; empty where there is none."""
        layers = [self._read(blob, shown) for blob in manifest.blobs(*kinds)[-1:]]
        return b"".join(layers).decode(errors="replace")

    def _read(self, blob: Blob, shown: str) -> bytes:
        """Return a small file, which is what its name says."""
        path = self._path(blob, shown)
        data = read_small(path, self.root, max_bytes=MAX_TEXT_BYTES)
        if hashlib.sha256(data).hexdigest() != blob.digest:
            raise ValueError(f"{path} is not what its name says; ollama pull {shown}")
        return data

    def _path(self, blob: Blob, shown: str) -> Path:
        path = self.root / "blobs" / blob.file_name
        try:
            size_bytes = inside(path, self.root).stat().st_size
        except ValueError as error:
            raise ValueError(f"{error}; ollama pull {shown}") from None
        if size_bytes != blob.size_bytes:
            raise ValueError(
                f"{path} has {size_bytes} bytes instead of {blob.size_bytes}; ollama pull {shown}"
            )
        return path


def _spelled(parts: tuple[str, ...]) -> str:
    *folders, tag = parts
    return f"{'/'.join(folders)}:{tag}"


def _check(config: Config, shown: str) -> None:
    if config.remote_host:
        where = quoted(config.remote_host[:80])
        raise ValueError(f"{shown} runs in a cloud ({where}), and kvsup has none")
    if config.model_format not in {"", "gguf"}:
        form = quoted(config.model_format[:40])
        raise ValueError(f"it is in the format {form}, and llama-server reads GGUF only")
