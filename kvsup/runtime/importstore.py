"""The models of an Ollama store as an import takes them: facts, and where the files lie."""

from pathlib import Path

from kvsup.errors import ConfigError
from kvsup.importing.ollama import StoredModel
from kvsup.ollama.names import DEFAULT_HOST, DEFAULT_NAMESPACE
from kvsup.runtime.ollamastore import OllamaStore, places_of, shown_name
from kvsup.stores.references import OllamaName


def store_of(named: str | None) -> Path:
    """Return the folder of the store: the one named, else a user's, else that of the service.

    Raises:
        ConfigError: there is none.
    """
    places = places_of(named)
    try:
        for place in places:
            if (place / "manifests").is_dir():
                return place
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be looked at: {error.strerror}") from error
    looked = ", ".join(map(str, places))
    raise ConfigError(f"no Ollama store in {looked}; name it: OLLAMA_MODELS=DIR, or --env-file")


def read_store(root: Path) -> list[StoredModel]:
    """Return the models of a store by name; one that cannot be read says so."""
    store = OllamaStore(root.absolute())
    return [_model(store, name) for name in store.names()]


def _model(store: OllamaStore, name: OllamaName) -> StoredModel:
    shown, path = shown_name(name), str(store.manifest_path(name))
    try:
        facts = store.facts(name)
    except ValueError as error:
        return StoredModel(shown, path, (), problem=f"its manifest cannot be read: {error}")
    return StoredModel(
        name=shown,
        manifest=path,
        layers=[
            (layer.kind, str(store.blob_path(layer.blob)))
            for layer in facts.manifest.layers
            if layer.kind
        ],
        family=facts.config.model_family,
        is_remote=bool(facts.config.remote_host),
        is_library=(name.host, name.namespace) == (DEFAULT_HOST, DEFAULT_NAMESPACE),
        system=facts.system or None,
        messages=facts.messages,
        parameters=facts.parameters,
    )
