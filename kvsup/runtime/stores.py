"""Where the stores of this machine lie, and what is in them."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvsup.hostconfig import SourcesConfig
from kvsup.ollama.names import DEFAULT_TAG, lookup_keys
from kvsup.runtime.gguffolders import GGUFFolder
from kvsup.runtime.hubcache import HubCache
from kvsup.runtime.ollamastore import OllamaStore, places_of, shown_name
from kvsup.runtime.ownstore import OwnStore
from kvsup.stores.references import HubName, OllamaName, parse_reference
from kvsup.stores.stored import Stored


@dataclass(frozen=True, slots=True)
class Offer:
    """What the sources of ``kvsup.toml`` hold."""

    models: tuple[Stored, ...] = ()
    left_out: tuple[str, ...] = ()
    """What is not served of them, and why, a sentence each."""
    watched: tuple[Path, ...] = ()
    """Folders and files whose change may mean other models."""
    unfinished: tuple[Path, ...] = ()
    """Files that are no models yet: downloads are written in their place."""


class Stores:
    """The stores that references and sources are looked up in."""

    def __init__(
        self, sources: SourcesConfig, environ: Mapping[str, str], *, own: OwnStore, base: Path
    ) -> None:
        """Look where ``sources`` say, else where ``environ`` and habit do; in ``own`` first.

        Args:
            sources: of ``kvsup.toml``.
            environ: the environment.
            own: kvsup's own store, whose models are always served.
            base: the folder at which relative paths start.
        """
        self._own = own
        self._sources = sources
        self._ollama = readable_stores(sources, environ, base)
        self._hub = hub_cache(sources, environ, base)
        self._folders = [GGUFFolder(_path(folder, base)) for folder in sources.folders]
        self._found: dict[str, Stored | str] = {}

    def resolve(self, text: str) -> Stored | None:
        """Return the model that ``text`` refers to; None where it is a path.

        Raises:
            ValueError: there is no such model, or it cannot be served.
        """
        if text not in self._found:
            try:
                reference = parse_reference(text)
                if reference is None:
                    return None
                self._found[text] = self._look_up(reference)
            except ValueError as error:
                self._found[text] = str(error)
        found = self._found[text]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield each key of the sources that names a folder which is not there, and what is."""
        if isinstance(self._sources.ollama, str) and not self._ollama[0].is_there():
            yield "ollama", f"{self._ollama[0].root} is no store of Ollama: it has no manifests"
        if isinstance(self._sources.huggingface, str) and not self._hub.root.is_dir():
            yield "huggingface", f"{self._hub.root} is no folder"
        for folder in self._folders:
            if not folder.root.is_dir():
                yield "folders", f"{folder.root} is no folder"

    def offer(self) -> Offer:
        """Return every model of the sources; of two with one name the first is it."""
        models: dict[str, Stored] = {}
        left_out: list[str] = []
        watched: list[Path] = []
        for label, found in self._looks(watched):
            try:
                stored = found()
                spelling = _spelling(stored.name)
            except ValueError as error:
                left_out.append(f"{label}: {error}")
                continue
            owner = models.setdefault(spelling, stored)
            if owner is not stored:
                left_out.append(f"{label}: {stored.name} is the name of {owner.reference}, too")
        return Offer(tuple(models.values()), tuple(left_out), tuple(dict.fromkeys(watched)))

    def _looks(self, watched: list[Path]) -> Iterator[tuple[str, Callable[[], Stored]]]:
        """Yield what each model is called in its store, and how to have it."""
        listed = self._ollama if self._sources.ollama else []
        for store in self._all(listed):
            watched += store.folders()
            for name in store.names():
                watched.append(store.manifest_path(name))
                yield str(store.manifest_path(name)), partial(store.stored, name)
        if self._sources.huggingface:
            watched += self._hub.folders()
            for hub_name in self._hub.names():
                label = f"hf:{hub_name.repository}:{hub_name.tag}"
                yield label, partial(self._hub.stored, hub_name)
        for folder in self._folders:
            watched += folder.folders()
            for path in folder.files():
                yield str(path), partial(folder.stored, path)

    def _look_up(self, reference: OllamaName | HubName) -> Stored:
        if isinstance(reference, HubName):
            return self._of_hub(reference)
        stores = [s for s in self._all(self._ollama) if s is not self._own or s.is_there()]
        for store in stores:
            if (name := store.find(reference)) is not None:
                return store.stored(name)
        shown = shown_name(reference)
        known = sorted({shown_name(name) for store in stores for name in store.names()})
        places = " and ".join(str(store.root) for store in stores)
        raise ValueError(
            f"no {shown} in {places}; there is {', '.join(known) or 'no model at all'}:"
            f" kvsup pull {shown}, or set OLLAMA_MODELS"
        )

    def _of_hub(self, reference: HubName) -> Stored:
        """Return a model of Hugging Face: one that kvsup pulled, else one of its own cache."""
        name = reference.pulled
        if name is not None and (found := self._own.find(name)) is not None:
            return self._own.stored(found)
        try:
            return self._hub.stored(reference)
        except ValueError as error:
            if name is None:
                raise
            mend = f"kvsup pull {shown_name(name).removesuffix(f':{DEFAULT_TAG}')}"
            raise ValueError(f"{error}: {mend}") from None

    def _all(self, others: Iterable[OllamaStore]) -> list[OllamaStore]:
        """Return the own store and ``others``, each folder once."""
        return [self._own, *(store for store in others if store.root != self._own.root)]


def readable_stores(
    sources: SourcesConfig, environ: Mapping[str, str], base: Path
) -> list[OllamaStore]:
    """Return Ollama's own stores, whether they are there or not, and are listed or not."""
    if isinstance(sources.ollama, str):
        return [OllamaStore(_path(sources.ollama, base))]
    return [OllamaStore(place) for place in places_of(environ.get("OLLAMA_MODELS"))]


def hub_cache(sources: SourcesConfig, environ: Mapping[str, str], base: Path) -> HubCache:
    """Return the cache of Hugging Face, whether it is there or not, and is listed or not."""
    named = sources.huggingface if isinstance(sources.huggingface, str) else None
    return HubCache(_path(named, base) if named else _hub_folder(environ, Path.home()))


def _spelling(name: str) -> str:
    """Return the one spelling under which a name is kept; raises ValueError where it is none."""
    for spelling in lookup_keys(name)[:1]:
        return spelling
    raise ValueError(f"{name!r} is no name for a model; name it in a TOML file")


def _hub_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Return the cache as ``huggingface_hub/constants.py`` finds it."""
    if cache := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return _path(cache, Path())
    if hub_home := environ.get("HF_HOME"):
        return _path(hub_home, Path()) / "hub"
    return _path(environ.get("XDG_CACHE_HOME") or str(home / ".cache"), Path()) / "huggingface/hub"


def _path(text: str, base: Path) -> Path:
    return Path(os.path.abspath(base / os.path.expanduser(text)))  # noqa: PTH100, PTH111 - links stay, "~nobody" too
