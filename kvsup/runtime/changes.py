"""Change which models there are: TOML files of the configuration folder, and kvsup's own store.

One change after the other, each beside a configuration that is sound and taken up when it is done.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from anyio import CancelScope, Lock, to_thread

from kvsup.errors import ConfigError, ModelNotFound, RequestError
from kvsup.ollama.names import is_same_name, quoted
from kvsup.plan import Plan
from kvsup.runtime.catalogue import (
    copy_model,
    delete_model,
    reference_of,
    references_in,
    write_model,
)
from kvsup.runtime.filling import filling
from kvsup.runtime.ollamastore import shown_name
from kvsup.runtime.ownstore import OwnStore
from kvsup.stores.references import OLLAMA, HubName, OllamaName, parse_reference
from kvsup.stores.stored import has_file


class Changes:
    """What is changed in one folder and one store."""

    def __init__(
        self,
        folder: Path,
        store: OwnStore,
        *,
        trash: Path,
        plan_of: Callable[[str], Plan | None],
        reload: Callable[[], Awaitable[None]],
        forget: Callable[[str], object],
    ) -> None:
        """Change the files of ``folder`` and of ``store``.

        Args:
            folder: the configuration folder.
            store: kvsup's own.
            trash: where TOML files go that are deleted or replaced.
            plan_of: returns the plan that a name has, None where it has none.
            reload: takes the configuration up; raises ``ConfigError`` if it is wrong.
            forget: is called with the name of a model that is gone.
        """
        self.folder = folder
        self.store = store
        self.plan_of = plan_of
        self._trash = trash
        self._reload = reload
        self._forget = forget
        self._changing = Lock()

    async def copy(self, source: str, destination: str) -> None:
        """Serve a model under a second name: by a file, and in the own store by a manifest.

        Raises:
            ModelNotFound: there is no ``source``.
            RequestError: ``destination`` cannot be its name.
            ConfigError: a file cannot be read or written.
        """
        async with self._one_change():
            plan, existing = self._plan(source), self.plan_of(destination)
            held = self.held(plan)
            if existing is not None and existing.name == plan.name:
                return
            if held is None or not self._is_base(plan, held):
                await self._copy_file(plan, destination, existing)
                return
            async with filling(self.store):
                before = await self._copy_in_store(plan, held, destination, existing)
            await to_thread.run_sync(self.store.let_go, before)

    async def delete(self, name: str) -> None:
        """Take ``name`` away: its TOML file, which goes to the trash, and its place in the store.

        Raises:
            ModelNotFound: there is no such model.
            RequestError: another model is made of it.
            Unsupported: it lies in a store that is only read.
            ConfigError: a file cannot be read or written.
        """
        async with self._one_change():
            plan = self.plan_of(name)
            if plan is None:  # what cannot be served can be deleted all the same
                found = self.store.find(own_name(name))
                if found is None:
                    raise ModelNotFound(name)
                await to_thread.run_sync(self.store.remove, found)
                return
            held = self.held(plan)
            is_gone = True
            if held is not None and self._is_base(plan, held) and is_same_name(name, plan.name):
                self._check_unused(held, but=plan)
            if held is None or has_file(plan.model.source):
                delete = partial(delete_model, self.folder, plan, name, trash=self._trash)
                is_gone = await to_thread.run_sync(delete)
            if held is not None and is_gone:
                await to_thread.run_sync(self.store.remove, held)
            await self._reload()
            self._forget(plan.name)

    async def pulled(self, name: OllamaName, manifest: bytes) -> bytes | None:
        """Serve what was pulled; as ``created``, but that it gets no file."""
        async with self._one_change():
            return await self._taken(name, manifest, self._reload)

    async def created(
        self, name: OllamaName, manifest: bytes, values: Mapping[str, Any], comment: str
    ) -> bytes | None:
        """Serve what was created: write its manifest, and a file with the same settings.

        Whoever calls holds ``filling``. Returns the manifest of what had the name before, for
        ``store.let_go``.

        Raises:
            ConfigError: it cannot be served so; then nothing has changed.
            KvsupError: the store cannot be written.
        """
        async with self._one_change():
            shown = shown_name(name)
            write = partial(
                write_model,
                self.folder,
                shown,
                {"model": f"{OLLAMA}{shown}", **values},
                comment,
                existing=self.plan_of(shown),
                trash=self._trash,
            )

            async def take_up() -> None:
                undo = await to_thread.run_sync(write)
                try:
                    await self._reload()
                except ConfigError:
                    undo()
                    raise

            return await self._taken(name, manifest, take_up)

    def held(self, plan: Plan) -> OllamaName | None:
        """Return under which name the own store has a model, None where it has it not.

        That of a TOML file counts only if it is the file's own: others are made of it.
        """
        name, text = reference_of(self.folder, plan)
        try:
            reference = parse_reference(text)
        except ValueError:
            return None
        if not isinstance(reference, OllamaName):
            return None
        found = self.store.find(reference)
        return found if found is not None and is_same_name(shown_name(found), name) else None

    def _is_base(self, plan: Plan, held: OllamaName) -> bool:
        """Say whether a plan is the model itself, and no variant of it."""
        return is_same_name(plan.name, shown_name(held))

    def _plan(self, name: str) -> Plan:
        plan = self.plan_of(name)
        if plan is None:
            raise ModelNotFound(name)
        return plan

    async def _copy_file(
        self, plan: Plan, destination: str, existing: Plan | None, *, model: str | None = None
    ) -> None:
        copy = partial(
            copy_model,
            self.folder,
            plan,
            destination,
            existing=existing,
            trash=self._trash,
            model=model,
        )
        written = await to_thread.run_sync(copy)
        try:
            await self._reload()
        except ConfigError:
            if existing is None:
                written.unlink(missing_ok=True)
            raise

    def _check_unused(self, held: OllamaName, *, but: Plan) -> None:
        """Raise RequestError where a TOML file names a model that is to be deleted."""
        own = Path(but.model.source).name if has_file(but.model.source) else ""
        for path, text in references_in(self.folder):
            try:
                reference = parse_reference(text)
            except ValueError:
                continue
            name = reference.pulled if isinstance(reference, HubName) else reference
            is_it = name is not None and self.store.find(name) == held
            if is_it and path.name != own:
                shown = shown_name(held)
                raise RequestError(
                    f"{path} is made of {shown}; delete that model first, or copy {shown} and name"
                    " the copy there"
                )

    async def _copy_in_store(
        self, plan: Plan, held: OllamaName, destination: str, existing: Plan | None
    ) -> bytes | None:
        target = own_name(destination)

        async def take_up() -> None:
            if has_file(plan.model.source):
                reference = f"{OLLAMA}{shown_name(target)}"
                await self._copy_file(plan, destination, existing, model=reference)
                return
            if existing is not None and has_file(existing.model.source):
                delete = partial(
                    delete_model, self.folder, existing, destination, trash=self._trash
                )
                await to_thread.run_sync(delete)
            await self._reload()

        return await self._taken(target, self.store.manifest_data(held), take_up)

    async def _taken(
        self, name: OllamaName, manifest: bytes, take_up: Callable[[], Awaitable[None]]
    ) -> bytes | None:
        """Write a manifest and take it up, or put back what was there; return that."""
        found = self.store.find(name)
        before = None
        if found is not None:
            with suppress(ValueError):
                before = self.store.manifest_data(found)
        await to_thread.run_sync(self.store.write, name, manifest)
        try:
            await take_up()
        except ConfigError:
            if before is None:
                await to_thread.run_sync(self.store.remove, name)
            else:
                await to_thread.run_sync(self.store.write, name, before)
            raise
        return before

    @asynccontextmanager
    async def _one_change(self) -> AsyncIterator[None]:
        """Let one change after the other look, write and take up, whether its client stays or not.

        Beside a broken file nothing is changed.
        """
        async with self._changing:
            await self._reload()
            with CancelScope(shield=True):
                yield


def own_name(name: str) -> OllamaName:
    """Return a name with every part.

    Raises:
        RequestError: it is none.
    """
    try:
        reference = parse_reference(f"{OLLAMA}{name}")
    except ValueError:
        reference = None
    if not isinstance(reference, OllamaName):
        raise RequestError(f"name {quoted(name)} is invalid")
    return reference
