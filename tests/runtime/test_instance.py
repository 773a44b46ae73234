"""One instance and its process: load, crash, backoff, failure, stop. Real, except for faults."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import anyio
import msgspec
import pytest

from kvsup.errors import InstanceError, InstanceFailed, UpstreamError
from kvsup.lifecycle import State
from kvsup.runtime.instance import Instance
from kvsup.runtime.paths import made
from kvsup.runtime.upstream import Upstream
from tests.runtime.scripted import pid_of, scripted
from tests.runtime.supervised import (
    QUICK_RESTART,
    Folder,
    is_alive,
    owned,
    processes_with,
    reach,
    until,
)
from tests.standin.script import LOAD, Steps, log_of, make_gate, n_starts, open_gate


async def test_load_of_the_real_model_becomes_ready_with_measured_bytes(folder: Folder) -> None:
    """K and V bytes are those of the log, and the upstream serves."""
    folder.write(a='kv_cache_type = "q8_0:q5_1"')

    async with owned(folder.plan("a")) as instance:
        upstream = await instance.ready()

        status, _ = await upstream.fetch("GET", "/health")
        elements = 30 * 256 * 192
        assert status == 200
        assert instance.state is State.READY
        await until(lambda: instance.measured.kv_bytes)
        k_bytes, v_bytes = instance.measured.kv_bytes or (0, 0)
        assert abs(k_bytes - elements * 34 // 32) < 1 << 13
        assert abs(v_bytes - elements * 24 // 32) < 1 << 13


@pytest.mark.parametrize("is_old", [False, True])
async def test_load_becomes_ready_by_events_or_by_health(folder: Folder, *, is_old: bool) -> None:
    """A build without events is asked ``/health``; both say ready only once it serves."""
    gate = make_gate(folder.path / "gate")
    load: Steps = (["listen"], ["stage", 0.0], ["wait", str(gate)], ["ready"])
    scripted(folder, load, is_old=is_old)

    async with owned(folder.plan("a")) as instance:
        await until(lambda: Path(instance.plan.socket).exists())
        assert instance.state is State.LOADING

        await anyio.to_thread.run_sync(open_gate, gate)
        upstream = await instance.ready()

        assert (await upstream.fetch("GET", "/health"))[0] == 200


async def test_ready_event_that_comes_twice_changes_nothing(folder: Folder) -> None:
    """After a wake-up llama-server says ``ready`` again."""
    marker = folder.path / "second"
    scripted(folder, [*LOAD, ["ready"], ["touch", str(marker)]])

    async with owned(folder.plan("a")) as instance:
        first = await instance.ready()
        await until(marker.exists)

        assert await instance.ready() is first
        assert instance.state is State.READY


async def test_garbage_floods_and_endless_lines_in_the_load_do_no_harm(folder: Folder) -> None:
    """Pipes are always read, lines are bounded, and the log keeps only its last part."""
    scripted(
        folder,
        [
            ["write", "stderr", "\x00\x1b[31m\xff\xfe\n"],
            ["write", "stdout", "cmd_child_to_router:state:{broken\n"],
            ["write", "stdout", "cmd_child_to_router:state:\n"],
            ["write", "stderr", "x" * 1023 + "\n", 4096],
            ["write", "stderr", "y" * 1024, 1024],
            ["log", "", "after the flood"],
            *LOAD,
        ],
    )

    async with owned(folder.plan("a")) as instance:
        await instance.ready()

        await until(lambda: "after the flood" in instance.logbook.tail(3))
        kept = instance.logbook.tail(1 << 20)
        assert sum(map(len, kept)) <= 1 << 20
        assert max(map(len, kept)) <= 64 << 10


async def test_kill_of_a_ready_process_is_followed_by_backoff_and_a_new_one(folder: Folder) -> None:
    """A crash is seen at once; whoever asks in the backoff waits for the next process."""
    folder.write(a=QUICK_RESTART)

    async with owned(folder.plan("a")) as instance:
        broken = await instance.ready()
        pid = pid_of(instance)
        os.kill(pid, signal.SIGKILL)

        await instance.end_of(broken)
        upstream = await instance.ready()

        assert upstream is not broken
        assert pid_of(instance) != pid
        assert instance.snapshot().n_deaths == 1
        assert (await upstream.fetch("GET", "/health"))[0] == 200


async def test_kill_under_an_open_stream_ends_it_with_an_error(folder: Folder) -> None:
    """A stream of a process that died never looks whole."""
    folder.write(a=QUICK_RESTART)
    body = b'{"prompt": "Count: 1 2 3", "stream": true, "n_predict": 200, "ignore_eos": true}'

    async with owned(folder.plan("a")) as instance:
        upstream = await instance.ready()
        async with upstream.stream("POST", "/completion", body=body) as response:
            assert await response.read()
            os.kill(pid_of(instance), signal.SIGKILL)

            with pytest.raises(UpstreamError):
                await response.read_all()


async def test_crash_with_a_grandchild_that_holds_the_pipes_is_seen_and_cleaned(
    folder: Folder,
) -> None:
    """The exit counts, not the end of the pipes; what the dead one started goes with it."""
    scripted(folder, [["grandchild"], *LOAD], LOAD, rest=QUICK_RESTART)

    async with owned(folder.plan("a")) as instance:
        broken = await instance.ready()
        first = pid_of(instance)
        group = [p.pid for p in processes_with(instance.plan.socket)]
        assert len(group) == 2
        os.kill(first, signal.SIGKILL)

        await instance.end_of(broken)
        upstream = await instance.ready()

        assert upstream is not broken
        assert (await upstream.fetch("GET", "/health"))[0] == 200
        await until(lambda: not any(map(is_alive, group)))


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ([["exit", 1]], "ended by itself; exit code 1"),
        ([["exit", 0]], "ended by itself; exit code 0"),
        ([["die", "SIGSEGV"]], "died of a signal; signal SIGSEGV"),
        ([["die", "SIGABRT"]], "died of a signal; signal SIGABRT"),
        (
            [["log", "I common_init_: warming up the model with an empty run"], ["die", "SIGSEGV"]],
            "died of a signal in its warm-up; signal SIGSEGV",
        ),
    ],
)
async def test_load_that_dies_every_time_is_given_up_with_its_cause(
    folder: Folder, fault: Steps, cause: str
) -> None:
    """After ``max_deaths`` in the window it is FAILED, and the cause names exit code or signal."""
    script = scripted(folder, fault, rest=QUICK_RESTART + "max_deaths = 3")

    async with owned(folder.plan("a")) as instance:
        with pytest.raises(InstanceFailed, match="died 3 times in 600 s") as failed:
            await instance.ready()

    assert cause in str(failed.value)
    assert instance.state is State.FAILED
    assert n_starts(script) == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bad_flag", "does not take an argument; exit code 1; error: invalid argument: --nope"),
        ("bad_value", 'error while handling argument "-c": stoi'),
        ("no_such_file", "failed to open GGUF file 'model.gguf' (No such file or directory)"),
        ("not_gguf", "invalid magic characters: 'hell', expected 'GGUF'"),
        ("truncated", "model is corrupted or incomplete"),
        ("pair_refused", "quantized V cache requires flash_attn to be enabled"),
        ("no_memory", "insufficient memory (attempted to allocate 439453.12 MB)"),
    ],
)
async def test_load_that_fails_for_a_permanent_cause_is_given_up_at_once(
    folder: Folder, name: str, says: str
) -> None:
    """What the next start would meet again is not tried again; each waiter is told the line."""
    script = scripted(folder, [["listen"], ["log", *log_of(name)], ["exit", 1]])
    told: list[str] = []

    async def wait(instance: Instance) -> None:
        try:
            await instance.ready()
        except InstanceFailed as error:
            told.append(str(error))

    async with owned(folder.plan("a")) as instance, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(wait, instance)

    assert n_starts(script) == 1
    assert len(told) == 5
    assert all(says in text for text in told), told[0]


async def test_bad_value_on_the_real_binary_is_given_up_at_once(folder: Folder) -> None:
    """As above, with the words of the real llama-server."""
    folder.write(a='extra_args = ["--poll", "much"]')

    async with owned(folder.plan("a")) as instance:
        with pytest.raises(InstanceFailed, match='error while handling argument "--poll"'):
            await instance.ready()

    assert instance.snapshot().n_deaths == 1


async def test_binary_that_is_gone_is_given_up_at_once(folder: Folder) -> None:
    """A spawn that fails is told as the operator's to mend."""
    script = scripted(folder, LOAD)
    plan = folder.plan("a")
    gone = msgspec.structs.replace(plan.binary, path="/nonexistent/llama-server")
    plan = replace(plan, binary=gone)

    async with owned(plan) as instance:
        with pytest.raises(InstanceFailed, match=r"no such program.*/nonexistent/llama-server"):
            await instance.ready()

    assert n_starts(script) == 0


