"""Real llama-servers that do not get their memory, and what is loaded in their place."""

import os
import signal
from functools import partial

import anyio
import pytest

from kvsup import events
from kvsup.api.listing import capabilities
from kvsup.errors import InstanceFailed
from kvsup.fitting import Asked
from kvsup.lifecycle import State
from kvsup.restart import ExitCause
from kvsup.runtime.instance import Instance
from tests.runtime.memgroup import MIB, MemoryGroup, memory_group
from tests.runtime.scripted import pid_of
from tests.runtime.supervised import (
    QUICK_RESTART,
    Folder,
    Running,
    processes_with,
    reach,
    running,
    until,
)
from tests.tiny import TinyModels

HUGE = "num_parallel = 200\nnum_ctx = 8192\nbatch_size = 256\n"
"""36 GiB of KV cache in one piece, which the kernel does not promise to a smaller machine."""

SMALL = 'fallback = [\n{ num_parallel = 2 },\n{ num_ctx = 256, kv_cache_type = "q8_0:q4_0" },\n]\n'


def write(folder: Folder, text: str, *, before: str = "") -> None:
    """Write a model ``a`` without the folder's own sizes; ``before`` is run before llama-server."""
    server = folder.llama_server
    if before:
        server = folder.path / "llama-server.sh"
        server.write_text(f'#!/bin/sh\n{before}\nexec {folder.llama_server} "$@"\n')
        server.chmod(0o755)
    (folder.path / "configs").mkdir(exist_ok=True)
    (folder.path / "configs" / "a.toml").write_text(
        f'model = "{folder.model}"\nllama_server = "{server}"\nthreads = 1\n{text}'
    )


async def served(fleet: Running, asked: Asked | None = None) -> Instance:
    """Let a request be served by ``a``; return the instance."""
    async with fleet.fleet.lease("a", asked=asked or Asked()) as instance:
        upstream = await instance.ready()
        status, _ = await upstream.fetch(
            "POST", "/completion", body=b'{"prompt": "Hi", "n_predict": 1}'
        )
        assert status == 200
        return instance


def deaths(fleet: Running) -> list[str]:
    """Return the causes of all deaths."""
    return [event.cause for event in fleet.told if isinstance(event, events.Died)]


def descents(fleet: Running) -> list[events.SteppedDown]:
    """Return every step down."""
    return [event for event in fleet.told if isinstance(event, events.SteppedDown)]


async def test_load_that_does_not_fit_steps_down_until_it_does(folder: Folder) -> None:
    """The KV cache cannot be allocated; each step is told, and the last one serves."""
    folder.host = "memory = '999GiB'\n"
    write(folder, HUGE + "fallback = [{ num_parallel = 190 }, { num_parallel = 1 }]\n")

    async with running(folder.read()) as fleet:
        instance = await served(fleet)

        assert deaths(fleet) == ["DOES_NOT_FIT", "DOES_NOT_FIT"]
        assert [d.given_up for d in descents(fleet)] == [
            ("num_parallel 190, not 200",),
            ("num_parallel 1, not 200",),
        ]
        assert "insufficient memory" in descents(fleet)[0].why
        assert instance.plan.model.num_parallel == 1
        assert instance.snapshot().given_up == ("num_parallel 1, not 200",)
        assert instance.size_bytes < 1 << 30
        assert instance.key == folder.plan("a").key


async def test_ladder_that_ends_too_high_gives_up_and_names_its_last_line(folder: Folder) -> None:
    """There is nothing left to give up."""
    folder.host = "memory = '999GiB'\n"
    write(folder, HUGE + "fallback = [{ num_parallel = 190 }]\n")

    async with running(folder.read()) as fleet:
        with pytest.raises(InstanceFailed, match="insufficient memory"):
            await served(fleet)
        assert deaths(fleet) == ["DOES_NOT_FIT", "DOES_NOT_FIT"]


