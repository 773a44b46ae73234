"""What a person wants of a study, and which pairs that leaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kvsup.errors import ConfigError
from kvsup.kvrules import violation
from kvsup.kvtypes import F16, KVPair
from kvsup.measures import Goal, Method
from kvsup.pareto import candidates
from kvsup.plan import Plan
from kvsup.tuning.greedy import ToolCase
from kvsup.units import format_bytes


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person wants of a study."""

    goal: Goal = "balanced"
    max_kld: float | None = None
    """A limit on the mean loss in nats, instead of the goal's own."""
    num_ctx: int | None = None
    """Tokens of one request that bytes are for; None: as configured."""
    memory_bytes: int | None = None
    """What the model may take in all."""
    pairs: tuple[KVPair, ...] | Literal["all"] | None = None
    """To measure in full; None: those that screening leaves."""
    text: str | None = None
    """To score instead of the built-in conversations."""
    tool_cases: tuple[ToolCase, ...] = ()
    method: Method = "server"
    budget_s: float = 600.0
    is_fresh: bool = False
    """Measure anew what was measured before."""


def considered(plan: Plan, wishes: Wishes) -> tuple[tuple[KVPair, ...], Mapping[KVPair, str]]:
    """Return the pairs to look at beside f16:f16, and those that cannot run with the mend.

    Raises:
        ConfigError: the model has no KV cache, or none of the pairs that were named can run.
    """
    shape, flash_attention = plan.file.shape, plan.model.flash_attention
    if not any(layer.has_cache for layer in shape.layers):
        raise ConfigError(f"{plan.name} has no KV cache, so there is nothing to tune")
    possible, refused = candidates(plan.binary.kv_types, shape, flash_attention)
    if isinstance(wishes.pairs, tuple):
        broken = {pair: violation(pair, flash_attention, shape) for pair in wishes.pairs}
        possible = tuple(pair for pair, rule in broken.items() if rule is None)
        refused = {pair: rule.message for pair, rule in broken.items() if rule is not None}
        if not possible:
            reasons = "; ".join(f"{pair}: {reason}" for pair, reason in refused.items())
            raise ConfigError(f"--pairs: {reasons}")
    return tuple(pair for pair in possible if pair != F16), refused


def cache_bytes(plan: Plan, memory_bytes: int | None) -> int | None:
    """Return what is left of ``memory_bytes`` for the cache of ``plan``; it may be negative."""
    return None if memory_bytes is None else memory_bytes - plan.size_bytes + plan.estimate.kv_bytes


def check_room(plans: Mapping[KVPair, Plan], memory_bytes: int | None) -> None:
    """Say that no pair fits, before any is measured.

    Raises:
        ConfigError: not even the smallest does; the message has the sizes and the mend.
    """
    smallest = min(plans.values(), key=lambda plan: plan.size_bytes)
    if memory_bytes is None or smallest.size_bytes <= memory_bytes:
        return
    pair = smallest.model.kv_cache_type
    fits = smallest.largest_num_ctx(memory_bytes)
    mend = f"use --context {fits}, or" if fits else "no context does;"
    raise ConfigError(
        f"--memory: no pair fits in {format_bytes(memory_bytes)}: {pair}, the smallest, takes "
        f"{format_bytes(smallest.size_bytes)} at {smallest.model.num_ctx} tokens, "
        f"{format_bytes(smallest.estimate.kv_bytes)} of it the cache; {mend} give more memory"
    )