async def test_failure_text_of_an_unknown_end_holds_the_last_line_of_the_log(
    folder: Folder,
) -> None:
    """Where no known line tells why, the last one says most."""
    scripted(
        folder,
        [["log", "E ggml: something new went wrong"], ["exit", 3]],
        rest='[restart]\npolicy = "never"',
    )

    async with owned(folder.plan("a")) as instance:
        with pytest.raises(InstanceFailed, match="exit code 3; E ggml: something new went wrong"):
            await instance.ready()


async def test_load_that_makes_no_progress_is_killed_and_tried_again(folder: Folder) -> None:
    """``load_timeout`` is of no progress: neither a line nor an event; a stall is a death."""
    script = scripted(
        folder,
        [["listen"], ["stage", 0.0], ["hang"]],
        LOAD,
        rest='load_timeout = "1s"\nstop_timeout = "30s"\n' + QUICK_RESTART,
    )

    async with owned(folder.plan("a")) as instance:
        await instance.ready()

        assert instance.snapshot().n_deaths == 1
    assert n_starts(script) == 2


async def test_socket_that_never_appears_is_a_stall_not_an_endless_wait(folder: Folder) -> None:
    """A process that lives and does nothing ends in FAILED with a cause."""
    scripted(folder, [["hang"]], rest='load_timeout = 0.05\n[restart]\npolicy = "never"')

    async with owned(folder.plan("a")) as instance:
        with pytest.raises(InstanceFailed, match="the load made no progress"):
            await instance.ready()

    assert processes_with(instance.plan.socket) == []


