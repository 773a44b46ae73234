"""The prompt cache, which grows after a load: how large it may become, and that it is counted."""

import anyio

from kvsup import events
from kvsup.lifecycle import State
from kvsup.runtime.room import PROMPT_CACHE_SHARE
from tests.runtime.growing import Holder, size_bytes, standin_models, use
from tests.runtime.supervised import Folder, running, until

MIB = 1 << 20


async def test_prompt_cache_is_a_part_of_what_is_left_and_llama_server_keeps_to_it(
    folder: Folder,
) -> None:
    """A small machine is not overcommitted by 1 GiB for each process; the log says the limit."""
    folder.write(a="")
    left_mib = 80
    own = size_bytes(folder.plan("a"), num_ctx=256)
    folder.host = f"memory = '{own + left_mib * MIB}B'\n"

    async with running(folder.read()) as now:
        instance = await use(now.fleet)

        argv = instance.plan.argv
        limit = f"size limit: {left_mib // PROMPT_CACHE_SHARE} MiB"
        assert argv[argv.index("--cache-ram") + 1] == str(left_mib // PROMPT_CACHE_SHARE)
        assert any(limit in line for line in instance.logbook.tail(10_000))


async def test_prompt_cache_with_room_for_it_is_as_configured(folder: Folder) -> None:
    """It is an upper limit."""
    folder.write(a="prompt_cache = '300MiB'")

    async with running(folder.read()) as now:
        argv = (await use(now.fleet)).plan.argv

        assert argv[argv.index("--cache-ram") + 1] == "300"


async def test_prompt_cache_of_a_loaded_model_is_counted(folder: Folder) -> None:
    """The next model does not get what a cache may come to hold."""
    standin_models(folder, "a", "b")
    own = size_bytes(folder.plan("a"), num_ctx=256)
    folder.host = f"memory = '{2 * own + own // 16}B'\n"

    async with running(folder.read()) as now, anyio.create_task_group() as tasks:
        first, second = Holder(now.fleet, name="a"), Holder(now.fleet, name="b")
        tasks.start_soon(first.run)
        await until(lambda: first.served)
        tasks.start_soon(second.run)
        await until(lambda: now.fleet.n_waiting == 1)
        assert now.fleet.instance("a").state is State.READY

        first.may_leave.set()
        await until(lambda: second.served)
        second.may_leave.set()

        assert len(now.of_kind(events.Stopped)) == 1


async def test_reload_keeps_what_the_prompt_cache_of_a_running_model_got(folder: Folder) -> None:
    """What is counted is what runs, not what the file says anew."""
    folder.write(a="")
    own = size_bytes(folder.plan("a"), num_ctx=256)
    folder.host = f"memory = '{own + 80 * MIB}B'\n"

    async with running(folder.read()) as now:
        instance = await use(now.fleet)
        folder.write(a='system = "Be short."')
        configuration = folder.read()

        now.fleet.replace(configuration.plans, configuration.host)

        assert now.fleet.instance("a") is instance
        assert instance.plan.model.system == "Be short."
        assert instance.plan.prompt_cache_bytes == 80 * MIB // PROMPT_CACHE_SHARE
