"""The manifest of a model in Ollama's store, and its small layers.

``config`` and ``layers``, each a ``mediaType``, ``digest`` and ``size`` (manifest/manifest.go and
types/model/config.go, 2026-08). A digest becomes the name of a file, so its form is checked.
"""

import re
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

T = TypeVar("T")

MAX_MANIFEST_BYTES = 4 << 20
"""One of a safetensors model names each tensor."""

MAX_TEXT_BYTES = 1 << 20
"""A template, a system prompt, parameters, a license."""

_PREFIX = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
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


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model consists of."""

    config: Blob
    layers: tuple[tuple[str, Blob], ...]
    """Kind (``model``, ``projector``, ``template`` …) and file, in their order."""

    def blobs(self, *kinds: str) -> tuple[Blob, ...]:
        """Return the files of some kinds, in their order."""
        return tuple(blob for kind, blob in self.layers if kind in kinds)

    @property
    def weights(self) -> Blob:
        """Return the GGUF file.

        Raises:
            ValueError: there is none, or it is one of several.
        """
        files = self.blobs("model")
        if len(files) == 1:
            return files[0]
        if files:
            raise ValueError("its weights are in several files, which have no names to split by")
        if self.blobs(*_UNSERVABLE):
            raise ValueError("it is made of safetensors, which llama-server does not read")
        raise ValueError("it has no weights")


class _Layer(Struct):
    digest: str
    size: int
    media_type: str = field(name="mediaType", default="")


class _Manifest(Struct):
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
    layers = tuple(
        (layer.media_type.removeprefix(_PREFIX), _blob(layer))
        for layer in found.layers
        if layer.media_type.startswith(_PREFIX)
    )
    return Manifest(_blob(found.config), layers)


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
    match = _DIGEST.fullmatch(layer.digest)
    if match is None:
        raise ValueError(f"its manifest has {layer.digest[:80]!r} for a digest")
    if layer.size < 0:
        raise ValueError(f"its manifest has a size of {layer.size} bytes")
    return Blob(match[1], layer.size)
