"""Ollama's store of models, read as it is: manifests, and the files that they name."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvsup.ollama.modelfiles import ROLES
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

_SERVICE = Path("/usr/share/ollama/.ollama/models")
"""Where Ollama keeps models as a service of the system (its installation script)."""


def places_of(named: str | None) -> list[Path]:
    """Return where a store may lie: where ``OLLAMA_MODELS`` says, else at a user's, a service's."""
    if named:
        return [Path(os.path.abspath(os.path.expanduser(named)))]  # noqa: PTH100, PTH111 - links stay, "~nobody" too
    return [Path.home() / ".ollama/models", _SERVICE]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a manifest and its small layers say of a model."""

    manifest: Manifest
    config: Config
    parameters: Mapping[str, Any]
    system: str
    messages: Sequence[Mapping[str, str]]
    """``role`` and ``content`` of each, as the key of a TOML file has them."""


class OllamaStore:
    """One folder with ``manifests`` and ``blobs``, of which nothing is ever changed."""

    pull = "ollama pull"
    """What fetches a model of it anew."""

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

    def facts(self, name: OllamaName) -> Facts:
        """Return what the manifest of a model and its small layers say.

        Raises:
            ValueError: something of it is missing or wrong.
        """
        manifest, shown = decode_manifest(self.manifest_data(name)), shown_name(name)
        parameters: dict[str, Any] = {}
        for blob in manifest.blobs("params"):
            parameters |= decode_params(self.read(blob, shown))
        return Facts(
            manifest,
            config=decode_config(self.read(manifest.config, shown)),
            parameters=parameters,
            system=self._text(manifest, "system", shown=shown),
            messages=self._messages(manifest, shown),
        )

    def manifest_data(self, name: OllamaName) -> bytes:
        """Return the manifest of a model as it is written.

        Raises:
            ValueError: it cannot be read.
        """
        return read_small(self.manifest_path(name), self.root, max_bytes=MAX_MANIFEST_BYTES)

    def has(self, blob: Blob) -> bool:
        """Say whether a file is there in its full length."""
        try:
            return self.blob_path(blob).stat().st_size == blob.size_bytes
        except OSError:
            return False

    def file_of(self, blob: Blob) -> Path | None:
        """Return where a file of a model lies; None where it is not there in its full length."""
        return self.blob_path(blob) if self.has(blob) else None

    def blob_path(self, blob: Blob) -> Path:
        """Return where a file of a model lies."""
        return self.root / "blobs" / blob.file_name

    def stored(self, name: OllamaName) -> Stored:
        """Return a model with all that the store says of it.

        Raises:
            ValueError: llama-server cannot serve it, or something of it is missing or wrong.
        """
        facts, shown = self.facts(name), shown_name(name)
        manifest = facts.manifest
        check_config(facts.config, shown)
        return Stored(
            reference=f"{OLLAMA}{shown}",
            name=shown,
            weights=str(self._weights(manifest, shown)),
            table=self._table(facts, shown),
            digest=hashlib.sha256(self.manifest_data(name)).hexdigest(),
            go_template=self._text(manifest, "template", "prompt", shown=shown),
            licenses=tuple(str(self._path(b, shown)) for b in manifest.blobs("license")),
            notes=tuple(_notes(facts.config)),
        )

    def _weights(self, manifest: Manifest, shown: str) -> Path:
        files = [self._path(blob, shown) for blob in manifest.weights]
        return files[0] if len(files) == 1 else self.joined(files)

    def joined(self, parts: Sequence[Path]) -> Path:
        """Return the first part of a split model under a name by which the others are found.

        Raises:
            ValueError: it cannot be made.
        """
        raise ValueError(f"its weights are in {len(parts)} files, which have no names to split by")

    def _table(self, facts: Facts, shown: str) -> dict[str, object]:
        table = settings_of(facts.parameters)
        for key, kind in (("mmproj", "projector"), ("draft_model", "draft")):
            for blob in facts.manifest.blobs(kind)[:1]:
                table[key] = str(self._path(blob, shown))
        if facts.system:
            table["system"] = facts.system
        if facts.messages:
            table["messages"] = list(facts.messages)
        if adapters := facts.manifest.blobs("adapter"):
            table["adapters"] = [str(self._path(blob, shown)) for blob in adapters]
        return table

    def _messages(self, manifest: Manifest, shown: str) -> list[dict[str, str]]:
        """Return the last layer of messages, without roles that a Modelfile cannot have."""
        return [
            {"role": turn.role, "content": turn.content}
            for blob in manifest.blobs("messages")[-1:]
            for turn in decode_messages(self.read(blob, shown))
            if turn.role in ROLES
        ]

    def _text(self, manifest: Manifest, *kinds: str, shown: str) -> str:
        """Return the last layer of a kind as text; empty where there is none."""
        layers = [self.read(blob, shown) for blob in manifest.blobs(*kinds)[-1:]]
        return b"".join(layers).decode(errors="replace")

    def read(self, blob: Blob, shown: str) -> bytes:
        """Return a small file, which is what its name says."""
        path = self._path(blob, shown)
        data = read_small(path, self.root, max_bytes=MAX_TEXT_BYTES)
        if hashlib.sha256(data).hexdigest() != blob.digest:
            raise ValueError(f"{path} is not what its name says; {self.pull} {shown}")
        return data

    def _path(self, blob: Blob, shown: str) -> Path:
        path = self.blob_path(blob)
        try:
            size_bytes = inside(path, self.root).stat().st_size
        except ValueError as error:
            raise ValueError(f"{error}; {self.pull} {shown}") from None
        if size_bytes != blob.size_bytes:
            raise ValueError(
                f"{path} has {size_bytes} bytes instead of {blob.size_bytes}; {self.pull} {shown}"
            )
        return path


def shown_name(name: OllamaName) -> str:
    """Return a name in its shortest form, with the tag."""
    return display_name(_spelled(name.parts))


def _spelled(parts: tuple[str, ...]) -> str:
    *folders, tag = parts
    return f"{'/'.join(folders)}:{tag}"


def _notes(config: Config) -> Iterator[str]:
    if program := config.renderer or config.parser:
        yield (
            f"Ollama writes its prompts by a program of its own ({quoted(program[:40])});"
            " here the GGUF's chat template does"
        )


def check_config(config: Config, shown: str) -> None:
    """Raise ValueError where llama-server cannot serve a model, for what its config says."""
    if config.remote_host:
        where = quoted(config.remote_host[:80])
        raise ValueError(f"{shown} runs in a cloud ({where}), and kvsup has none")
    if config.model_format not in {"", "gguf"}:
        form = quoted(config.model_format[:40])
        raise ValueError(f"it is in the format {form}, and llama-server reads GGUF only")
