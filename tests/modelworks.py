"""What changes models, without a kvsup around it."""

from collections.abc import Callable
from pathlib import Path

from kvsup.plan import Plan
from kvsup.runtime.changes import Changes
from kvsup.runtime.hubcache import HubCache
from kvsup.runtime.modelworks import ModelWorks
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.weightsums import WeightSums
from kvsup.runtime.works import Works
from kvsup.stores.registries import Registries


async def nothing() -> None:
    """Take up no configuration."""


def changes_of(folder: Path, store: Path, plan_of: Callable[[str], Plan | None]) -> Changes:
    """Return what changes a folder and a store, and takes nothing up."""
    return Changes(
        folder,
        OwnStore(store),
        trash=folder.parent / "trash",
        plan_of=plan_of,
        reload=nothing,
        forget=lambda _name: None,
    )


def works_of(
    changes: Changes, works: Works, *registries: str, hub_cache: Path = Path("/nowhere")
) -> ModelWorks:
    """Return what pulls from and pushes to ``registries``."""
    return ModelWorks(
        changes,
        works,
        readable=list,
        hub_cache=lambda: HubCache(hub_cache),
        registries=lambda: Registries.parse(registries),
        llama_server=lambda: None,
        sums=WeightSums(Remembered(changes.folder)),
    )
