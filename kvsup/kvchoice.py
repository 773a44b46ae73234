"""Which KV pair a model gets: what its file says, what was found by measuring, or a fast one.

``kv_cache_type = "auto"`` takes the pair that ``kvsup tune`` found for ``kv_goal``. A pair that is
slow on this binary and device, by the table of ``slowpaths.py`` or by a probe, is used with a
warning, refused (``Plan.refusal``), or replaced by the nearest fast one, as ``kv_slow`` says. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import msgspec

from kvsup.config import ModelConfig
from kvsup.kvlooks import Setup
from kvsup.kvrules import findings, nearest_pair, violation
from kvsup.kvtypes import F16, STOCK_TYPES, KVPair, KVType, distance, parse_kv_pair
from kvsup.measures import Goal, SpeedProbe, Tuned
from kvsup.modelshape import ModelShape
from kvsup.slowpaths import Backend, Path, backend_of, path_of, worst_path

SLOW_RATIO = 0.5
"""A pair is slow where it reads or writes at less than this part of f16:f16's speed."""

_SAFE = KVPair(KVType("q8_0"), KVType("q8_0"))
"""Loses what is hard to measure, and has kernels wherever quantized types have any."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What runs the model, and what earlier runs have told of it."""

    kv_types: Sequence[str] = ()
    device_names: Sequence[str] = ()
    build: int | None = None
    fa_quants: tuple[str, ...] | None = None
    """Pairs with CUDA kernels of their own; None: not told."""
    probes: Mapping[str, SpeedProbe] = field(default_factory=dict)
    """By pair."""
    tuned: Tuned | None = None


def choose(model: ModelConfig, shape: ModelShape, machine: Machine) -> tuple[ModelConfig, str]:
    """Return ``model`` with its KV pair decided, and what its owner should know of that."""
    note = ""
    model = _spelt(model, machine)
    if model.kv_is_auto:
        model, note = _found(model, shape, machine)
    if model.kv_slow != "fallback":
        return model, note
    slow = slowness(model.kv_cache_type, model, shape, machine)
    fast = fast_pair(model, shape, machine) if slow else None
    if fast is None:
        return model, note
    note = f'{slow}; {fast} is used instead (kv_slow = "fallback")'
    return msgspec.structs.replace(model, kv_cache_type=fast), note


def slowness(pair: KVPair, model: ModelConfig, shape: ModelShape, machine: Machine) -> str | None:
    """Return in words why ``pair`` is slow here, or None; what was measured counts most."""
    probe = machine.probes.get(str(pair))
    if probe is not None:
        return _measured_slowness(probe)
    path = path_here(pair, model, shape, machine)
    if path.verdict in {"fast", "unknown"}:
        return None
    return f"{path.text}; {path.mend}" if path.mend else path.text


def is_slow(probe: SpeedProbe) -> bool:
    """Say whether the pair was measured to be slow."""
    return min(probe.ratios) < SLOW_RATIO


def path_here(pair: KVPair, model: ModelConfig, shape: ModelShape, machine: Machine) -> Path:
    """Return where the attention of ``pair`` runs by the table, in the layer where it is worst."""
    heads = {(layer.head_k, layer.head_v) for layer in shape.layers if layer.has_cache}
    paths = [
        path_of(
            pair,
            backend_here(model, machine.device_names),
            build=machine.build,
            head_k=head_k,
            head_v=head_v,
            fa_quants=machine.fa_quants,
            flash_attention=model.flash_attention,
        )
        for head_k, head_v in sorted(heads)
    ]
    return worst_path(paths) or Path("fast", "it has no KV cache")


def fast_pair(model: ModelConfig, shape: ModelShape, machine: Machine) -> KVPair | None:
    """Return the pair nearest to the model's that it can run with and that is fast here.

    Where the model's own pair was measured, only pairs that were, too, count, and f16:f16.
    """
    trusts_table = str(model.kv_cache_type) not in machine.probes

    def is_fast(pair: KVPair) -> bool:
        probe = machine.probes.get(str(pair))
        if probe is not None:
            return not is_slow(probe)
        by_table = path_here(pair, model, shape, machine).verdict == "fast"
        return by_table and (trusts_table or pair == F16)

    names = [name for name in STOCK_TYPES if name in machine.kv_types]
    pairs = (KVPair(KVType(k), KVType(v)) for k, v in product(names, repeat=2))
    fast = (
        pair
        for pair in pairs
        if violation(pair, model.flash_attention, shape) is None and is_fast(pair)
    )
    return min(fast, key=lambda pair: distance(model.kv_cache_type, pair), default=None)


def backend_here(model: ModelConfig, device_names: Sequence[str]) -> Backend:
    """Return the backend that computes attention for ``model``; RPC where it names a server."""
    has_rpc = any(argument.split("=")[0] == "--rpc" for argument in model.extra_args)
    return backend_of(["RPC", *device_names] if has_rpc else device_names, model.gpu_layers)


def _spelt(model: ModelConfig, machine: Machine) -> ModelConfig:
    """Return ``model`` with its types as the binary spells them, if it has them."""
    try:
        pair = parse_kv_pair(str(model.kv_cache_type), allowed=machine.kv_types)
    except ValueError:
        return model
    return msgspec.structs.replace(model, kv_cache_type=pair)


def _found(model: ModelConfig, shape: ModelShape, machine: Machine) -> tuple[ModelConfig, str]:
    """Return ``model`` with the pair that was found for its goal, or a safe one, and which."""
    tuned, goal = machine.tuned, model.kv_goal
    pair = _tuned_pair(tuned, goal, machine)
    if tuned and pair and violation(pair, model.flash_attention, shape) is None:
        note = f"KV {pair}, found by kvsup tune on {tuned.measured_at[:10]} for {goal}"
        return _with_pair(model, pair), note
    safe = F16 if goal == "accurate" else nearest_pair(_SAFE, model.flash_attention, shape)
    setup = Setup(pair=safe, flash_attention=model.flash_attention, shape=shape)
    if any(found.verdict == "warn" for found in findings(setup)):
        safe = F16
    if goal == "fast" and path_here(safe, model, shape, machine).verdict != "fast":
        safe = F16
    if slowness(safe, model, shape, machine):
        safe = fast_pair(_with_pair(model, safe), shape, machine) or safe
    note = f"KV {safe}, a safe choice; kvsup tune {model.name} finds the best one for {goal}"
    return _with_pair(model, safe), note


def _tuned_pair(tuned: Tuned | None, goal: Goal, machine: Machine) -> KVPair | None:
    try:
        return parse_kv_pair(tuned.picks[goal], allowed=machine.kv_types) if tuned else None
    except (KeyError, ValueError):  # no pick for it, or of another binary
        return None


def _with_pair(model: ModelConfig, pair: KVPair) -> ModelConfig:
    return msgspec.structs.replace(model, kv_cache_type=pair, kv_is_auto=False)


def _measured_slowness(probe: SpeedProbe) -> str | None:
    slow = [
        f"{what} at {ratio:.2f}"
        for what, ratio in (
            ("reads prompts", probe.prompt_ratio),
            ("writes", probe.generation_ratio),
        )
        if ratio < SLOW_RATIO
    ]
    if not slow:
        return None
    return (
        f"{probe.pair} {' and '.join(slow)} of f16:f16's speed behind"
        f" {probe.speed.depth_tokens} tokens (measured)"
    )