async def test_load_that_went_on_while_kvsup_stood_still_is_not_ended(folder: Folder) -> None:
    """Woken by its timer, kvsup has not read yet what came while it was stopped or frozen."""
    gate = make_gate(folder.path / "gate")
    script = scripted(folder, [["listen"], ["stage", 0.0], ["wait", str(gate)], *LOAD[1:]])

    async with owned(folder.plan("a")) as instance:
        await until(lambda: instance._tenure and instance._tenure.watch.speaks_child_mode)
        assert instance._tenure is not None
        instance._tenure.watch.progress_s -= instance.plan.model.load_timeout_s + 60
        instance.notify()
        await anyio.to_thread.run_sync(open_gate, gate)

        await instance.ready()

        assert instance.snapshot().n_deaths == 0
    assert n_starts(script) == 1


async def test_log_lines_in_a_load_are_progress(folder: Folder) -> None:
    """A slow load that tells anything is never killed, however long it takes in all."""
    gate = make_gate(folder.path / "gate")
    line = ["log", "."]
    scripted(folder, [["listen"], *[line] * 50, ["wait", str(gate)], *LOAD[1:]])

    async with owned(folder.plan("a")) as instance:
        await until(lambda: instance.logbook.tail(1) == ["."])
        await anyio.to_thread.run_sync(open_gate, gate)

        await instance.ready()

        assert instance.snapshot().n_deaths == 0


async def test_reset_ends_failed_and_the_next_run_starts_afresh(folder: Folder) -> None:
    """``kvsup reset`` forgets the failure and the deaths."""
    script = scripted(folder, [["exit", 1]], LOAD, rest='[restart]\npolicy = "never"')
    async with owned(folder.plan("a")) as instance:
        await reach(instance, State.FAILED)
    assert instance.snapshot().state is State.FAILED

    instance.reset()

    assert instance.state is State.STOPPED
    assert (instance.failure, instance.snapshot().n_deaths) == (None, 0)
    with made(Path(instance.plan.socket).parent):
        async with anyio.create_task_group() as tasks:
            instance.prepare()
            tasks.start_soon(instance.run)
            assert isinstance(await instance.ready(), Upstream)
            instance.stop("the test is over")
    assert n_starts(script) == 2


async def test_ready_tells_whoever_waited_through_a_reset(folder: Folder) -> None:
    """Nobody starts it for a request that was granted before: it must not wait for ever."""
    scripted(folder, [["exit", 1]], LOAD, rest='[restart]\npolicy = "never"')
    async with owned(folder.plan("a")) as instance:
        await reach(instance, State.FAILED)
    instance.reset()

    with pytest.raises(InstanceError, match="was stopped: it was reset"):
        await instance.ready()


async def test_ready_says_so_when_nothing_is_left_of_the_deaths(folder: Folder) -> None:
    """They are forgotten by a reset, or were a request's own."""
    rest = 'restart_wait = "200ms"\n[restart]\nmin_delay = "1m"'
    scripted(folder, [["exit", 1]], LOAD, rest=rest)
    async with owned(folder.plan("a")) as instance:
        await reach(instance, State.BACKOFF)
        instance.reset()

        with pytest.raises(InstanceError, match=r"within 0.2 s \(restart_wait\)$"):
            await instance.ready()


async def test_a_fresh_load_is_not_measured_by_an_old_death(folder: Folder) -> None:
    """``restart_wait`` is for what died under its requests, not for a cold load later."""
    gate = make_gate(folder.path / "gate")
    slow: Steps = (["listen"], ["wait", str(gate)], ["ready"])
    rest = 'restart_wait = "200ms"\n[restart]\nmin_delay = "1m"'
    scripted(folder, [["exit", 1]], slow, rest=rest)
    async with owned(folder.plan("a")) as instance:
        await reach(instance, State.BACKOFF)
        instance.stop("idle")
        await reach(instance, State.STOPPED)

        async with anyio.create_task_group() as tasks:
            instance.prepare()
            tasks.start_soon(instance.run)
            with anyio.move_on_after(0.5) as waited:
                await instance.ready()
            assert waited.cancelled_caught

            await anyio.to_thread.run_sync(open_gate, gate)
            assert isinstance(await instance.ready(), Upstream)
            instance.stop("the test is over")


async def test_ready_that_is_cancelled_leaves_the_load_alone(folder: Folder) -> None:
    """A load belongs to the instance: its first client may leave."""
    gate = make_gate(folder.path / "gate")
    scripted(folder, [["listen"], ["wait", str(gate)], *LOAD[1:]])

    async with owned(folder.plan("a")) as instance:
        with anyio.move_on_after(0.05):
            await instance.ready()
        await anyio.to_thread.run_sync(open_gate, gate)

        await instance.ready()

        assert instance.snapshot().n_deaths == 0
