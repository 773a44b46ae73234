"""What a model gives up where its memory is not there, after which ends, and when it climbs."""

from collections.abc import Sequence

import pytest

from kvsup.config import FallbackStep, ModelConfig
from kvsup.kvtypes import parse_kv_pair
from kvsup.ladder import first_fitting, first_step, given_up, next_step, stepped, steps_down
from kvsup.restart import Exit, ExitCause

PAIR = parse_kv_pair("q8_0:q4_0")
MODEL = ModelConfig(
    name="m",
    model="m.gguf",
    mmproj="p.gguf",
    num_ctx=8192,
    fallback=(
        FallbackStep(num_ctx=4096),
        FallbackStep(kv_cache_type=PAIR, mmproj="off"),
        FallbackStep(num_ctx=1024, prompt_cache_bytes=0, gpu_layers=0, use_mmap=True),
    ),
)


def end(cause: ExitCause, *, at_s: float = 1000.0, ready_for_s: float = 0.0) -> Exit:
    """Return an end of a llama-server."""
    return Exit(cause, -9, at_s, ready_for_s)


def test_steps_add_up_each_over_those_before() -> None:
    """What a later table does not name stays as the earlier ones have it."""
    second, third = stepped(MODEL, 2), stepped(MODEL, 3)

    assert stepped(MODEL, 0) == MODEL
    assert (second.num_ctx, second.kv_cache_type, second.mmproj) == (4096, PAIR, None)
    assert (third.num_ctx, third.kv_cache_type, third.mmproj) == (1024, PAIR, None)
    assert (third.prompt_cache_bytes, third.gpu_layers, third.use_mmap) == (0, 0, True)


def test_step_with_a_context_ends_that_it_is_decided_at_loads() -> None:
    """A step without one leaves that open."""
    model = ModelConfig(
        model="m",
        num_ctx_is_auto=True,
        fallback=(FallbackStep(kv_cache_type=PAIR), FallbackStep(num_ctx=512)),
    )

    assert stepped(model, 1).num_ctx_is_auto
    assert not stepped(model, 2).num_ctx_is_auto
    assert given_up(model, 2) == (
        "kv_cache_type q8_0:q4_0, not f16:f16",
        "num_ctx 512, not auto",
    )


def test_flash_attention_off_is_a_value_of_its_own() -> None:
    """Only files are given up by "off"."""
    model = ModelConfig(model="m", fallback=(FallbackStep(flash_attention="off"),))

    assert stepped(model, 1).flash_attention == "off"


def test_given_up_is_told_against_the_file_and_not_the_step_before() -> None:
    """One who reads it has the file in mind."""
    assert given_up(MODEL, 0) == ()
    assert given_up(MODEL, 3) == (
        "num_ctx 1024, not 8192",
        "kv_cache_type q8_0:q4_0, not f16:f16",
        "no mmproj",
        "gpu_layers 0",
        "use_mmap true",
        "prompt_cache 0 B, not 1 GiB",
    )


@pytest.mark.parametrize("cause", ExitCause)
def test_death_in_a_load_steps_down_only_for_want_of_memory(cause: ExitCause) -> None:
    """A wrong argument or a stalled disk is not mended by a smaller context."""
    wanted = {ExitCause.DOES_NOT_FIT, ExitCause.KERNEL_OOM, ExitCause.OUT_OF_MEMORY}

    assert steps_down(end(cause), [], window_s=600.0) == (cause in wanted)


@pytest.mark.parametrize("cause", [ExitCause.KERNEL_OOM, ExitCause.OUT_OF_MEMORY])
@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ((), False),
        ((end(ExitCause.CRASHED, at_s=990.0, ready_for_s=5.0),), False),
        ((end(ExitCause.KERNEL_OOM, at_s=399.0, ready_for_s=5.0),), False),
        ((end(ExitCause.KERNEL_OOM, at_s=401.0, ready_for_s=5.0),), True),
        ((end(ExitCause.OUT_OF_MEMORY, at_s=990.0, ready_for_s=5.0),), True),
    ],
)
def test_one_that_served_steps_down_the_second_time_in_the_window(
    cause: ExitCause, before: Sequence[Exit], *, expected: bool
) -> None:
    """Once may be another program's doing, and running requests may need all that they had."""
    assert steps_down(end(cause, ready_for_s=50.0), before, window_s=600.0) == expected


@pytest.mark.parametrize(
    ("step", "sizes", "expected"),
    [
        (0, [9, 5, 3], 1),
        (1, [9, 5, 3], 2),
        (2, [9, 5, 3], None),
        (0, [9], None),
        (0, [4, 5, 3], 2),
        (0, [4, 5, 6], None),
        (0, [9, 9], 1),
    ],
)
def test_next_step_is_the_next_that_does_not_take_more(
    step: int, sizes: list[int], expected: int | None
) -> None:
    """A request may have asked for a pair that is smaller than that of a step."""
    assert next_step(step, sizes) == expected


@pytest.mark.parametrize(
    ("failed_at_s", "expected"), [(-float("inf"), 0), (399.0, 0), (400.0, 2), (1000.0, 2)]
)
def test_fresh_load_begins_at_the_top_unless_that_failed_in_the_window(
    failed_at_s: float, expected: int
) -> None:
    """What was passed over only because memory was not free is tried again at once."""
    assert first_step(2, failed_at_s=failed_at_s, window_s=600.0, now_s=1000.0) == expected


@pytest.mark.parametrize(
    ("fitting", "expected", "asked"),
    [({1, 2, 3}, 1, [1]), ({2, 3}, 2, [1, 2]), ({3}, 3, [1, 2]), (set(), 3, [1, 2])],
)
def test_first_fitting_is_the_last_where_none_fits(
    fitting: set[int], expected: int, asked: list[int]
) -> None:
    """The last is not asked: it may be tried all the same."""
    seen = []

    def fits(step: int) -> bool:
        seen.append(step)
        return step in fitting

    assert first_fitting([1, 2, 3], fits) == expected
    assert seen == asked


def test_first_fitting_of_one_step_asks_nothing() -> None:
    """A model without a fallback is loaded as it is."""
    assert first_fitting([7], lambda _: pytest.fail("asked")) == 7
