"""What is kept of an end: of a real llama-server that is killed."""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import psutil
import pytest

from kvsup.events import Event, Hung
from kvsup.runtime.evidence import Case, Witness
from kvsup.runtime.instance import Instance
from kvsup.runtime.making import make_instance
from kvsup.runtime.paths import made
from kvsup.runtime.remembered import Remembered
from tests.runtime.supervised import QUICK_RESTART, SCENARIO_S, Folder, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def witnessed(folder: Folder) -> AsyncIterator[tuple[Instance, list[Case]]]:
    """Run an instance as a fleet makes it, and yield it with what is kept of its ends."""
    folder.write(a=QUICK_RESTART)
    plan, cases, told = folder.plan("a"), list[Case](), list[Event]()

    def keep(model: str, case: msgspec.Struct) -> None:
        assert isinstance(case, Case)
        assert case.model == model == "a"
        cases.append(case)

    instance = make_instance(
        plan,
        store=Remembered(folder.path / "state"),
        emit=told.append,
        note=Witness(keep).note,
        on_change=lambda: None,
        is_trial=False,
    )
    with anyio.fail_after(SCENARIO_S), made(Path(plan.socket).parent):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(instance.run)
            try:
                yield instance, cases
            finally:
                instance.stop("the test is over", drain_s=0.0)


async def die(instance: Instance) -> None:
    """Kill its llama-server and wait for the next one to serve."""
    upstream = await instance.ready()
    pid = instance.snapshot().pid
    assert pid is not None
    psutil.Process(pid).kill()
    await until(lambda: upstream.end)
    await instance.ready()


async def test_evidence_of_a_killed_process_tells_what_ran_on_it(folder: Folder) -> None:
    """Signal, log, memory as its load told, and of its requests what tells nothing of their text.

    A request that had ended, or that ran on the process before, did not die with this one.
    """
    async with witnessed(folder) as (instance, cases):
        upstream, docket = await instance.ready(), instance.docket
        open_case = docket.open("f1", route="/v1/chat/completions", n_tokens=lambda: 12)
        ended_case = docket.open("f2", route="/completion")
        docket.starts(open_case, upstream)
        docket.starts(ended_case, upstream)
        docket.ends(ended_case, upstream)
        pid = instance.snapshot().pid

        await die(instance)
        await die(instance)

    first, second = cases
    assert first.pid == pid
    assert first.event.event == "Died"
    assert first.event.facts["returncode"] == -9
    assert first.event.facts["cause"] == "KILLED"
    assert first.num_ctx == instance.plan.model.num_ctx
    assert any("load_model" in line for line in first.log)
    assert first.memory is not None
    assert first.memory.total_bytes == psutil.virtual_memory().total
    assert sum(first.memory.model_bytes_by_device.values()) > 50 << 20
    assert [msgspec.to_builtins(each) for each in first.requests] == [
        {"route": "/v1/chat/completions", "fingerprint": "f1", "delivered_tokens": 12}
    ]
    assert (second.requests, second.verdict) == ([], None)


async def test_evidence_of_a_hang_has_the_verdict_and_how_the_process_was(folder: Folder) -> None:
    """Taken while it still lives, kept with its death; not with the death of the next one."""
    async with witnessed(folder) as (instance, cases):
        await instance.ready()
        pid = instance.snapshot().pid
        assert pid is not None
        psutil.Process(pid).suspend()
        await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        instance.emit(Hung("a", "stopped by a signal", probes=("1.0 s: T", "2.0 s: T")))
        await die(instance)
        await die(instance)

    first, second = cases
    assert first.verdict is not None
    assert list(first.verdict.event["probes"]) == ["1.0 s: T", "2.0 s: T"]
    assert first.verdict.process is not None
    assert first.verdict.process.status == psutil.STATUS_STOPPED
    assert first.verdict.process.rss_bytes > 50 << 20
    assert second.verdict is None


async def test_evidence_of_a_hang_that_is_left_alone_is_kept_at_once(folder: Folder) -> None:
    """With ``dry_run`` there is no death to keep it with."""
    async with witnessed(folder) as (instance, cases):
        await instance.ready()
        instance.emit(Hung("a", "silent for 90 s", dry_run=True))
        (case,) = cases

        await die(instance)

    assert case.event.event == "Hung"
    assert case.verdict is not None
    assert case.verdict.process is not None
    assert [each.verdict is None for each in cases] == [False, True]


async def test_evidence_where_no_file_can_be_opened_is_what_there_is(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host without file descriptors left: the instance lives on, and its log is kept."""

    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with witnessed(folder) as (instance, cases):
        await instance.ready()
        monkeypatch.setattr(psutil, "virtual_memory", refuse)
        await die(instance)

    (case,) = cases
    assert case.memory is None
    assert case.log
    assert instance.failure is None
