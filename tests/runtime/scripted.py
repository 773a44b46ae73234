"""Instances that the stand-in serves, and what tests look at in any instance."""

from pathlib import Path

from kvsup.runtime.instance import Instance
from tests.runtime.supervised import Folder
from tests.standin.script import Steps, write_script


def pid_of(instance: Instance) -> int:
    """Return the pid of the process that runs."""
    pid = instance.snapshot().pid
    assert pid is not None
    return pid


def files_of(instance: Instance) -> list[str]:
    """Return which of its files, socket and record, are there."""
    socket = instance.plan.socket
    return [path for path in (socket, f"{socket}.json") if Path(path).exists()]


def scripted(folder: Folder, *starts: Steps, rest: str = "", is_old: bool = False) -> Path:
    """Write a model ``a`` whose k-th start takes the k-th of ``starts``; return the script."""
    script = folder.path / "script.json"
    line = write_script(script, starts=starts, is_old=is_old)
    folder.write(a=folder.standin(line, rest))
    return script
