"""Starts that the host bars for a while: no model is given up for what passes."""

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.runtime.scripted import pid_of
from tests.runtime.supervised import QUICK_RESTART, Folder, owned, until


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO])
async def test_run_folder_that_cannot_be_made_just_now_is_made_later(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A full disk after a cleaner of /tmp, for one, ends no model for good."""
    folder.write(a=QUICK_RESTART)

    def mkdir(path: Path, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    async with owned(folder.plan("a")) as instance:
        monkeypatch.setattr(Path, "mkdir", mkdir)
        await until(lambda: instance.snapshot().n_deaths > 2)
        monkeypatch.undo()

        await instance.ready()


async def test_llama_server_that_is_gone_in_an_upgrade_is_started_once_it_is_back(
    folder: Folder, tmp_path: Path
) -> None:
    """It ran before: what is not in its place now may be in a moment."""
    program = tmp_path / "llama-server"
    program.symlink_to(folder.llama_server)
    folder.write(a=f'llama_server = "{program}"\n{QUICK_RESTART}max_deaths = 1000\n')

    async with owned(folder.plan("a")) as instance:
        broken = await instance.ready()
        pid = pid_of(instance)
        away = program.rename(tmp_path / "old")
        os.kill(pid, signal.SIGKILL)
        await instance.end_of(broken)
        await until(lambda: instance.snapshot().n_deaths > 2)
        away.rename(program)

        assert await instance.ready() is not broken
