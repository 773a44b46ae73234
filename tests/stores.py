"""Stores of models laid out by hand, as the programs that keep them do, around files that exist."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from kvsup.ollama.names import full_name

OLLAMA_TYPE = "application/vnd.ollama.image."
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"

Layer = dict[str, object]


def link(source: Path, target: Path) -> Path:
    """Put a file at ``target`` without copying it, where the two share a disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        try:
            os.link(source, target)
        except OSError:
            shutil.copy(source, target)
    return target


class OllamaLayout:
    """An Ollama store: manifests, and blobs by their digests (manifest/, 2026-08)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True)
        (root / "manifests").mkdir()

    def file(self, kind: str, path: Path, *, digest: str | None = None) -> Layer:
        """Put a large file into the store; its name is not what it hashes to unless said."""
        digest = digest or hashlib.sha256(str(path).encode()).hexdigest()
        link(path, self.root / "blobs" / f"sha256-{digest}")
        return _layer(f"{OLLAMA_TYPE}{kind}", digest, path.stat().st_size)

    def text(self, kind: str, content: str | bytes) -> Layer:
        """Put a small layer into the store."""
        return self._small(f"{OLLAMA_TYPE}{kind}", content)

    def add(
        self,
        name: str,
        *layers: Layer,
        config: Mapping[str, object] | None = None,
    ) -> Path:
        """Write the manifest of a model, named as Ollama names it."""
        described = {"model_format": "gguf", "architecture": "amd64", "os": "linux"}
        told = json.dumps({**described, **(config or {})})
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self._small(CONFIG_TYPE, told),
            "layers": list(layers),
        }
        return self.raw("/".join(full_name(name).rsplit(":", 1)), json.dumps(manifest))

    def raw(self, path: str, content: str | bytes) -> Path:
        """Write anything where a manifest could be."""
        target = self.root / "manifests" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def blob(self, layer: Layer) -> Path:
        """Return the file of a layer."""
        return self.root / "blobs" / str(layer["digest"]).replace(":", "-")

    def _small(self, media_type: str, content: str | bytes) -> Layer:
        data = content.encode() if isinstance(content, str) else content
        digest = hashlib.sha256(data).hexdigest()
        (self.root / "blobs" / f"sha256-{digest}").write_bytes(data)
        return _layer(media_type, digest, len(data))


class HubLayout:
    """The cache of huggingface_hub: ``blobs``, ``refs`` and ``snapshots`` of each repository."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)

    def add(
        self,
        repository: str,
        file: str,
        source: Path,
        *,
        revision: str = "a" * 40,
        digest: str = "",
    ) -> Path:
        """Put a file into a revision, which becomes that of the main branch.

        Its blob is not called by what it hashes to unless ``digest`` says so.
        """
        folder = self.root / f"models--{repository.replace('/', '--')}"
        digest = digest or hashlib.sha256(file.encode()).hexdigest()
        blob = link(source, folder / "blobs" / digest)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
        there = folder / "snapshots" / revision / file
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(os.path.relpath(blob, there.parent))
        return there


def _layer(media_type: str, digest: str, size_bytes: int) -> Layer:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size_bytes}
