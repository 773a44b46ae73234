"""Change models while no kvsup runs: by the same code as a running one, on the same files."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import anyio

from kvsup.cli.arguments import configuration_of, find_plan
from kvsup.errors import KvsupError
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.bringing import copy_in
from kvsup.runtime.changes import Changes
from kvsup.runtime.hubcache import HubCache
from kvsup.runtime.modelworks import ModelWorks
from kvsup.runtime.ollamastore import OllamaStore
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.paths import cache_dir
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.stores import hub_cache, readable_stores
from kvsup.runtime.weightsums import WeightSums
from kvsup.runtime.works import Line, Work, Works
from kvsup.stores.registries import Registries


def change(do: Callable[[Changes], Awaitable[None]], config: Path | None) -> None:
    """Make one change."""

    async def run() -> None:
        await do(_Offline(config).changes)

    anyio.run(run)


def bringing(config: Path | None) -> Callable[[Path, Callable[[Line], None]], str]:
    """Return what copies a file into the store, and returns its digest."""
    store = _Offline(config).changes.store

    def bring(path: Path, show: Callable[[Line], None]) -> str:
        size_bytes = path.stat().st_size

        def told(n_bytes: int) -> None:
            status = f"copying {path.name}"
            show({"status": status, "total": size_bytes, "completed": n_bytes})

        return anyio.run(copy_in, store, path, told).oci_digest

    return bring


def follow(
    join: Callable[[ModelWorks], AbstractContextManager[Work]],
    config: Path | None,
    show: Callable[[Line], None],
) -> None:
    """Do one work, and show its lines."""

    async def run() -> None:
        failed: KvsupError | None = None
        async with _Offline(config).working() as works:
            try:
                with join(works) as work:
                    async for line in work.lines():
                        show(line)
            except KvsupError as error:  # a group of tasks would wrap it
                failed = error
        if failed is not None:
            raise failed

    anyio.run(run)


class _Offline:
    """What a running kvsup would hold, as far as changes need it."""

    def __init__(self, config: Path | None) -> None:
        self._folder = config
        self._configuration = configuration_of(config)
        self.changes = Changes(
            self._configuration.folder,
            OwnStore(self._configuration.models_dir),
            trash=self._configuration.state_dir / "deleted",
            plan_of=lambda name: find_plan(name, self._configuration),
            reload=self._reload,
            forget=lambda _name: None,
        )

    @asynccontextmanager
    async def working(self) -> AsyncIterator[ModelWorks]:
        """Give what does works, while it does them."""
        works = Works()
        async with anyio.create_task_group() as tasks:
            await tasks.start(works.run)
            yield ModelWorks(
                self.changes,
                works,
                readable=self._readable,
                hub_cache=self._hub_cache,
                registries=lambda: Registries.parse(self._configuration.host.registries),
                llama_server=lambda: default_binary(cache_dir()),
                sums=WeightSums(Remembered(self._configuration.state_dir)),
            )
            tasks.cancel_scope.cancel()

    def _readable(self) -> list[OllamaStore]:
        configuration = self._configuration
        return readable_stores(configuration.host.sources, os.environ, configuration.folder)

    def _hub_cache(self) -> HubCache:
        configuration = self._configuration
        return hub_cache(configuration.host.sources, os.environ, configuration.folder)

    async def _reload(self) -> None:
        self._configuration = configuration_of(self._folder)
