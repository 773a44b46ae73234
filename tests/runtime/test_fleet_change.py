"""A fleet whose configuration changes, or that is closed, while it serves."""

import shutil

import anyio
import pytest

from kvsup import events
from kvsup.errors import CapacityError, InstanceFailed, ModelNotFound, UpstreamError
from kvsup.lifecycle import State
from tests.runtime.clients import Client
from tests.runtime.supervised import Folder, Running, reach, running, until
from tests.standin.script import LOAD, write_script

STREAM = b'{"prompt": "Count: 1 2 3", "stream": true, "n_predict": 60, "ignore_eos": true}'


def reload(now: Running, folder: Folder) -> None:
    """Take up the configuration as it stands in the folder."""
    configuration = folder.read()
    now.fleet.replace(configuration.plans, configuration.host)


async def test_replace_with_the_same_files_touches_no_process(folder: Folder) -> None:
    """A reload without an edit is nothing."""
    folder.write(a="", b="")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a") as instance:
            upstream = await instance.ready()

            reload(now, folder)

            assert now.fleet.instance("a") is instance
            assert await instance.ready() is upstream
        assert now.of_kind(events.Stopping) == []
        assert now.of_kind(events.Reloaded) == [events.Reloaded((), (), ())]


async def test_replace_of_what_is_no_argument_keeps_the_process(folder: Folder) -> None:
    """keep_alive, aliases and the like act at once on the running one."""
    folder.write(a="")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a") as instance:
            await instance.ready()
            folder.write(a='aliases = ["new"]\nsystem = "Be short."')

            reload(now, folder)

            assert now.fleet.instance("new") is instance
            assert instance.plan.model.system == "Be short."
        assert len(now.of_kind(events.Spawned)) == 1
        assert now.of_kind(events.Stopping) == []


async def test_replace_of_a_leased_model_drains_the_old_while_the_new_serves(
    folder: Folder,
) -> None:
    """A stream that runs goes on to its end; new requests meet the new plan."""
    folder.write(a="")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a") as old:
            upstream = await old.ready()
            async with upstream.stream("POST", "/completion", body=STREAM) as response:
                assert await response.read()
                folder.write(a='kv_cache_type = "q8_0"')
                reload(now, folder)

                async with now.fleet.lease("a") as new:
                    await new.ready()
                    assert new is not old
                    assert str(new.plan.model.kv_cache_type) == "q8_0:q8_0"
                rest = await response.read_all()
            assert b'"stop":true' in rest
            assert old.state is State.DRAINING
        await reach(old, State.STOPPED)
        assert now.fleet.loaded() == [new]


async def test_replace_of_an_idle_model_leaves_the_others_alone(folder: Folder) -> None:
    """Only what changed is replaced; it was used just now, so the new one is loaded at once."""
    folder.write(a="", b="")

    async with running(folder.read()) as now:
        for name in ("a", "b"):
            async with now.fleet.lease(name) as instance:
                await instance.ready()
        folder.write(a="batch_size = 256")

        reload(now, folder)

        new = now.fleet.instance("a")
        await until(lambda: now.fleet.loaded() == [now.fleet.instance("b"), new])
        assert [event.model for event in now.told if isinstance(event, events.Stopping)] == ["a"]


async def test_replace_that_removes_a_model_drains_it_and_forgets_its_name(folder: Folder) -> None:
    """Its running request ends well; the next is told that there is no such model."""
    folder.write(a="", b="")

    async with running(folder.read()) as now:
        async with now.fleet.lease("a") as instance:
            await instance.ready()
            folder.remove("a")
            reload(now, folder)

            with pytest.raises(ModelNotFound):
                now.fleet.instance("a")
            assert now.fleet.loaded() == [instance]
        await until(lambda: now.fleet.loaded() == [])


async def test_replace_points_waiters_at_the_new_plan(folder: Folder) -> None:
    """Who waits in the queue is served by the new one, or told that the model is gone."""
    folder.write(a="", b="")
    served: list[str] = []
    gone: list[str] = []

    async def wait(now: Running, name: str) -> None:
        try:
            async with now.fleet.lease(name) as instance:
                await instance.ready()
                served.append(str(instance.plan.model.kv_cache_type))
        except ModelNotFound as error:
            gone.append(error.name)

    async with (
        running(folder.read()) as now,
        anyio.create_task_group() as tasks,
        now.fleet.lease("a") as a,
        now.fleet.lease("b") as b,
    ):
        await a.ready()
        await b.ready()
        tasks.start_soon(wait, now, "a")
        tasks.start_soon(wait, now, "b")
        await until(lambda: now.fleet.n_waiting == 2)
        folder.write(a='kv_cache_type = "q8_0:q5_1"')
        folder.remove("b")

        reload(now, folder)

        await until(lambda: served and gone)

    assert served == ["q8_0:q5_1"]
    assert gone == ["b"]