async def test_admission_passes_over_what_it_would_have_to_refuse(folder: Folder) -> None:
    """No llama-server is started for what is beyond the budget: none dies."""
    folder.host = "memory = '1GiB'\n"
    write(folder, HUGE + SMALL)

    async with running(folder.read()) as fleet:
        instance = await served(fleet)

        assert deaths(fleet) == []
        assert [d.step for d in descents(fleet)] == [1]
        assert instance.plan.model.num_parallel == 2
        assert instance.plan.model.num_ctx == 8192


async def test_projector_that_is_given_up_is_not_loaded_nor_counted_nor_claimed(
    folder: Folder, tiny: TinyModels
) -> None:
    """The budget is what it takes without."""
    vision = tiny.vision()
    folder.model = vision.model
    text = f'mmproj = "{vision.mmproj}"\nnum_ctx = 64\nfallback = [{{ mmproj = "off" }}]\n'
    write(folder, text)
    with_images = folder.plan("a")
    folder.host = f"memory = {with_images.on_step(1).size_bytes}\n"

    async with running(folder.read()) as fleet:
        instance = await served(fleet)

        assert "vision" in capabilities(with_images)
        assert "vision" not in capabilities(instance.plan)
        assert "--mmproj" not in processes_with(instance.plan.socket)[0].cmdline()
        assert instance.snapshot().given_up == ("no mmproj",)


async def test_what_is_free_now_is_the_budget_of_all_but_the_last_step(folder: Folder) -> None:
    """Without a ladder a model alone may try; with one it need not."""
    folder.host = ""
    write(folder, HUGE + SMALL)

    async with running(folder.read()) as fleet:
        await served(fleet)

        assert deaths(fleet) == []


async def test_address_space_that_ends_steps_down(folder: Folder) -> None:
    """``ulimit -v`` as a person sets it: f16 of 8192 tokens is not to be had, q8_0 of 256 is."""
    folder.host = "memory = '64GiB'\n"
    lower = 'fallback = [{ num_ctx = 256, kv_cache_type = "q8_0:q4_0" }]\n'
    write(folder, f"num_ctx = 8192\nprompt_cache = 0\n{lower}", before="ulimit -v 430000")

    async with running(folder.read()) as fleet:
        instance = await served(fleet)

        assert deaths(fleet) == ["DOES_NOT_FIT"]
        assert str(instance.plan.model.kv_cache_type) == "q8_0:q4_0"
        assert instance.snapshot().kv_bytes == (
            instance.plan.estimate.k_bytes,
            instance.plan.estimate.v_bytes,
        )


async def test_requests_for_more_than_a_step_has_are_served_by_it(folder: Folder) -> None:
    """It does not grow, so nothing that did not fit is tried at each request."""
    folder.host = "memory = '999GiB'\n"
    write(folder, HUGE + SMALL)

    async with running(folder.read()) as fleet:
        first = await served(fleet)
        fleet.told.clear()

        same = await served(fleet, Asked(num_ctx=8192, num_batch=512))

        assert same is first
        assert fleet.told == []


async def test_larger_one_that_a_request_made_steps_down_as_its_model_would(
    folder: Folder,
) -> None:
    """It is on trial, yet not given up while there is a step; the context asked for it has."""
    folder.host = "memory = '999GiB'\n"
    small = "num_parallel = 200\nnum_ctx = 256\nbatch_size = 256\n"
    write(folder, small + "fallback = [{ num_parallel = 1 }]\n")

    async with running(folder.read()) as fleet:
        instance = await served(fleet, Asked(num_ctx=8192))

        assert deaths(fleet) == ["DOES_NOT_FIT"]
        assert (instance.plan.model.num_parallel, instance.plan.model.num_ctx) == (1, 8192)


