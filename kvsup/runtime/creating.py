"""Make a model of kvsup's own store out of another one, or of files that were uploaded.

The layers and what is said of each step are Ollama's (server/create.go, v0.17.4).
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from anyio import to_thread

from kvsup.errors import KvsupError, RequestError
from kvsup.gguf import GGUFError, Metadata, read_metadata_of
from kvsup.ggufnames import parameter_size
from kvsup.ollama.gotemplate import TemplateError
from kvsup.ollama.prompt import PromptTemplate
from kvsup.ollama.storerequests import CreateRequest
from kvsup.runtime.bringing import copy_in, digest_of, link_in
from kvsup.runtime.filestamps import stamp_of
from kvsup.runtime.ollamastore import OllamaStore, shown_name
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.quantizing import check_source, checked_type, program_beside, quantize
from kvsup.runtime.weightsums import WeightSums
from kvsup.runtime.works import Work
from kvsup.stores.manifest import (
    Blob,
    Layer,
    digest_in,
    encode_manifest,
    ollama_layer,
)
from kvsup.stores.references import OllamaName

NO_DIGEST = "0" * 19
"""Stands where a line has bytes and no file yet (server/create.go); clients want so many signs."""

_SMALL = {"template": ("template", "prompt"), "system": ("system",), "messages": ("messages",)}
"""What each replaces of the model that is built on."""


@dataclass(frozen=True, slots=True)
class Files:
    """Files of the disk that a model is built on, with what its settings say."""

    paths: tuple[tuple[str, Path], ...]
    """Kind of layer and path."""
    parameters: Mapping[str, Any]
    system: str = ""
    name: str = ""
    """Of the model that has them."""


@dataclass(frozen=True, slots=True)
class StoreModel:
    """A model of a store that is built on."""

    store: OllamaStore
    name: OllamaName
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What a TOML file has over those of the store."""
    system: str = ""
    """Likewise."""


@dataclass(slots=True)
class Parts:
    """A model while it is made."""

    layers: list[Layer] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)

    def replace(self, kinds: Iterable[str], layer: Layer) -> None:
        """Put a layer in the place of those of some kinds."""
        self.layers = [one for one in self.layers if one.kind not in kinds] + [layer]