async def test_replace_there_and_back_while_the_first_drains_serves_again(folder: Folder) -> None:
    """The same plan again is a new instance that waits for the place of the old one."""
    folder.write(a="")
    served: list[str] = []

    async def use(now: Running) -> None:
        async with now.fleet.lease("a") as instance:
            await instance.ready()
            served.append(instance.key)

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        async with now.fleet.lease("a") as first:
            await first.ready()
            folder.write(a='kv_cache_type = "q8_0"')
            reload(now, folder)
            folder.write(a="")
            reload(now, folder)

            tasks.start_soon(use, now)
            await until(lambda: now.fleet.n_waiting == 1 or served)
        await until(lambda: served == [first.key])


async def test_replace_of_a_failed_model_by_an_edit_ends_its_failure(folder: Folder) -> None:
    """``FAILED`` ends with an edit of its file, and not with a reload of the same one."""
    folder.write(a='extra_args = ["--poll", "much"]')

    async with running(folder.read()) as now:
        with pytest.raises(InstanceFailed):
            async with now.fleet.lease("a") as instance:
                await instance.ready()
        reload(now, folder)
        assert now.fleet.instance("a").failure is not None
        folder.write(a="")

        reload(now, folder)

        async with now.fleet.lease("a") as instance:
            await instance.ready()


async def test_close_drains_the_stream_that_runs_and_refuses_who_waits(folder: Folder) -> None:
    """A shutdown lets running requests end, tells waiters at once, and leaves no process."""
    folder.write(a="")
    refused: list[str] = []

    async def wait(now: Running) -> None:
        try:
            async with now.fleet.lease("a"):
                pass
        except CapacityError as error:
            refused.append(str(error))

    async with running(folder.read()) as now:
        async with anyio.create_task_group() as tasks, now.fleet.lease("a") as instance:
            upstream = await instance.ready()
            async with upstream.stream("POST", "/completion", body=STREAM) as response:
                assert await response.read()
                tasks.start_soon(wait, now)
                await until(lambda: now.fleet.n_waiting == 1)

                now.fleet.close(drain_s=60.0)
                rest = await response.read_all()

        await until(lambda: now.fleet.loaded() == [])

    assert refused == ["kvsup is shutting down"]
    assert b'"stop":true' in rest


async def test_close_refuses_whoever_comes_later(folder: Folder) -> None:
    """Nothing is started in a shutdown."""
    folder.write(a="")

    async with running(folder.read()) as now:
        now.fleet.close(drain_s=60.0)

        with pytest.raises(CapacityError, match="shutting down"):
            async with now.fleet.lease("a"):
                pass

        assert now.told == []


async def test_close_whose_drain_is_over_cuts_the_stream_and_reaps(folder: Folder) -> None:
    """The second signal of a person who does not want to wait."""
    folder.write(a="")
    body = STREAM.replace(b"60", b"250")

    async with running(folder.read()) as now, now.fleet.lease("a") as instance:
        upstream = await instance.ready()
        async with upstream.stream("POST", "/completion", body=body) as response:
            assert await response.read()
            now.fleet.close(drain_s=60.0)
            await reach(instance, State.DRAINING)

            now.fleet.close(drain_s=0.0)

            with pytest.raises(UpstreamError):
                await response.read_all()
        await until(lambda: now.fleet.loaded() == [])


async def test_close_in_a_load_that_hangs_ends_it(folder: Folder) -> None:
    """A load nobody waits for is not waited for either; one with a client has the drain time."""
    script = write_script(folder.path / "s.json", starts=[[*LOAD[:2], ["hang"]]])
    folder.write(a=folder.standin(script, "preload = true"))

    async with running(folder.read()) as now:
        await until(lambda: now.fleet.instance("a").state is State.LOADING)

        now.fleet.close(drain_s=0.0)

        await until(lambda: now.fleet.loaded() == [])


async def test_replace_that_removes_a_model_tells_everyone_who_waits_for_it(
    folder: Folder,
) -> None:
    """None of those in the queue loads a model that is no longer in the configuration."""
    folder.host += "max_loaded_models = 1\n"
    folder.write(a="", b="")

    async with running(folder.read()) as now:
        waiting = [Client(now.fleet, "b") for _ in range(4)]
        async with anyio.create_task_group() as tasks, now.fleet.lease("a") as instance:
            await instance.ready()
            for client in waiting:
                tasks.start_soon(client.pass_by)
            await until(lambda: now.fleet.n_waiting == 4)
            folder.remove("b")

            reload(now, folder)

        assert [type(client.error) for client in waiting] == [ModelNotFound] * 4
        assert len(now.of_kind(events.Spawned)) == 1


async def test_start_after_the_run_folder_was_cleaned_away_makes_it_again(folder: Folder) -> None:
    """A cleaner of /tmp must not end every model for good."""
    folder.write(a="")

    configuration = folder.read()
    async with running(configuration) as now:
        shutil.rmtree(configuration.run_dir)

        async with now.fleet.lease("a") as instance:
            await instance.ready()
