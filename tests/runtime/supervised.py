"""Plans read from real files, and a fleet or an instance that runs them in the test's process."""

import contextlib
import os
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import psutil

from kvsup import events
from kvsup.lifecycle import State
from kvsup.plan import Plan
from kvsup.runtime.configdir import Configuration, read_configuration
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.instance import Instance
from kvsup.runtime.kvfiles import KVFiles
from kvsup.runtime.making import make_instance
from kvsup.runtime.paths import kv_dir, made
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.warming import Store
from kvsup.runtime.weightsums import WeightSums
from tests.standin.script import STANDIN

SCENARIO_S = 30.0
"""After this a test has failed; pytest's own time-out does not interrupt uvloop."""

QUICK_RESTART = "[restart]\nmin_delay = 0.01\nmax_delay = 0.02\n"
"""Backoff as short as a test wants it; goes last in a model's file."""


@dataclass
class Folder:
    """A configuration folder of one test, read by the code that reads a person's."""

    path: Path
    llama_server: Path
    model: Path
    host: str = "memory = '64GiB'\n"
    num_ctx: int = 256

    def write(self, **models: str) -> None:
        """Write the file of each model; the weights and small sizes are added."""
        (self.path / "configs").mkdir(exist_ok=True)
        for name, text in models.items():
            head = f'model = "{self.model}"\nthreads = 1\nnum_ctx = {self.num_ctx}\n'
            (self.path / "configs" / f"{name}.toml").write_text(head + textwrap.dedent(text))

    def remove(self, name: str) -> None:
        """Remove the file of a model."""
        (self.path / "configs" / f"{name}.toml").unlink()

    def read(self) -> Configuration:
        """Return the configuration as it stands."""
        (self.path / "configs" / "kvsup.toml").write_text(
            f'llama_server = "{self.llama_server}"\nstate_dir = "{self.path}/state"\n{self.host}'
        )
        return read_configuration(self.path / "configs", os.environ)

    def plan(self, name: str) -> Plan:
        """Return the plan of one model."""
        return next(plan for plan in self.read().plans if plan.name == name)

    def standin(self, script: str, rest: str = "") -> str:
        """Return the lines of a model that the stand-in serves as ``script`` says."""
        return f'llama_server = "{STANDIN}"\n{script}\n{rest}'


@dataclass
class Running:
    """A fleet that runs, and everything that it told."""

    fleet: Fleet
    told: list[events.Event]

    def of_kind(self, kind: type) -> list[events.Event]:
        """Return the events of one kind."""
        return [event for event in self.told if isinstance(event, kind)]


@contextlib.asynccontextmanager
async def running(configuration: Configuration) -> AsyncIterator[Running]:
    """Run a fleet; at the end nothing that it started may be left, and no lease."""
    told: list[events.Event] = []
    store = Remembered(configuration.state_dir)
    files = KVFiles(kv_dir(configuration.state_dir), max_bytes=1 << 40, emit=told.append)
    kv = Store(files, WeightSums(store), store)
    fleet = Fleet(
        configuration.plans,
        configuration.host,
        make=partial(make_instance, store=store, kv=kv),
        emit=told.append,
    )
    with anyio.fail_after(SCENARIO_S), made(configuration.run_dir):
        async with anyio.create_task_group() as tasks:
            await tasks.start(fleet.run)
            seen = fleet.instances()
            try:
                yield Running(fleet, told)
            finally:
                seen += fleet.instances()
                fleet.close(drain_s=0.0)
    assert not children_of(configuration)
    assert [instance.leases for instance in seen] == [0] * len(seen)
    assert [instance.busy_slots for instance in seen] == [0] * len(seen)
    assert fleet.n_waiting == 0


@contextlib.asynccontextmanager
async def owned(plan: Plan) -> AsyncIterator[Instance]:
    """Run one instance without a fleet; it is stopped at the end, unless it ended before."""
    instance = Instance(plan, emit=lambda _event: None, on_change=lambda: None)
    with anyio.fail_after(SCENARIO_S), made(Path(plan.socket).parent):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(instance.run)
            try:
                yield instance
            finally:
                instance.stop("the test is over", drain_s=0.0)


async def until(condition: Callable[[], object], *, timeout_s: float = 20.0) -> None:
    """Wait until ``condition()`` is true; fail with what it last was."""
    deadline_s = time.monotonic() + timeout_s
    while not (last := condition()):
        assert time.monotonic() < deadline_s, f"still {last!r} after {timeout_s} s"
        await anyio.sleep(0.005)


async def reach(instance: Instance, *states: State) -> None:
    """Wait until ``instance`` is in one of ``states``."""
    await until(lambda: instance.state in states)


def children_of(configuration: Configuration) -> list[psutil.Process]:
    """Return the living processes with a socket of this configuration on their command line."""
    return processes_with(str(configuration.run_dir))


def processes_with(mark: str) -> list[psutil.Process]:
    """Return the living processes with ``mark`` on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(mark in word for word in words):
            found.append(process)
    return found


def is_alive(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def environment(**extra: str) -> Mapping[str, str]:
    """Return a small environment for a child, as kvsup builds one."""
    return {"PATH": os.environ["PATH"], **extra}
