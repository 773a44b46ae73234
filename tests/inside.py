"""What only the process itself knows: the tasks of a running kvsup's event loop."""

import signal
from collections import Counter
from pathlib import Path

from tests.running import RunningKvsup, eventually

_TELLS = """
import asyncio, os, signal

def tell(_number, _frame):
    path = os.environ["TASKS_FILE"]
    tasks = asyncio.all_tasks(asyncio.get_running_loop())
    with open(path + ".part", "w") as file:
        file.writelines(task.get_coro().__qualname__ + "\\n" for task in tasks)
    os.rename(path + ".part", path)

signal.signal(signal.SIGUSR1, tell)
"""
"""Python runs a ``sitecustomize`` before anything else; on SIGUSR1 this one writes the tasks."""


def talkative(folder: Path, python_path: str) -> dict[str, str]:
    """Return the environment of a kvsup whose tasks can be asked for; ``folder`` is made."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_TELLS)
    path = f"{folder}:{python_path}" if python_path else str(folder)
    return {"PYTHONPATH": path, "TASKS_FILE": str(folder / "tasks")}


def tasks_of(kvsup: RunningKvsup, folder: Path) -> Counter[str]:
    """Return how many tasks run which coroutine."""
    path = folder / "tasks"
    path.unlink(missing_ok=True)
    kvsup.process.send_signal(signal.SIGUSR1)
    eventually(path.exists)
    return Counter(path.read_text().split("\n")[:-1])
