"""A llama-server that lives but does nothing: seen, told, ended, started again. Or left alone."""

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import psutil
import pytest

from kvsup import events
from kvsup.errors import UpstreamError
from kvsup.lifecycle import State
from kvsup.runtime.instance import Instance
from kvsup.runtime.paths import made
from kvsup.runtime.upstream import Upstream
from tests.runtime.scripted import pid_of
from tests.runtime.supervised import QUICK_RESTART, Folder, is_alive, until
from tests.standin.script import LOAD, Steps, n_starts, write_script

WATCHFUL = '[watchdog]\ninterval = "100ms"\nstall = "1s"\nbusy_stall = "3s"\n'
STREAM = b'{"prompt": "Count: 1 2 3", "stream": true, "n_predict": 200, "ignore_eos": true}'
DEAF: Steps = (["ignore", "SIGTERM"], ["ignore", "exit line"])
LONG_S = 600.0
"""More than the longest prompt takes on a machine that does much else."""


@asynccontextmanager
async def watched(
    folder: Folder, *, limit_s: float = 50.0
) -> AsyncIterator[tuple[Instance, list[events.Event]]]:
    """Run the instance of model ``a``; yield it with everything that it tells."""
    plan = folder.plan("a")
    told: list[events.Event] = []
    instance = Instance(plan, emit=told.append, on_change=lambda: None)
    with anyio.fail_after(limit_s), made(Path(plan.socket).parent):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(instance.run)
            try:
                yield instance, told
            finally:
                instance.stop("the test is over", drain_s=0.0)


def standin(folder: Folder, *answer: Sequence[object], batch_size: int = 1, rest: str = "") -> Path:
    """Write a model ``a`` that ends for no polite word, and answers as ``answer`` says."""
    script = folder.path / "script.json"
    line = write_script(script, starts=[[*DEAF, *LOAD]], answers=[list(answer)])
    folder.write(a=folder.standin(line, f"batch_size = {batch_size}\n{WATCHFUL}{rest}"))
    return script


async def hung(told: list[events.Event]) -> events.Hung:
    """Return the first hang that is told."""
    await until(lambda: [e for e in told if isinstance(e, events.Hung)], timeout_s=40.0)
    return next(event for event in told if isinstance(event, events.Hung))


async def broken(upstream: Upstream) -> None:
    """Stream until the process is dead; a stream of a process that died never looks whole."""
    async with upstream.stream("POST", "/completion", body=STREAM) as response:
        assert await response.read()
        with pytest.raises(UpstreamError):
            await response.read_all()


def _has_hung(told: list[events.Event], n_times: int) -> bool:
    return sum(isinstance(event, events.Hung) for event in told) >= n_times


def causes(told: list[events.Event]) -> list[str]:
    """Return what it died of."""
    return [event.cause for event in told if isinstance(event, events.Died)]


@pytest.mark.parametrize("is_asked", [True, False])
async def test_real_llama_server_that_was_stopped_by_a_signal_is_ended_and_started_again(
    folder: Folder, any_build: Path, *, is_asked: bool
) -> None:
    """SIGSTOP under a running stream, or while nobody asks: a new process serves soon."""
    folder.llama_server = any_build
    folder.write(a=WATCHFUL + QUICK_RESTART)

    async with watched(folder) as (instance, told), anyio.create_task_group() as tasks:
        upstream = await instance.ready()
        pid = pid_of(instance)
        if is_asked:
            tasks.start_soon(broken, upstream)
            await until(lambda: upstream.n_reads)
        os.kill(pid, signal.SIGSTOP)

        found = await hung(told)
        await until(lambda: upstream.end)
        again = await instance.ready()

        assert found.reason.startswith("stopped by a signal for ")
        assert not found.dry_run
        assert ": T, awaited" in found.probes[-1]
        assert causes(told) == ["FROZEN"]
        assert not is_alive(pid)
        assert (await again.fetch("GET", "/health"))[0] == 200


async def test_stopped_in_its_load_it_is_ended_by_the_load_timeout(folder: Folder) -> None:
    """It makes no progress; who stopped it is to blame, not the model."""
    folder.write(a='load_timeout = "1s"\n' + WATCHFUL + QUICK_RESTART)

    async with watched(folder) as (instance, told):
        await until(lambda: instance.snapshot().pid)
        os.kill(pid_of(instance), signal.SIGSTOP)
        assert instance.state is State.LOADING

        await instance.ready()

    assert causes(told) == ["FROZEN"]


