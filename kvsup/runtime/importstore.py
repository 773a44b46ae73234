"""Read the models of an Ollama store; nothing of it is ever written.

``manifests/HOST/NAMESPACE/MODEL/TAG`` is JSON that names layers by digest, which lie in
``blobs/sha256-HEX`` (manifest/, server/images.go, 2026-08).
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvsup.errors import ConfigError
from kvsup.importing.ollama import StoredModel
from kvsup.ollama.names import DEFAULT_HOST, DEFAULT_NAMESPACE, display_name

_KIND = re.compile(r"application/vnd\.ollama\.image\.(\w+)")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MAX_BYTES = 4 << 20
"""No manifest, parameters or system prompt is longer."""


def store_of(named: str | None) -> Path:
    """Return the folder of the store: the one named, else a user's, else that of the service.

    Raises:
        ConfigError: there is none.
    """
    usual = (Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models"))
    places = [Path(named).expanduser()] if named else list(usual)
    try:
        for place in places:
            if (place / "manifests").is_dir():
                return place
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be looked at: {error.strerror}") from error
    looked = ", ".join(map(str, places))
    raise ConfigError(f"no Ollama store in {looked}; name it: OLLAMA_MODELS=DIR, or --env-file")


def read_store(store: Path) -> list[StoredModel]:
    """Return the models of a store by name.

    Raises:
        ConfigError: its manifests cannot be listed.
    """
    try:
        paths = sorted(store.joinpath("manifests").glob("*/*/*/*"))
    except OSError as error:
        raise ConfigError(f"{store} cannot be read: {error}") from error
    return [model for path in paths for model in _models(store, path)]


def _models(store: Path, path: Path) -> Iterator[StoredModel]:
    """Yield the model of a manifest; a file whose place makes no name is none."""
    host, namespace, model, tag = path.parts[-4:]
    try:
        name = display_name(f"{host}/{namespace}/{model}:{tag}")
    except ValueError:
        return
    is_library = (host, namespace) == (DEFAULT_HOST, DEFAULT_NAMESPACE)
    try:
        manifest = _json(path)
        config = _json(_blob(store, manifest["config"]))
        layers = [(_kind(layer), str(_blob(store, layer))) for layer in manifest["layers"] or ()]
        texts = dict(layers)
        yield StoredModel(
            name=name,
            manifest=str(path),
            layers=layers,
            family=str(config.get("model_family", "")),
            is_remote=bool(config.get("remote_host")),
            is_library=is_library,
            system=_text(Path(texts["system"])) if "system" in texts else None,
            parameters=_json(Path(texts["params"])) if "params" in texts else {},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"its manifest cannot be read: {type(error).__name__}: {error}"
        yield StoredModel(name, str(path), (), problem=what)


def _kind(layer: Mapping[str, Any]) -> str:
    match = _KIND.fullmatch(layer["mediaType"])
    return match[1] if match else ""


def _blob(store: Path, layer: Mapping[str, Any]) -> Path:
    digest = _DIGEST.fullmatch(layer["digest"])
    if digest is None:
        raise ValueError(f"{layer['digest']!r} is no digest")
    return store.absolute() / "blobs" / f"sha256-{digest[1]}"


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path.name} is longer than {_MAX_BYTES} bytes")
    return content.decode("utf-8")


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(_text(path))
    if not isinstance(value, dict):
        raise TypeError(f"{path.name} is no JSON object")
    return value
