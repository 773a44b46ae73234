"""What is seen on disk of the files that a configuration is made of."""

import os
import shutil
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from kvsup.runtime.watching import damages, look, turns
from tests.runtime.supervised import Folder


def test_damages_of_mapped_weights(folder: Folder, tmp_path: Path) -> None:
    """Written or deleted; replaced by another file they stay whole for who has them open."""
    weights = Path(shutil.copy(folder.model, tmp_path / "own.gguf"))
    folder.model = weights
    folder.write(a="", b="use_mmap = false")
    configuration = folder.read()
    a, b = configuration.plans

    def seen() -> list[str]:
        now = look(configuration, configuration.plans)
        assert list(damages(b, now)) == []
        return [damage for path, damage in damages(a, now) if path == str(weights)]

    calm = seen()
    os.truncate(weights, 100)
    written = seen()
    Path(shutil.copy(weights, tmp_path / "other")).rename(weights)
    replaced = seen()
    weights.unlink()
    deleted = seen()

    assert (calm, written, replaced, deleted) == ([], ["written"], [], ["deleted"])


def test_look_that_differs_names_what_changed(folder: Folder, tmp_path: Path) -> None:
    """TOML files, what they name, and llama-servers with the libraries beside them."""
    program = Path(shutil.copy(folder.llama_server, tmp_path / "llama-server"))
    folder.llama_server = program
    folder.write(a="")
    configuration = folder.read()
    before = look(configuration)

    library = tmp_path / "libllama.so.1"
    library.write_bytes(b"")
    os.utime(configuration.folder / "a.toml", ns=(1, 1))

    changed = before.changed(look(configuration))
    assert changed == {library, configuration.folder / "a.toml"}
    assert before.changed(replace(before, mapped={}, folders=())) == frozenset()


def test_damage_of_weights_that_were_loaded_since_the_look_is_none(folder: Folder) -> None:
    """They are not among what was looked at, which is no sign that they are gone."""
    folder.write(a="")
    configuration = folder.read()

    assert list(damages(configuration.plans[0], look(configuration, loaded=()))) == []


async def test_turns_go_on_where_a_thread_to_watch_in_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A task group of watchfiles wraps what is raised within."""

    async def failing(*_paths: Path, **_options: object) -> AsyncGenerator[None, None]:
        async with anyio.create_task_group():
            raise RuntimeError("can't start new thread")
        yield

    monkeypatch.setattr("kvsup.runtime.watching.awatch", failing)
    monkeypatch.setattr("kvsup.runtime.watching.LOOK_S", 0.01)
    stopped, n_turns = anyio.Event(), 0
    async for _ in turns(lambda: (tmp_path,), stopped=stopped):
        n_turns += 1
        if n_turns == 3:
            stopped.set()

    assert n_turns == 3