class Creator:
    """Makes models in one store, as one work."""

    def __init__(
        self, store: OwnStore, work: Work, *, sums: WeightSums, llama_server: str | None
    ) -> None:
        """Make models in ``store``, and tell ``work``.

        Args:
            store: kvsup's own.
            work: is told of it.
            sums: what files hash to, as far as it is known.
            llama_server: path of the binary in use, None where there is none.
        """
        self._store = store
        self._work = work
        self._sums = sums
        self._llama_server = llama_server

    async def create(
        self, request: CreateRequest, base: Files | StoreModel | None
    ) -> tuple[bytes, dict[str, Any], str]:
        """Write every file of a model, and return its manifest, its parameters and its template.

        Args:
            request: what it is to be.
            base: what ``from`` means; None where files were uploaded.

        Raises:
            RequestError: the request is wrong.
            KvsupError: something cannot be read, written or run.
        """
        if not _is_jinja(request.template):
            _check_template(request.template)
        parts = await self._base(base) if base is not None else await self._uploaded(request.files)
        if _is_jinja(request.template):
            await self._check_jinja(parts, request.template)
            request = msgspec.structs.replace(request, template="")
        for path, text in request.adapters.items():
            parts.layers += await self._gguf_layers({path: text}, only="adapter")
        for path, text in request.draft_files.items():
            parts.layers += await self._gguf_layers({path: text}, only="draft")
        if request.quantize:
            await self._quantize(parts, request.quantize)
        await self._describe(parts, request)
        for layer in parts.layers:
            self._work.say(f"using existing layer {layer.blob.oci_digest}")
        await self._add_texts(parts, request)
        config = await to_thread.run_sync(self._store.put, msgspec.json.encode(parts.config))
        return encode_manifest(config, parts.layers), parts.parameters, request.template

    async def _base(self, base: Files | StoreModel) -> Parts:
        if isinstance(base, StoreModel):
            parts = await self._of_store(base)
        else:
            parts = await self._of_files(base)
        if base.system:
            blob = await to_thread.run_sync(self._store.put, base.system.encode())
            parts.replace(("system",), ollama_layer("system", blob))
        return parts

    async def _of_files(self, base: Files) -> Parts:
        layers = []
        for kind, path in base.paths:
            blob = await self._copied(path)
            layers.append(ollama_layer(kind, blob, origin=base.name))
        return Parts(layers, parameters=dict(base.parameters))

    async def _copied(self, path: Path) -> Blob:
        """Have a file of the disk in the store; one that is there is known by its sum."""
        try:
            stamp = stamp_of(path)
            digest = self._sums.known(path)
        except OSError as error:
            raise KvsupError(f"{path} cannot be read: {error.strerror}") from error
        if digest is not None and self._store.has(Blob(digest, stamp.size_bytes)):
            return Blob(digest, stamp.size_bytes)
        told = self._work.progress(f"copying {path.name}", NO_DIGEST, stamp.size_bytes)
        blob = await copy_in(self._store, path, told)
        self._sums.learn(path, stamp, blob.digest)
        return blob

    async def _of_store(self, base: StoreModel) -> Parts:
        facts, shown = base.store.facts(base.name), shown_name(base.name)
        layers = []
        for layer in facts.manifest.layers:
            blob = layer.blob
            if not self._store.has(blob):
                told = self._work.progress(
                    f"taking {blob.digest[:12]}", blob.oci_digest, blob.size_bytes
                )
                await link_in(self._store, base.store.blob_path(blob), blob, told)
            layers.append(replace(layer, origin=layer.origin or shown))
        config = msgspec.json.decode(
            base.store.read(facts.manifest.config, shown), type=dict[str, Any]
        )
        return Parts(layers, config, {**facts.parameters, **base.parameters})

    async def _uploaded(self, files: Mapping[str, str]) -> Parts:
        if not files:
            raise RequestError("neither 'from' or 'files' was specified")
        if any(path.endswith((".safetensors", ".bin", ".pth")) for path in files):
            raise RequestError(
                "kvsup makes models of GGUF files only; convert these with llama.cpp's"
                " convert_hf_to_gguf.py, then create from the GGUF file"
            )
        layers = await self._gguf_layers(files)
        models = [layer.blob for layer in layers if layer.kind == "model"]
        if len(models) > 1:
            n_parts = (await self._metadata(models[0])).integer("split.count")
            if n_parts != len(models):
                several = f"the files are {len(models)} models, and not the parts of one"
                raise RequestError(f"{several}; name one of them")
        return Parts(layers)

    async def _gguf_layers(self, files: Mapping[str, str], *, only: str = "") -> list[Layer]:
        """Return a layer for each uploaded file, the model's parts in the order of their names."""
        layers = []
        for path in sorted(files):
            self._work.say("parsing GGUF")
            blob = self._uploaded_blob(files[path])
            metadata = await self._metadata(blob)
            kind = kind_of(metadata)
            if only == "adapter" and kind != "adapter":
                raise RequestError(f"{path} is no adapter, but a {kind}")
            if only == "draft":
                kind = "draft"
            layers.append(ollama_layer(kind, blob))
        return layers

    def _uploaded_blob(self, text: str) -> Blob:
        digest = digest_in(text)
        if digest is None:
            raise RequestError("invalid digest format")
        path = self._store.blob_path(Blob(digest, 0))
        try:
            return Blob(digest, path.stat().st_size)
        except OSError as error:
            raise KvsupError(f"open {path}: no such file or directory") from error

    async def _metadata(self, blob: Blob) -> Metadata:
        path = self._store.blob_path(blob)
        try:
            return await to_thread.run_sync(read_metadata_of, path)
        except (GGUFError, OSError) as error:
            raise RequestError(f"supplied file was not in GGUF format: {error}") from error

    async def _check_jinja(self, parts: Parts, template: str) -> None:
        """Raise RequestError for a Jinja template that is another than the GGUF's own."""
        models = [layer.blob for layer in parts.layers if layer.kind == "model"]
        own = [(await self._metadata(blob)).text("tokenizer.chat_template") for blob in models[:1]]
        if [template.strip()] != [text.strip() for text in own if text]:
            raise RequestError(
                "TEMPLATE is Jinja, and a Modelfile has Go text; leave it out, and name a file with"
                " it in template of the TOML file"
            )

    async def _quantize(self, parts: Parts, wanted: str) -> None:
        file_type = checked_type(wanted)
        models = [layer for layer in parts.layers if layer.kind == "model"]
        if len(models) != 1:
            raise RequestError("quantization is only supported for a model in one file")
        source = models[0].blob
        metadata = await self._metadata(source)
        if metadata.file_type == file_type:
            return
        check_source(metadata.file_type)
        program = program_beside(self._llama_server)
        target = self._store.incoming / f"file-{os.urandom(8).hex()}"
        told = self._work.progress(
            f"quantizing {metadata.file_type} model to {file_type}", NO_DIGEST, source.size_bytes
        )
        try:
            await quantize(program, self._store.blob_path(source), target, file_type, told)
            self._work.say("verifying conversion")
            blob = await to_thread.run_sync(_blob_at, target)
            await to_thread.run_sync(self._store.place, target, blob)
        finally:
            with suppress(OSError):
                target.unlink(missing_ok=True)
        place = parts.layers.index(models[0])
        parts.layers[place] = ollama_layer("model", blob)
        parts.config |= {"file_type": ""}

    async def _describe(self, parts: Parts, request: CreateRequest) -> None:
        """Write what the config says: of the weights, and what the request has for it."""
        families = []
        for layer in parts.layers:
            if layer.kind not in {"model", "projector"}:
                continue
            metadata = await self._metadata(layer.blob)
            families.append(metadata.architecture)
            if layer.kind == "model":
                for key, value in (
                    ("model_family", metadata.architecture),
                    ("model_type", parameter_size(metadata.n_params)),
                    ("file_type", metadata.file_type),
                ):
                    parts.config[key] = parts.config.get(key) or value
        parts.config |= {"model_format": "gguf", "architecture": "amd64", "os": "linux"}
        parts.config["model_families"] = list(dict.fromkeys(families))
        said = {
            "renderer": request.renderer,
            "parser": request.parser,
            "requires": request.requires,
        }
        parts.config |= {key: value for key, value in said.items() if value}

    async def _add_texts(self, parts: Parts, request: CreateRequest) -> None:
        texts = {
            "template": request.template.encode(),
            "system": request.system.encode(),
            "messages": msgspec.json.encode(request.messages) if request.messages else b"",
        }
        for kind, data in texts.items():
            if data:
                parts.replace(_SMALL[kind], ollama_layer(kind, await self._put(data)))
        for text in request.licenses:
            parts.layers.append(ollama_layer("license", await self._put(text.encode())))
        parts.parameters |= request.parameters
        if parts.parameters:
            data = msgspec.json.encode(parts.parameters)
            parts.replace(("params",), ollama_layer("params", await self._put(data)))

    async def _put(self, data: bytes) -> Blob:
        blob = await to_thread.run_sync(self._store.put, data)
        self._work.say(f"creating new layer {blob.oci_digest}")
        return blob


def _is_jinja(template: str) -> bool:
    return "{%" in template


def _check_template(template: str) -> None:
    try:
        PromptTemplate.parse(template)
    except TemplateError as error:
        raise RequestError(f"template error: {error}") from error


def _blob_at(path: Path) -> Blob:
    return Blob(digest_of(path, lambda _n_bytes: None), path.stat().st_size)


def kind_of(metadata: Metadata) -> str:
    """Return which kind of layer a GGUF file is (server/create.go ``ggufLayers``, v0.17.4)."""
    general = metadata.text("general.type")
    if general == "adapter":
        return "adapter"
    if general in {"projector", "mmproj"} or metadata.architecture == "clip":
        return "projector"
    return "model"
