"""A llama-server that SIGKILL does not end, as one in state D: it holds nobody, and is told of.

No such process can be made on demand: here SIGKILL is not sent to one that is stopped by a signal.
"""

import os
import signal
from functools import partial

import anyio
import pytest

from kvsup import events
from kvsup.errors import InstanceError, UpstreamError
from kvsup.runtime import orphans, process, tenure
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.making import make_instance
from kvsup.runtime.paths import made
from kvsup.runtime.process import Child
from kvsup.runtime.remembered import Remembered
from tests.runtime.scripted import files_of, pid_of
from tests.runtime.supervised import (
    QUICK_RESTART,
    SCENARIO_S,
    Folder,
    is_alive,
    running,
    until,
)

WATCHFUL = 'restart_wait = 1\n[watchdog]\ninterval = "100ms"\nstall = "1s"\nbusy_stall = "3s"\n'
STREAM = b'{"prompt": "Count: 1 2 3", "stream": true, "n_predict": 200, "ignore_eos": true}'


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Send no SIGKILL, and wait for its effect only for a moment; return what undoes it."""
    monkeypatch.setattr(Child, "kill", lambda _: None)
    for module in (process, tenure):
        monkeypatch.setattr(module, "KILL_S", 0.05)
    return monkeypatch


async def test_one_that_cannot_be_killed_lets_its_requests_go_and_is_replaced_once_it_ends(
    folder: Folder, unkillable: pytest.MonkeyPatch
) -> None:
    """It hangs: its stream breaks off though it lives, and who waits is told."""
    folder.write(a=WATCHFUL + QUICK_RESTART)

    async with running(folder.read()) as now, now.fleet.lease("a") as instance:
        upstream = await instance.ready()
        pid = pid_of(instance)
        async with upstream.stream("POST", "/completion", body=STREAM) as response:
            assert await response.read()
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(UpstreamError):
                await response.read_all()
        with pytest.raises(InstanceError, match="did not come back within 1 s"):
            await instance.ready()
        assert now.of_kind(events.Unkillable) == [events.Unkillable("a", pid)]
        assert is_alive(pid)

        unkillable.undo()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: upstream.end)

        assert await instance.ready() is not upstream


@pytest.mark.usefixtures("unkillable")
@pytest.mark.filterwarnings("ignore:unclosed resource:ResourceWarning")
def test_one_that_cannot_be_killed_does_not_hold_up_the_shutdown(folder: Folder) -> None:
    """It is left behind with its record, so that the next start tries again."""
    folder.write(a="stop_timeout = 0.05")
    configuration = folder.read()
    fleet = Fleet(
        configuration.plans,
        configuration.host,
        make=partial(make_instance, store=Remembered(configuration.state_dir)),
        emit=lambda _: None,
    )

    async def serve_and_leave() -> int:
        with anyio.fail_after(SCENARIO_S), made(configuration.run_dir):
            async with anyio.create_task_group() as tasks:
                await tasks.start(fleet.run)
                async with fleet.lease("a") as instance:
                    await instance.ready()
                    pid = pid_of(instance)
                os.kill(pid, signal.SIGSTOP)
                fleet.close(drain_s=0.0)
        return pid

    pid = anyio.run(serve_and_leave, backend_options={"use_uvloop": True})
    try:
        assert is_alive(pid)
        assert f"{fleet.instance('a').plan.socket}.json" in files_of(fleet.instance("a"))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        orphans.forget(fleet.instance("a").plan.socket)
