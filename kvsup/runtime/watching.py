"""Notice what changes on disk of the files that a configuration is made of."""

import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from watchfiles import awatch

from kvsup.events import Damage
from kvsup.plan import Plan
from kvsup.runtime import binaries, paths
from kvsup.runtime.configdir import Configuration, toml_files
from kvsup.runtime.filestamps import Stamp, stamp_or_none

logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of each change

LOOK_S = 1.0
"""Longest time between two looks: a link far up a path, or a network's disk, sends no event."""

CALM_S = 5.0
"""How long a file that is no model must stay as it is before it is read again."""

_STEP_MS = 100
_GROUP_MS = 500


@dataclass(frozen=True, slots=True)
class Look:
    """The files of a configuration at one moment."""

    listed: Mapping[Path, Stamp | None]
    """Every TOML file of the folder."""
    named: Mapping[Path, Stamp | None]
    """Files that those name, and llama-servers; None where there is none."""
    mapped: Mapping[Path, Stamp | None]
    """Files of weights that llama-servers have loaded, whatever is configured now."""
    folders: tuple[Path, ...]
    """Where all these lie, as far as it is there."""

    def changed(self, later: "Look") -> frozenset[Path]:
        """Return the paths of the configuration behind which ``later`` has something else."""
        now = {**later.listed, **later.named}
        before = {**self.listed, **self.named}
        return frozenset(p for p in before.keys() | now.keys() if before.get(p) != now.get(p))


def look(configuration: Configuration, loaded: Iterable[Plan] = ()) -> Look:
    """Return the files of ``configuration``, and those that ``loaded`` have mapped, as they are.

    It asks the disk, which may be far away: call it in a thread.

    Raises:
        ConfigError: the folder cannot be listed.
    """
    listed = {path: stamp_or_none(path) for path in toml_files(configuration.folder) or ()}
    named = {path: stamp_or_none(path) for path in set(_named(configuration))}
    named |= {path: _calm_stamp(path) for path in configuration.unfinished}
    mapped = {Path(path): stamp_or_none(Path(path)) for plan in loaded for path, _ in _mapped(plan)}
    folders = {configuration.folder, *(path.parent for path in (*named, *mapped))}
    there = (f for f in folders if os.path.isdir(f))  # noqa: PTH112 - pathlib's raises
    return Look(listed, named, mapped, tuple(sorted(there)))


def _calm_stamp(path: Path) -> Stamp | None:
    """Return what ``path`` leads to once nobody has written it for ``CALM_S``; None until then."""
    stamp = stamp_or_none(path)
    is_calm = stamp is not None and time.time_ns() - stamp.modified_ns > CALM_S * 1e9
    return stamp if is_calm else None


def names(plan: Plan, changed: frozenset[Path]) -> bool:
    """Say whether a file that ``plan`` is made of is among those that changed."""
    return not changed.isdisjoint((*_files_of(plan), *_files_of_program(plan.binary.path)))


def damages(plan: Plan, seen: Look) -> Iterator[tuple[str, Damage]]:
    """Yield what ``seen`` tells of the files that a llama-server of ``plan`` has mapped.

    A file that was replaced by another is none: the old one stays until nobody has it open.
    """
    for path, read in _mapped(plan):
        if Path(path) not in seen.mapped:
            continue  # loaded since
        now = seen.mapped[Path(path)]
        if now is None:
            yield path, "deleted"
        elif str(now) != read and _file(str(now)) == _file(read):
            yield path, "written"


async def turns(
    folders: Callable[[], tuple[Path, ...]], *, stopped: anyio.Event
) -> AsyncGenerator[None, None]:
    """Yield when it is time to look: after something happened in ``folders``, and each ``LOOK_S``.

    Where the system has no more watches to give, or a folder has just gone, the looks are all.
    """
    while not stopped.is_set():
        watched = folders()
        try:
            changes = awatch(
                *watched,
                watch_filter=None,
                debounce=_GROUP_MS,
                step=_STEP_MS,
                rust_timeout=int(LOOK_S * 1000),
                yield_on_timeout=True,
                recursive=False,
                stop_event=stopped,
            )
            async with aclosing(changes):
                async for _ in changes:
                    yield
                    if folders() != watched:
                        break
        except Exception:  # noqa: BLE001 - an OSError, watchfiles' own, or a group of them
            with anyio.move_on_after(LOOK_S):
                await stopped.wait()
            yield


def _named(configuration: Configuration) -> Iterator[Path]:
    """Yield every file but the TOML files that decides what the configuration means."""
    for plan in configuration.plans:
        yield from _files_of(plan)
    for program in {plan.binary.path for plan in configuration.plans}:
        yield from _files_of_program(program)
    yield binaries.current(paths.cache_dir())
    yield from configuration.watched
    if configuration.host.api_keys is not None:
        yield Path(configuration.host.api_keys)


def _files_of(plan: Plan) -> Iterator[Path]:
    model = plan.model
    yield from (Path(path) for path, _ in plan.file.parts)
    beside = (model.mmproj, model.template, *model.adapters)
    yield from (Path(path) for path in beside if path)


def _files_of_program(path: str) -> Iterator[Path]:
    yield Path(path)
    with suppress(OSError):  # it is gone
        yield from binaries.files_of(path)


def _mapped(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Return the files that its llama-server maps into its memory, with their stamps as read."""
    return () if plan.model.use_mmap is False else plan.file.parts


def _file(stamped: str) -> list[str]:
    """Return which file a stamp is of, whatever its contents."""
    return stamped.split(":")[:2]