async def test_edit_of_the_fallback_of_one_that_stepped_down_lets_it_begin_anew(
    folder: Folder,
) -> None:
    """Any other edit that its process does not see leaves it where it is."""
    folder.host = "memory = '999GiB'\n"
    write(folder, HUGE + "fallback = [{ num_parallel = 1 }]\n")

    async with running(folder.read()) as fleet:
        first = await served(fleet)
        write(folder, HUGE + 'fallback = [{ num_parallel = 1 }]\nsystem = "Be short."\n')
        again = folder.read()
        fleet.fleet.replace(again.plans, again.host)
        assert await served(fleet) is first
        assert first.plan.step == 1
        assert first.plan.model.system == "Be short."

        write(folder, HUGE + "fallback = [{ num_parallel = 2 }]\n")
        edited = folder.read()
        fleet.fleet.replace(edited.plans, edited.host)

        await until(lambda: first.state is State.STOPPED)
        assert (await served(fleet)).plan.model.num_parallel == 2


async def test_fresh_load_begins_where_the_last_ended_until_it_is_reset(folder: Folder) -> None:
    """``kvsup reset`` lets it begin at the top again."""
    folder.host = "memory = '999GiB'\n"
    write(folder, HUGE + "fallback = [{ num_parallel = 1 }]\n")

    async with running(folder.read()) as fleet:
        instance = await served(fleet)
        for n_deaths in (1, 2):
            fleet.fleet.unload("a", "the test says so")
            await reach(instance, State.STOPPED)
            await until(lambda: not fleet.fleet.loaded())
            if n_deaths == 2:
                fleet.fleet.reset("a")
            await served(fleet)
            assert len(deaths(fleet)) == n_deaths


async def test_kernel_that_kills_a_load_is_named_and_answered_by_a_step(folder: Folder) -> None:
    """A real control group with too little for f16 of 8192 tokens."""
    with memory_group("load") as group:
        group.limit(200 * MIB)
        folder.host = "memory = '64GiB'\n"
        lower = 'fallback = [{ num_ctx = 256, kv_cache_type = "q8_0:q4_0" }]\n'
        write(folder, f"num_ctx = 8192\n{lower}", before=group.entering)

        async with running(folder.read()) as fleet:
            await served(fleet)

            [died] = fleet.of_kind(events.Died)
            assert isinstance(died, events.Died)
            assert died.cause == "KERNEL_OOM"
            assert "the kernel killed it for want of memory; signal SIGKILL" in died.reason
            assert "fallback takes them by itself" in died.reason
            assert [d.step for d in descents(fleet)] == [1]


async def test_kernel_that_kills_it_in_service_is_answered_the_second_time(folder: Folder) -> None:
    """Another program of its group took the memory: once is no reason to serve less."""
    with memory_group("service") as group:
        folder.host = "memory = '64GiB'\n"
        lower = "fallback = [{ num_ctx = 256 }]\n"
        write(folder, f"num_ctx = 1024\n{lower}{QUICK_RESTART}", before=group.entering)

        async with running(folder.read()) as fleet:
            instance = await served(fleet)
            for n_kills in (1, 2):
                before = pid_of(instance)
                await _squeezed(group)
                await until(partial(_has_restarted, instance, before))
                assert deaths(fleet) == ["KERNEL_OOM"] * n_kills
                assert len(descents(fleet)) == n_kills - 1

            assert instance.plan.model.num_ctx == 256
            await served(fleet)


async def test_kill_from_outside_is_not_taken_for_the_kernels(folder: Folder) -> None:
    """Though the kernel killed another process of this machine meanwhile."""
    write(folder, f"num_ctx = 256\nfallback = [{{ num_ctx = 128 }}]\n{QUICK_RESTART}")

    with memory_group("other") as other:
        async with running(folder.read()) as fleet:
            instance = await served(fleet)
            await anyio.to_thread.run_sync(other.has_killed_itself)

            os.kill(pid_of(instance), signal.SIGKILL)

            await until(lambda: deaths(fleet))
            await served(fleet)
            assert deaths(fleet) == [ExitCause.KILLED.name]
            assert descents(fleet) == []


def _has_restarted(instance: Instance, before: int) -> bool:
    return instance.state is State.READY and pid_of(instance) != before


async def _squeezed(group: MemoryGroup) -> None:
    """Leave the group too little for what is in it and one more, then all that it wants again."""
    group.limit(group.used_bytes + 64 * MIB)
    await anyio.to_thread.run_sync(group.fill, 100 * MIB)
    group.limit(None)
