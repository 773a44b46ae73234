"""Pull, push and create models: which works these are, and what they are made from."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from anyio import to_thread

from kvsup.errors import RequestError
from kvsup.gguf import split_paths
from kvsup.ollama.names import quoted
from kvsup.ollama.storerequests import CreateRequest
from kvsup.plan import Plan
from kvsup.runtime.catalogue import settings_of_file
from kvsup.runtime.changes import Changes, own_name
from kvsup.runtime.creating import Creator, Files, StoreModel
from kvsup.runtime.filling import filling
from kvsup.runtime.hubcache import HubCache
from kvsup.runtime.ollamastore import OllamaStore, shown_name
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.weightsums import WeightSums
from kvsup.runtime.works import Work, Works
from kvsup.stores.jinja import jinja_of
from kvsup.stores.manifest import Blob, digest_in, upstream_change
from kvsup.stores.parameters import parameters_of, settings_of
from kvsup.stores.references import OllamaName, parse_reference
from kvsup.stores.registries import Registries, Registry
from kvsup.stores.stored import TEMPLATE

if TYPE_CHECKING:
    from kvsup.runtime.pulling import Shelf, Source

_LAYERS = ("mmproj", "draft_model", "adapters")
"""Keys that name files which become layers."""


@dataclass(frozen=True, slots=True)
class _Base:
    """What a new model is built on."""

    parts: Files | StoreModel
    values: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its TOML file that no layer says."""


