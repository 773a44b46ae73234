"""What an instance takes up from the log of its load: sizes, warnings, what is learnt."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from kvsup import events
from kvsup.measures import SizesMeasured
from kvsup.plan import ALLOWANCE_BYTES, Plan
from kvsup.runtime.instance import Instance
from kvsup.runtime.paths import made
from tests.runtime.scripted import scripted
from tests.runtime.supervised import SCENARIO_S, Folder, until
from tests.standin.script import Steps

MIB = 1 << 20
SIZES = (
    "load_tensors:   CPU_Mapped model buffer size =    28.00 MiB",
    "load_tensors:        CUDA0 model buffer size =    92.00 MiB",
    "llama_kv_cache:      CUDA0 KV buffer size =    10.00 MiB",
    (
        "llama_kv_cache: size =   10.00 MiB (   256 cells,  30 layers,  1/1 seqs), "
        "K (f16):    5.00 MiB, V (f16):    5.00 MiB"
    ),
    "llama_kv_cache: n_rot_k = 0, n_embd_head_k_all = 64",
)
CONVERTED = (
    "ggml_cuda_flash_attn_ext_vec: no FlashAttention vector kernel compiled for K/V types "
    'q8_0-q4_0, converting K and V to f16 instead (slow). Add "q8_0-q4_0" to GGML_CUDA_FA_QUANTS '
    "to compile it."
)


@asynccontextmanager
async def running(plan: Plan, **keywords: Any) -> AsyncIterator[Instance]:
    """Run one instance until the end of the block."""
    told = keywords.pop("told", [])
    instance = Instance(plan, emit=told.append, on_change=lambda: None, **keywords)
    with anyio.fail_after(SCENARIO_S), made(Path(plan.socket).parent):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(instance.run)
            try:
                yield instance
            finally:
                instance.stop("the test is over", drain_s=0.0)


def load(*lines: str) -> Steps:
    """Return the steps of a load that logs ``lines``."""
    return (["listen"], ["stage", 0.0], ["log", *lines], ["ready"])


async def test_sizes_of_the_log_replace_the_plan_by_device(folder: Folder) -> None:
    """Each memory by its own name, with what the process itself takes; and their sum without."""
    scripted(folder, load(*SIZES))

    async with running(folder.plan("a")) as instance:
        await instance.ready()
        await until(lambda: "CUDA0" in instance.size_by_device)

        in_ram = 28 * MIB + ALLOWANCE_BYTES
        assert instance.size_by_device == {"RAM": in_ram, "CUDA0": 102 * MIB}
        assert instance.size_bytes == 130 * MIB
        assert instance.private_bytes == 0  # all of RAM is the mapped file

    assert instance.size_bytes == 130 * MIB  # the next load is expected to take the same


async def test_sizes_before_a_load_are_those_remembered_of_the_same_context(folder: Folder) -> None:
    """Else those of the plan: a context that is decided at loads may be another."""
    folder.write(a="")
    plan = folder.plan("a")

    def sizes_of(num_ctx: int) -> dict[str, int]:
        remembered = SizesMeasured(
            num_ctx=num_ctx, bytes_by_device={"RAM": 7}, mapped_bytes=0, k_bytes=0, v_bytes=0
        )
        instance = Instance(
            plan, emit=lambda _: None, on_change=lambda: None, remembered=remembered
        )
        return instance.size_by_device

    assert sizes_of(plan.model.num_ctx) == {"RAM": 7 + ALLOWANCE_BYTES}
    assert sizes_of(plan.model.num_ctx + 256) == plan.sizes


async def test_sizes_within_a_load_are_not_those_told_so_far(folder: Folder) -> None:
    """Weights come first; until it serves the whole of what was planned is set aside."""
    scripted(folder, [["listen"], ["log", SIZES[0]], ["hang"]])

    async with running(folder.plan("a")) as instance:
        await until(lambda: instance.measured.total_bytes)

        assert instance.size_by_device == instance.plan.sizes


async def test_load_of_another_size_than_estimated_is_told_with_both_numbers(
    folder: Folder,
) -> None:
    """One event, however often it is looked at; the listing says the same."""
    told: list[events.Event] = []
    scripted(folder, load(*SIZES))

    async with running(folder.plan("a"), told=told) as instance:
        await instance.ready()
        await until(lambda: instance.snapshot().kv_warnings)
        instance.notify()
        await until(lambda: any(isinstance(event, events.SizeDiffers) for event in told))

        estimated = instance.plan.estimate.kv_bytes
        expected = events.SizeDiffers("a", estimated, 10 * MIB)
        assert [event for event in told if isinstance(event, events.SizeDiffers)] == [expected]
        assert instance.snapshot().kv_warnings == (expected.sentence,)
        assert instance.kv_bytes == (5 * MIB, 5 * MIB)

    assert instance.snapshot().kv_warnings == ()


async def test_warning_that_comes_with_the_first_request_is_told_then(folder: Folder) -> None:
    """CUDA says that it converts at the first token, long after the load."""
    told: list[events.Event] = []
    scripted(folder, [*load(), ["log", CONVERTED]])

    async with running(folder.plan("a"), told=told) as instance:
        await instance.ready()
        await until(lambda: any(isinstance(event, events.KVWarning) for event in told))

        (warning,) = [event for event in told if isinstance(event, events.KVWarning)]
        assert warning.sentence.startswith("q8_0:q4_0 is converted to f16")
        assert events.KVWarning in events.WARNINGS


async def test_on_ready_is_called_with_all_that_was_told_and_not_again(folder: Folder) -> None:
    """The log may come after the event that it serves; without more of it nothing is learnt."""
    seen: list[int] = []
    scripted(folder, load(*SIZES))

    async with running(
        folder.plan("a"), on_ready=lambda instance: seen.append(instance.measured.n_load_facts)
    ) as instance:
        await instance.ready()
        await until(lambda: seen and seen[-1] == len(SIZES))
        instance.notify()
        await anyio.wait_all_tasks_blocked()

        assert seen == sorted(set(seen))


@pytest.mark.parametrize(("env", "n_warnings"), [("", 0), ("1", 1)])
async def test_load_without_rotation_is_told_on_a_real_build(
    any_build: Path, folder: Folder, env: str, n_warnings: int
) -> None:
    """A quantized cache is rotated unless the environment forbids it."""
    told: list[events.Event] = []
    variables = f'env = {{ LLAMA_ATTN_ROT_DISABLE = "{env}" }}' if env else ""
    folder.llama_server = any_build
    folder.write(a=f'kv_cache_type = "q8_0:q4_0"\n{variables}')

    async with running(folder.plan("a"), told=told) as instance:
        await instance.ready()
        await until(lambda: instance.measured.slot_tokens)

        warnings = [event for event in told if isinstance(event, events.KVWarning)]
        assert len(warnings) == len(instance.snapshot().kv_warnings) == n_warnings
        assert all("LLAMA_ATTN_ROT_DISABLE" in warning.sentence for warning in warnings)
        assert not [event for event in told if isinstance(event, events.SizeDiffers)]
