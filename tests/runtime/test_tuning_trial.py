"""A llama-server on trial: how it fails, and that nothing is left of it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import msgspec
import psutil
import pytest

from kvsup.kvtypes import F16, parse_kv_pair
from kvsup.plan import Plan
from kvsup.runtime import orphans
from kvsup.tuning.trial import TrialFailed, reap_trials, trial
from tests.runtime.supervised import Folder, is_alive, processes_with, until

pytestmark = pytest.mark.anyio

NOBODY = 2**22
"""Above the largest pid of a Linux machine."""


@pytest.fixture
def plan(folder: Folder) -> Plan:
    """Return the plan of the demo model."""
    folder.write(m="")
    return folder.plan("m")


def _left(plan: Plan) -> list[object]:
    """Return the processes and folders of trials that are there."""
    run_dir = Path(plan.run_dir)
    return [*processes_with(plan.run_dir), *run_dir.parent.glob(f"{run_dir.name}-*")]


async def test_trial_runs_the_pair_in_a_folder_of_its_own(plan: Plan) -> None:
    """The plan's own socket is never touched, and after the trial nothing is left."""
    pair = parse_kv_pair("q8_0:q4_0")

    async with trial(plan, pair, num_ctx=300) as running:
        cache = running.measured.caches[0]
        answer = await running.ask("/tokenize", {"content": "one two"})
        socket = Path(running.plan.socket)

    assert (cache.type_k, cache.type_v, cache.cells) == ("q8_0", "q4_0", 512)
    assert len(answer["tokens"]) == 2
    assert socket.parent != Path(plan.run_dir)
    assert _left(plan) == []


async def test_trial_that_is_killed_in_a_request_says_so(plan: Plan) -> None:
    """A tune run goes on with the next pair, so a crash is one of kvsup's own errors."""
    body = {"prompt": "A", "n_predict": 10_000, "ignore_eos": True}

    async with trial(plan, F16, num_ctx=256) as running, anyio.create_task_group() as tasks:
        tasks.start_soon(_kill_when_busy, running.plan.socket)
        with pytest.raises(TrialFailed, match=r"killed by SIGKILL; its last lines: ."):
            await running.ask("/completion", body)

    assert _left(plan) == []


async def _kill_when_busy(socket: str) -> None:
    [process] = processes_with(socket)
    before_s = process.cpu_times().user
    await until(lambda: process.cpu_times().user > before_s)
    process.kill()


async def test_trial_that_does_not_load_tells_the_cause_of_its_log(folder: Folder) -> None:
    """Quantized V needs flash attention; llama-server refuses it, and the error says why."""
    folder.write(m="flash_attention = 'off'")
    plan = folder.plan("m")

    with pytest.raises(TrialFailed, match=r"m with f16:q8_0 .*requires flash_attn"):
        async with trial(plan, parse_kv_pair("f16:q8_0"), num_ctx=256):
            pytest.fail("it cannot serve")

    assert _left(plan) == []


async def test_trial_without_a_binary_has_failed(plan: Plan) -> None:
    """A llama-server that has gone is no reason for a traceback."""
    gone = replace(plan, binary=msgspec.structs.replace(plan.binary, path="/nowhere/llama-server"))

    with pytest.raises(TrialFailed, match="cannot be started"):
        async with trial(gone, F16, num_ctx=256):
            pytest.fail("it cannot be started")

    assert _left(plan) == []


async def test_answer_that_is_an_error_is_told_in_its_own_words(plan: Plan) -> None:
    """The trial itself goes on."""
    async with trial(plan, F16, num_ctx=256) as running:
        with pytest.raises(TrialFailed, match=r"/completion answered 400: .*exceeds"):
            await running.ask("/completion", {"prompt": [1] * 400, "n_predict": 1})
        answer = await running.ask("/tokenize", {"content": "one"})

    assert len(answer["tokens"]) == 1


async def test_exception_within_a_trial_leaves_it_as_it_was_raised(plan: Plan) -> None:
    """Not in a group of exceptions, which callers would have to take apart."""
    with pytest.raises(KeyError, match="mine"):
        async with trial(plan, F16, num_ctx=256):
            raise KeyError("mine")

    assert _left(plan) == []


async def test_cancelled_request_leaves_no_process(plan: Plan) -> None:
    """Ctrl-C in the middle of a measurement ends the llama-server too."""
    body = {"prompt": "A", "n_predict": 10_000, "ignore_eos": True}

    async with anyio.create_task_group() as tasks, trial(plan, F16, num_ctx=256) as running:
        tasks.cancel_scope.cancel()
        await running.ask("/completion", body)

    assert _left(plan) == []


async def test_cancelled_load_leaves_no_process(plan: Plan) -> None:
    """From the spawn on, whatever happens, it is killed and reaped."""

    async def load() -> None:
        async with trial(plan, F16, num_ctx=256):
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load)
        await until(lambda: processes_with(plan.run_dir))
        tasks.cancel_scope.cancel()

    assert _left(plan) == []


@pytest.fixture
def orphan(plan: Plan) -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that the trial of a killed kvsup has left, with its record."""
    folder = Path(f"{plan.run_dir}-0a0a0a0a")
    folder.mkdir(parents=True)
    socket = str(folder / "a.sock")
    argv = [sys.executable, "-c", "import signal; print(1, flush=True); signal.pause()", socket]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        create_time = psutil.Process(process.pid).create_time()
        record = orphans.Record(process.pid, create_time, NOBODY, 1.0)
        Path(f"{socket}.json").write_bytes(msgspec.json.encode(record))
        yield process
        process.kill()


async def test_trial_of_a_killed_kvsup_is_reaped_with_its_folder(
    plan: Plan, orphan: subprocess.Popen[bytes]
) -> None:
    """What is recorded there is killed; a trial of a living kvsup is left alone."""
    async with trial(plan, F16, num_ctx=256) as living:
        reap_trials(Path(plan.run_dir))
        await living.ask("/tokenize", {"content": "still here"})

    assert not is_alive(orphan.pid)
    assert _left(plan) == []
