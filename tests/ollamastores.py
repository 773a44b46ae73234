"""Ollama stores laid out by hand, as Ollama writes them (manifest/, 2026-08)."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

KIND = "application/vnd.ollama.image."


class Store:
    """A store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True)

    def blob(self, content: bytes | Path) -> str:
        """Keep a blob, a file by a link, and return its digest."""
        data = content.read_bytes() if isinstance(content, Path) else content
        hexadecimal = hashlib.sha256(data).hexdigest()
        path = self.folder / "blobs" / f"sha256-{hexadecimal}"
        if not path.exists():
            path.symlink_to(content) if isinstance(content, Path) else path.write_bytes(data)
        return f"sha256:{hexadecimal}"

    def add(self, name: str, config: Mapping[str, object], **layers: bytes | Path) -> Path:
        """Add the model ``HOST/NAMESPACE/MODEL/TAG``, and return its manifest."""
        manifest = {
            "schemaVersion": 2,
            "config": {"digest": self.blob(json.dumps(config).encode())},
            "layers": [
                {"mediaType": KIND + kind, "digest": self.blob(content)}
                for kind, content in layers.items()
            ],
        }
        return self.manifest(name, json.dumps(manifest))

    def manifest(self, name: str, text: str) -> Path:
        """Write a manifest as it is."""
        path = self.folder / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path