@pytest.fixture
def rpc_worker(llama_server: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Return the address and the process of a worker of llama.cpp's RPC backend."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(llama_server.with_name("ggml-rpc-server")), "-p", str(port), "-t", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        try:
            yield f"127.0.0.1:{port}", psutil.Process(worker.pid)
        finally:
            worker.kill()


async def test_real_wedge_with_a_healthy_health_is_ended(
    folder: Folder, rpc_worker: tuple[str, psutil.Process]
) -> None:
    """The device never answers, so the loop stands still, while ``/health`` says ok.

    The polite end does nothing, as its loop would have to take it.
    """
    address, worker = rpc_worker
    await until(worker.net_connections)
    folder.write(
        a=f'batch_size = 4\nextra_args = ["--rpc", "{address}"]\n' + WATCHFUL.replace("3s", "1m")
    )

    async with watched(folder) as (instance, told), anyio.create_task_group() as tasks:
        upstream = await instance.ready()
        pid = pid_of(instance)
        assert instance.measured.offload_devices
        tasks.start_soon(broken, upstream)
        await until(lambda: upstream.n_reads)
        worker.suspend()

        found = await hung(told)
        await until(lambda: upstream.end)
        worker.resume()

        assert found.reason.startswith("no token, no line of its loop and no CPU time in ")
        assert found.reason.endswith("/health: ok")
        assert causes(told) == ["HUNG"]
        assert not is_alive(pid)


@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize(("batch_size", "n_words"), [(16, 500), (8192, 8000)])
async def test_long_prompt_on_one_thread_is_never_ended(
    folder: Folder, gemma3: Path, batch_size: int, n_words: int
) -> None:
    """The limits are far shorter than the prompt takes, and than a batch of 8,192 tokens does."""
    folder.model = gemma3  # quicker at this length: most of its layers look at a window
    ubatch_size = min(batch_size, 512)
    folder.write(a=f"batch_size = {batch_size}\nubatch_size = {ubatch_size}\n{WATCHFUL}")
    path = folder.path / "configs" / "a.toml"
    path.write_text(path.read_text().replace("num_ctx = 256", f"num_ctx = {n_words + 256}"))
    prompt = b"one two three four " * (n_words // 4)
    body = b'{"prompt": "%b", "stream": true, "return_progress": true, "n_predict": 2}' % prompt

    async with watched(folder, limit_s=LONG_S) as (instance, told):
        upstream = await instance.ready()
        async with upstream.stream("POST", "/completion", body=body) as response:
            answer = await response.read_all()

        n_tokens = int(answer.split(b'"tokens_evaluated":')[1].split(b",")[0])
        assert n_tokens >= n_words
        assert [e for e in told if isinstance(e, (events.Hung, events.Died))] == []


async def test_socket_that_was_removed_is_found_while_nobody_asks(folder: Folder) -> None:
    """A cleaner of /tmp was there: nobody can reach it any more, so it is started again."""
    folder.write(a=WATCHFUL + QUICK_RESTART)

    async with watched(folder) as (instance, told):
        upstream = await instance.ready()
        await anyio.Path(upstream.socket).unlink()

        found = await hung(told)
        await until(lambda: upstream.end)
        again = await instance.ready()

        assert found.reason == "nobody listens on its socket"
        assert causes(told) == ["KILLED"]
        assert (await again.fetch("GET", "/health"))[0] == 200


async def test_one_that_was_told_to_end_under_a_stream_does_not_hold_it_for_the_stall(
    folder: Folder,
) -> None:
    """b11434 ends its loop, and waits for its connections, which wait for its loop."""
    folder.write(a='[watchdog]\ninterval = "100ms"\nstall = "10m"\n')

    async with watched(folder) as (instance, told), anyio.create_task_group() as tasks:
        upstream = await instance.ready()
        tasks.start_soon(broken, upstream)
        await until(lambda: upstream.n_reads > 3)
        os.kill(pid_of(instance), signal.SIGTERM)

        await until(lambda: upstream.end)
        assert causes(told) == ["KILLED"]


async def test_one_that_was_told_to_end_while_idle_is_replaced_and_nobody_blamed(
    folder: Folder,
) -> None:
    """b11434 takes its socket away and lives on: a thread of it waits for its standard input."""
    folder.write(a=WATCHFUL + "[restart]\nmax_deaths = 1\nmin_delay = 60")

    async with watched(folder) as (instance, told):
        upstream = await instance.ready()
        os.kill(pid_of(instance), signal.SIGTERM)

        await until(lambda: upstream.end)
        again = await instance.ready()

        assert causes(told) == ["KILLED"]
        assert (await again.fetch("GET", "/health"))[0] == 200


@pytest.mark.parametrize("answer", [["stall"], ["ping"]])
async def test_wedge_that_hears_no_polite_word_is_ended(folder: Folder, answer: list[str]) -> None:
    """It answers ``/health`` and sends pings, but computes nothing."""
    script = standin(folder, ["head"], ["token", "Hello"], answer, rest=QUICK_RESTART)

    async with watched(folder) as (instance, told), anyio.create_task_group() as tasks:
        upstream = await instance.ready()
        pid = pid_of(instance)
        tasks.start_soon(broken, upstream)

        found = await hung(told)
        await until(lambda: upstream.end)
        await instance.ready()

        assert found.reason.endswith("/health: ok")
        assert causes(told) == ["HUNG"]
        assert not is_alive(pid)
        assert n_starts(script) == 2


async def test_spin_is_ended_once_busy_stall_is_over(folder: Folder) -> None:
    """One that computes without a word is left alone for longer, but not for ever."""
    standin(folder, ["head"], ["token", "Hello"], ["spin"])

    async with watched(folder) as (instance, told), anyio.create_task_group() as tasks:
        tasks.start_soon(broken, await instance.ready())

        found = await hung(told)
        await until(lambda: causes(told))

        assert found.reason.startswith("it is busy, but gave no token and no line in ")
        assert causes(told) == ["HUNG"]


async def test_one_that_takes_no_connections_is_found_while_nobody_asks(folder: Folder) -> None:
    """``/health`` times out, and no more than that is known of one that has nothing to do."""
    script = folder.path / "script.json"
    line = write_script(script, starts=[[*LOAD, ["deafen"]], LOAD])
    folder.write(a=folder.standin(line, WATCHFUL + QUICK_RESTART))

    async with watched(folder) as (instance, told):
        await instance.ready()

        found = await hung(told)
        await until(lambda: causes(told))
        await instance.ready()

        assert "/health: timed out" in found.reason


async def test_dry_run_tells_and_ends_nothing(folder: Folder) -> None:
    """The event comes once for each hang; the process lives on, and serves once it may."""
    folder.write(a=WATCHFUL + "dry_run = true\n")

    async with watched(folder) as (instance, told):
        await instance.ready()
        pid = pid_of(instance)
        for n_hangs in (1, 2):
            os.kill(pid, signal.SIGSTOP)
            await until(partial(_has_hung, told, n_hangs), timeout_s=40.0)
            os.kill(pid, signal.SIGCONT)
            await anyio.sleep(0.5)
        upstream = await instance.ready()

        assert (await upstream.fetch("GET", "/health"))[0] == 200
        hangs = [event for event in told if isinstance(event, events.Hung)]
        assert [event.dry_run for event in hangs] == [True, True]
        assert causes(told) == []
        assert pid_of(instance) == pid


async def test_watchdog_that_is_off_looks_at_nothing(folder: Folder) -> None:
    """A frozen process stays as it is."""
    folder.write(a=WATCHFUL + "enabled = false\n")

    async with watched(folder) as (instance, told):
        await instance.ready()
        pid = pid_of(instance)
        os.kill(pid, signal.SIGSTOP)
        await anyio.sleep(2.5)
        os.kill(pid, signal.SIGCONT)

        assert [e for e in told if isinstance(e, (events.Hung, events.Died))] == []


async def test_slow_reader_is_no_hang(folder: Folder) -> None:
    """What its client does not take, kvsup does not read: nothing is awaited of llama-server."""
    standin(folder, ["head"], ["send", "x" * 1000, 100_000], ["done"])

    async with watched(folder) as (instance, told):
        upstream = await instance.ready()
        async with upstream.stream("POST", "/completion", body=STREAM) as response:
            await until(lambda: not upstream.is_awaited)
            await anyio.sleep(2.5)

            assert len(await response.read_all()) > 100_000_000
        assert [e for e in told if isinstance(e, (events.Hung, events.Died))] == []
