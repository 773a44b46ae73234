"""The ladder of a model: what it gives up, step by step, where its memory is not there.

Step 0 is the model as its file says, step n has the first n tables of ``fallback`` over it, each
over those before. A step is taken when a load does not fit, and before a load that memory would
refuse; which loads begin at the top again is decided here, too. Pure.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from kvsup.config import FallbackStep, ModelConfig
from kvsup.restart import Exit, ExitCause
from kvsup.units import format_bytes

T = TypeVar("T")

_SHORT_OF_MEMORY = frozenset({ExitCause.KERNEL_OOM, ExitCause.OUT_OF_MEMORY})

_TOML_NAMES = {f.name: f.encode_name for f in msgspec.structs.fields(ModelConfig)}


def stepped(model: ModelConfig, step: int) -> ModelConfig:
    """Return ``model`` as it is on ``step`` of its fallback."""
    changes: dict[str, Any] = {}
    for table in model.fallback[:step]:
        changes |= dict(given(table))
    if "num_ctx" in changes:
        changes["num_ctx_is_auto"] = False
    return msgspec.structs.replace(model, **changes)


def given(table: FallbackStep) -> Iterator[tuple[str, Any]]:
    """Yield the fields that a step sets, with their values; "off" is None, as in the model."""
    for name in table.__struct_fields__:
        if (value := getattr(table, name)) is not UNSET:
            yield name, None if value == "off" and name != "flash_attention" else value


def given_up(model: ModelConfig, step: int) -> tuple[str, ...]:
    """Return in words what ``model`` has not on ``step``, e.g. ``num_ctx 4096, not 32768``."""
    now = stepped(model, step)
    names: dict[str, Any] = {}
    for table in model.fallback[:step]:
        names |= dict(given(table))
    return tuple(_worded(model, now, name) for name in names)


def steps_down(end: Exit, deaths: Sequence[Exit], *, window_s: float) -> bool:
    """Say whether the next load after ``end`` is to take less.

    Where a load did not fit, or was killed for want of memory, yes. One that served and was killed
    for it gets its place once more, since it may have been another program's doing, and requests
    that ran may need all that they had; the second time in the window it steps down.

    Args:
        end: the last death.
        deaths: those before it on the same step.
        window_s: of ``[restart]``.
    """
    if end.cause is ExitCause.DOES_NOT_FIT:
        return True
    if end.cause not in _SHORT_OF_MEMORY:
        return False
    recent = [d for d in deaths if d is not end and end.at_s - d.at_s <= window_s]
    return not end.ready_for_s or any(d.cause in _SHORT_OF_MEMORY for d in recent)


def next_step(step: int, sizes_bytes: Sequence[int]) -> int | None:
    """Return the next step that does not take more than ``step``; None where there is none.

    Args:
        step: the present one.
        sizes_bytes: what each step takes, from 0: one that a request made larger, or gave other
            KV cache types, may take less than a step says.
    """
    below = range(step + 1, len(sizes_bytes))
    return next((n for n in below if sizes_bytes[n] <= sizes_bytes[step]), None)


def first_step(step: int, *, failed_at_s: float, window_s: float, now_s: float) -> int:
    """Return the step at which a fresh load begins: the top, unless that failed in the window.

    Args:
        step: at which the last load was.
        failed_at_s: when the step above last failed, monotonic; minus infinity: never, or reset.
        window_s: of ``[restart]``.
        now_s: monotonic time.
    """
    return step if now_s - failed_at_s <= window_s else 0


def first_fitting(steps: Iterable[T], fits: Callable[[T], bool]) -> T:
    """Return the first of ``steps`` that fits, or the last, which is not asked whether it does.

    Args:
        steps: one at least; they are made as they are looked at.
        fits: says whether one does.
    """
    left = iter(steps)
    step = next(left)
    for lower in left:
        if fits(step):
            break
        step = lower
    return step


def _worded(model: ModelConfig, now: ModelConfig, name: str) -> str:
    before, value, key = getattr(model, name), getattr(now, name), _TOML_NAMES[name]
    if name == "num_ctx" and model.num_ctx_is_auto:
        before = "auto"
    if value is None:
        return f"no {key}"
    if name == "prompt_cache_bytes":
        value, before = format_bytes(value), format_bytes(before)
    return f"{key} {_plain(value)}" + ("" if before is None else f", not {_plain(before)}")


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