class ModelWorks:
    """What is done on one configuration folder and one store."""

    def __init__(
        self,
        changes: Changes,
        works: Works,
        *,
        readable: Callable[[], Sequence[OllamaStore]],
        hub_cache: Callable[[], HubCache],
        registries: Callable[[], Registries],
        llama_server: Callable[[], str | None],
        sums: WeightSums,
    ) -> None:
        """Do it by ``works``, and take it up by ``changes``.

        Args:
            changes: of the folder and the store.
            works: what does it.
            readable: returns Ollama's own stores, whose models can be built on.
            hub_cache: returns that of Hugging Face, whose files need not be fetched.
            registries: returns where models may come from and go to.
            llama_server: returns the path of the binary in use, None where there is none.
            sums: what files of the disk hash to, as far as it is known.
        """
        self._changes = changes
        self._works = works
        self._readable = readable
        self._hub_cache = hub_cache
        self._registries = registries
        self._llama_server = llama_server
        self._sums = sums

    @property
    def store(self) -> OwnStore:
        """Return the store that is written to."""
        return self._changes.store

    def pull(self, text: str, *, is_insecure: bool = False) -> AbstractContextManager[Work]:
        """Fetch a model, or what has changed of it.

        Raises:
            RequestError: its name is none, or its registry is not listed.
        """
        plan = self._changes.plan_of(text)
        if plan is not None and self._changes.held(plan) is None:
            return self._works.joined(object(), _nothing)  # it is served, and not of the own store
        name = own_name(text)
        registry = self._registry(name, is_insecure=is_insecure)
        key = ("pull", shown_name(name).lower())
        return self._works.joined(key, partial(self._pull, name, registry))

    def push(self, text: str, *, is_insecure: bool = False) -> AbstractContextManager[Work]:
        """Send a model to its registry; raises as ``pull``."""
        name = own_name(text)
        registry = self._registry(name, is_insecure=is_insecure)
        if registry.is_hub:
            raise RequestError(
                "kvsup pushes nothing to Hugging Face; upload the file there by hf upload"
            )
        key = ("push", shown_name(name).lower())
        return self._works.joined(key, partial(self._push, name, registry))

    def create(self, request: CreateRequest) -> AbstractContextManager[Work]:
        """Make a model; raises ``RequestError`` where its name is none."""
        job = partial(self._create, own_name(request.model), request)
        return self._works.joined(object(), job)

    async def _pull(self, name: OllamaName, registry: Registry, work: Work) -> None:
        async with filling(self.store):
            before = await self._fetched(name, registry, work)
        if before is not None:
            work.say("removing unused layers")
            await to_thread.run_sync(self.store.let_go, before)
        work.say("success")

    async def _fetched(self, name: OllamaName, registry: Registry, work: Work) -> bytes | None:
        """Have a model in the store and served; return the manifest that it replaces."""
        from kvsup.runtime.pulling import pull  # noqa: PLC0415 - httpx is slow to load

        async with self._source(name, registry) as source:
            data = await pull(source, shown_name(name), self.store, self._others(), work)
        work.say("writing manifest")
        before = await self._changes.pulled(name, data)
        if before is not None and (change := upstream_change(before, data)):
            work.say(f"upstream changed: {change}")
        return None if before == data else before

    @asynccontextmanager
    async def _source(self, name: OllamaName, registry: Registry) -> "AsyncIterator[Source]":
        from kvsup.runtime import outside  # noqa: PLC0415 - as above
        from kvsup.runtime.registry import Repository  # noqa: PLC0415

        if registry.is_hub:
            from kvsup.runtime.hub import HubRepository, endpoint  # noqa: PLC0415

            async with outside.client(self._registries().with_address(endpoint())) as http:
                yield HubRepository(name, http)
        else:
            async with outside.client(self._registries()) as http:
                yield Repository(registry, name, http)

    async def _push(self, name: OllamaName, registry: Registry, work: Work) -> None:
        from kvsup.runtime import outside  # noqa: PLC0415 - httpx is slow to load
        from kvsup.runtime.pushing import push  # noqa: PLC0415
        from kvsup.runtime.registry import Repository  # noqa: PLC0415

        found = self._find(name) or StoreModel(self.store, name)
        async with outside.client(self._registries()) as http:
            repository = Repository(registry, name, http)
            await push(repository, found.store, found.name, work)
        work.say("success")

    async def _create(self, name: OllamaName, request: CreateRequest, work: Work) -> None:
        async with filling(self.store):
            base = await self._base(request.base, work) if request.base else None
            creator = Creator(self.store, work, sums=self._sums, llama_server=self._llama_server())
            manifest, parameters, template = await creator.create(
                request, base.parts if base else None
            )
            values = {**(base.values if base else {}), **settings_of(parameters)}
            values |= {"system": request.system} if request.system else {}
            if request.adapters and "adapters" in values:  # the key would hide the layers
                values["adapters"] = [*values["adapters"], *self._paths_of(request.adapters)]
            if request.messages:
                values["messages"] = msgspec.to_builtins(request.messages)
            if template and jinja_of(template) is not None:
                values["template"] = TEMPLATE
            elif template:
                work.say("template not converted: the GGUF's own serves here, if it has one")
            work.say("writing manifest")
            comment = f"Created from {request.base or 'files'}; keys here come before the store's."
            before = await self._changes.created(name, manifest, values, comment)
        await to_thread.run_sync(self.store.let_go, before)
        work.say("success")

    async def _base(self, text: str, work: Work) -> _Base:
        """Return what ``from`` means, fetched where it is not here."""
        plan = self._changes.plan_of(text)
        if plan is None:
            name = own_name(text)
            found = self._find(name)
            if found is None:
                await self._fetched(name, self._registry(name, is_insecure=False), work)
                found = self._find(name)
            if found is None:
                raise RequestError(f"no {quoted(text)} is here after it was pulled")
            return _Base(found)
        values = settings_of_file(self._changes.folder, plan)
        parameters, system = parameters_of(values), str(values.get("system", ""))
        left = {k: v for k, v in values.items() if k not in {"model", "options", "system"}}
        reference = _reference(str(values.get("model", plan.model.source)))
        found = self._find(reference) if reference is not None else None
        if found is not None:
            return _Base(StoreModel(found.store, found.name, parameters, system), left)
        left = {key: value for key, value in left.items() if key not in _LAYERS}
        return _Base(Files(_files_of(plan), parameters, system, plan.name), left)

    def _paths_of(self, uploaded: Mapping[str, str]) -> list[str]:
        digests = map(digest_in, uploaded.values())
        return [str(self.store.blob_path(Blob(digest, 0))) for digest in digests if digest]

    def _find(self, name: OllamaName) -> StoreModel | None:
        for store in (self.store, *self._readable()):
            if (found := store.find(name)) is not None:
                return StoreModel(store, found)
        return None

    def _others(self) -> "list[Shelf]":
        stores = [store for store in self._readable() if store.root != self.store.root]
        return [*stores, self._hub_cache()]

    def _registry(self, name: OllamaName, *, is_insecure: bool) -> Registry:
        found = self._registries().find(name.host)
        if found is None:
            raise RequestError(
                f"{name.host} is none of the registries that models may come from; add it to"
                " registries in kvsup.toml"
            )
        if is_insecure and found.url.startswith("https:"):
            raise RequestError(
                f'{name.host} is asked by TLS; for one without write "http://{name.host}" in'
                " registries of kvsup.toml"
            )
        return found


async def _nothing(work: Work) -> None:
    """Say of what is here already what a pull of it says."""
    work.say("pulling manifest")
    work.say("success")


def _files_of(plan: Plan) -> tuple[tuple[str, Path], ...]:
    """Return the files that a model is made of, each with the kind of layer that it becomes."""
    model = plan.model
    named = [*((path, "model") for path in _parts(model.model)), (model.mmproj, "projector")]
    named += [(model.draft_model, "draft"), *((path, "adapter") for path in model.adapters)]
    return tuple((kind, Path(path)) for path, kind in named if path is not None)


def _parts(path: str) -> list[str]:
    return [str(part) for part in split_paths(Path(path))]


def _reference(text: str) -> OllamaName | None:
    try:
        reference = parse_reference(text)
    except ValueError:
        return None
    return reference if isinstance(reference, OllamaName) else None
