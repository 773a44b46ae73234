"""The manifest of a model in Ollama's store, and its small layers.

``config`` and ``layers``, each a ``mediaType``, ``digest`` and ``size`` (manifest/manifest.go and
types/model/config.go, 2026-08). A digest becomes the name of a file, so its form is checked.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

T = TypeVar("T")

MAX_MANIFEST_BYTES = 4 << 20
"""One of a safetensors model names each tensor."""

MAX_TEXT_BYTES = 1 << 20
"""A template, a system prompt, parameters, a license."""

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"

GGUF_KINDS = ("model", "projector", "adapter", "draft")
"""Kinds of layers that are GGUF files; all others are texts."""

_PREFIX = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_ORIGIN = re.compile(r"hf\.co/[^@]+@([0-9a-f]{40})/.+", re.DOTALL)
_UNSERVABLE = ("tensor", "json")


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of the store."""

    digest: str
    """SHA-256 as 64 hex digits."""
    size_bytes: int

    @property
    def file_name(self) -> str:
        """Return its name in the folder ``blobs``."""
        return f"sha256-{self.digest}"

    @property
    def oci_digest(self) -> str:
        """Return its digest as manifests and registries have it."""
        return f"sha256:{self.digest}"


def blob_of(data: bytes) -> Blob:
    """Return the blob that holds ``data``."""
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def digest_in(text: str) -> str | None:
    """Return the 64 hex digits of ``sha256:…`` or ``sha256-…``; None if it is neither."""
    match = _DIGEST.fullmatch(text)
    return match[1] if match else None


@dataclass(frozen=True, slots=True)
class Layer:
    """A file of a model, and what it is to it."""

    media_type: str
    blob: Blob
    origin: str = ""
    """Name of the model, or path of the file, that it was taken from; ``from`` on the disk."""

    @property
    def kind(self) -> str:
        """Return ``model``, ``projector``, ``template`` …; empty where it is none of Ollama's."""
        is_ollamas = self.media_type.startswith(_PREFIX)
        return self.media_type.removeprefix(_PREFIX) if is_ollamas else ""


def ollama_layer(kind: str, blob: Blob, *, origin: str = "") -> Layer:
    """Return a layer of one of Ollama's kinds."""
    return Layer(f"{_PREFIX}{kind}", blob, origin)


def hub_origin(repository: str, commit: str, file: str) -> str:
    """Return what the origin of a file of Hugging Face is written as."""
    return f"hf.co/{repository}@{commit}/{file}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model consists of."""

    config: Blob
    layers: tuple[Layer, ...]
    """In their order, those that nobody here reads too."""

    def blobs(self, *kinds: str) -> tuple[Blob, ...]:
        """Return the files of some kinds, in their order."""
        return tuple(layer.blob for layer in self.layers if layer.kind in kinds)

    def files(self) -> Iterator[Blob]:
        """Yield every file, each once, the config last."""
        yield from dict.fromkeys((*(layer.blob for layer in self.layers), self.config))

    @property
    def commit(self) -> str:
        """Return at which commit of Hugging Face its files were; empty if they are not of there."""
        matches = (_ORIGIN.fullmatch(layer.origin) for layer in self.layers)
        return next((match[1] for match in matches if match), "")

    @property
    def weights(self) -> tuple[Blob, ...]:
        """Return the GGUF file, of a split model all parts in their order.

        Raises:
            ValueError: there is none.
        """
        files = self.blobs("model")
        if not files and self.blobs(*_UNSERVABLE):
            raise ValueError("it is made of safetensors, which llama-server does not read")
        if not files:
            raise ValueError("it has no weights")
        return files


class _Layer(Struct, omit_defaults=True):
    media_type: str = field(name="mediaType", default="")
    digest: str = ""
    size: int = 0
    origin: str = field(name="from", default="")


class _Manifest(Struct):
    config: _Layer
    layers: list[_Layer]


class _Written(Struct):
    schema_version: int = field(name="schemaVersion")
    media_type: str = field(name="mediaType")
    config: _Layer
    layers: list[_Layer]


class Config(Struct, frozen=True):
    """What the config says of the model, beside much that nobody reads."""

    model_format: str = ""
    model_family: str = ""
    renderer: str = ""
    """How Ollama itself writes prompts of the model, without a template."""
    parser: str = ""
    remote_host: str = ""
    """Where the model of a mere stub runs."""


class Turn(Struct, frozen=True):
    """One of the messages that stand before each conversation."""

    role: str
    content: str = ""


def decode_manifest(data: bytes) -> Manifest:
    """Return a manifest.

    Raises:
        ValueError: it is none.
    """
    found = _decoded(data, _Manifest, "manifest")
    layers = (Layer(one.media_type, _blob(one), one.origin) for one in found.layers)
    return Manifest(_blob(found.config), tuple(layers))


def upstream_change(before: bytes, after: bytes) -> str:
    """Return from which commit to which Hugging Face has other files; empty where it has not.

    Args:
        before: the manifest that was here.
        after: the one that was pulled.
    """
    try:
        old, new = decode_manifest(before), decode_manifest(after)
    except ValueError:
        return ""
    is_same = old.blobs(*GGUF_KINDS) == new.blobs(*GGUF_KINDS)
    if is_same or not (old.commit and new.commit):
        return ""
    return f"{old.commit[:12]} -> {new.commit[:12]}"


def encode_manifest(config: Blob, layers: Iterable[Layer]) -> bytes:
    """Return a manifest as Ollama writes it (manifest/manifest.go, 2026-08)."""
    written = [
        _Layer(one.media_type, one.blob.oci_digest, one.blob.size_bytes, one.origin)
        for one in layers
    ]
    head = _Layer(CONFIG_TYPE, config.oci_digest, config.size_bytes)
    return msgspec.json.encode(_Written(2, MANIFEST_TYPE, head, written))


def decode_config(data: bytes) -> Config:
    """Return a config.

    Raises:
        ValueError: it is none.
    """
    return _decoded(data, Config, "config")


def decode_params(data: bytes) -> dict[str, Any]:
    """Return the parameters of a model.

    Raises:
        ValueError: they are no JSON object.
    """
    return _decoded(data, dict[str, Any], "layer of parameters")


def decode_messages(data: bytes) -> list[Turn]:
    """Return the messages of a model.

    Raises:
        ValueError: they are no JSON array of messages.
    """
    return _decoded(data, list[Turn], "layer of messages")


def _decoded(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its {what} is wrong: {error}") from None


def _blob(layer: _Layer) -> Blob:
    digest = digest_in(layer.digest)
    if digest is None:
        raise ValueError(f"its manifest has {layer.digest[:80]!r} for a digest")
    if layer.size < 0:
        raise ValueError(f"its manifest has a size of {layer.size} bytes")
    return Blob(digest, layer.size)
