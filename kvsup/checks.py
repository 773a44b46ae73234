"""Check decoded models against the binary that will run them and the weights they name.

Pure: what was read from disk comes in, problems go out. Each problem says what to write instead.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from kvsup import kvrules
from kvsup.config import ModelConfig
from kvsup.kvlooks import Setup
from kvsup.ladder import given, stepped
from kvsup.llama.argv import owned_arguments, owned_variables, unknown_arguments
from kvsup.llama.binary import Binary
from kvsup.modelshape import ModelShape
from kvsup.ollama.names import lookup_keys, valid_name
from kvsup.ollama.options import check_options

_AMOUNTS = {
    "num_ctx": "num_ctx",
    "num_parallel": "num_parallel",
    "gpu_layers": "gpu_layers",
    "batch_size": "batch_size",
    "ubatch_size": "ubatch_size",
    "prompt_cache_bytes": "prompt_cache",
}
"""Fields of which a step of the fallback has no more than the step before, with their keys."""

_NO_ROTATION = "LLAMA_ATTN_ROT_DISABLE"

Finding = tuple[str, str]
"""A key of the model, and what is wrong with it."""


def model_findings(
    model: ModelConfig,
    *,
    binary: Binary | None,
    shape: ModelShape | None,
    draft_shape: ModelShape | None = None,
) -> Iterator[Finding]:
    """Yield what is wrong with ``model``.

    Args:
        model: decoded, with absolute paths.
        binary: None where it could not be asked; its rules are then left out.
        shape: None where the weights could not be read.
        draft_shape: as ``shape``, of the draft model.
    """
    for name in (model.name, *model.aliases):
        if not valid_name(name):
            key = "name" if name == model.name else "aliases"
            yield key, f"{name!r} is no model name; letters, digits, . _ - and one :tag are"
    setup = kv_setup(model, binary=binary, shape=shape, draft_shape=draft_shape)
    yield from ((found.key, found.message) for found in refusals(setup))
    for argument, key in owned_arguments(model.extra_args):
        yield "extra_args", f"{argument} is kvsup's own; {f'use {key}' if key else 'drop it'}"
    if binary is not None:
        for flag in unknown_arguments(model.extra_args, binary):
            yield (
                "extra_args",
                f"{flag} is no argument of this llama-server; {_nearest(flag, binary)}",
            )
    for name in owned_variables(model.env):
        yield f"env.{name}", "would change what kvsup promises; use the model's keys instead"
    if not 0.1 <= model.watchdog.interval_s <= min(model.watchdog.stall_s, 60.0):
        yield (
            "watchdog.interval",
            'must lie between "100ms" and "1m", and not be longer than watchdog.stall',
        )
    for option, message in check_options(model.options).items():
        yield f"options.{option}", message
    known = {found.message for found in refusals(setup)}
    for number in range(1, len(model.fallback) + 1):
        yield from _order_of_step(model, number)
        lower = kv_setup(
            stepped(model, number), binary=binary, shape=shape, draft_shape=draft_shape
        )
        own = {name for name, _ in given(model.fallback[number - 1])}
        for found in refusals(lower):
            if found.message not in known:
                known.add(found.message)
                key = f"fallback.{number}.{found.key}"
                yield key if found.key in own else f"fallback.{number}", found.message


def _order_of_step(model: ModelConfig, number: int) -> Iterator[Finding]:
    """Yield what of a step of the fallback takes more than the step before, or changes nothing."""
    before, now = stepped(model, number - 1), stepped(model, number)
    place = f"fallback.{number}"
    if now == before:
        yield place, "changes nothing of what is there before it; drop it, or write less"
    for name, key in _AMOUNTS.items():
        most, value = getattr(before, name), getattr(now, name)
        is_auto = name == "num_ctx" and before.num_ctx_is_auto
        if most is not None and value is not None and value > most and not is_auto:
            yield f"{place}.{key}", f"{value} is more than the {most} before it; write less"


def refusals(setup: Setup) -> Iterator[kvrules.Finding]:
    """Yield each broken rule of KV pairs that forbids a start, one for each key.

    The first says what to write; another would say it again.
    """
    told = set()
    for found in kvrules.findings(setup):
        if found.verdict == "refused" and found.key not in told:
            told.add(found.key)
            yield found


def model_advice(
    model: ModelConfig,
    *,
    binary: Binary,
    shape: ModelShape,
    draft_shape: ModelShape | None = None,
) -> Iterator[Finding]:
    """Yield what ``model`` can run with, but by which it loses more than it need.

    That its pair is slow here is said by ``kvsup/kvchoice.py``, which knows what was measured.
    """
    for found in kvrules.findings(
        kv_setup(model, binary=binary, shape=shape, draft_shape=draft_shape)
    ):
        if found.verdict == "warn":
            yield found.key, found.message


def kv_setup(
    model: ModelConfig,
    *,
    binary: Binary | None,
    shape: ModelShape | None,
    draft_shape: ModelShape | None = None,
) -> Setup:
    """Return what the rules about KV pairs look at; ``None`` is what is not known."""
    return Setup(
        pair=model.kv_cache_type,
        flash_attention=model.flash_attention,
        shape=shape,
        kv_types=None if binary is None else binary.kv_types,
        num_ctx=model.num_ctx,
        layer_types=() if binary is None else tuple(_layer_types(model.extra_args, binary)),
        unrotated_because=_unrotated_because(model, binary),
        draft=None if model.draft_model is None else model.draft_kv_cache_type,
        draft_shape=draft_shape,
    )


def _layer_types(extra_args: Sequence[str], binary: Binary) -> Iterator[tuple[str, str]]:
    """Yield each flag for the types of the first or last layers, with its value or ""."""
    for argument, following in zip_longest(extra_args, extra_args[1:], fillvalue=""):
        flag, is_joined, value = argument.partition("=")
        if flag in binary.kv_layer_flags:
            yield flag, value if is_joined else following


def _unrotated_because(model: ModelConfig, binary: Binary | None) -> str | None:
    """Return why no activations are rotated: as the environment, or ik_llama.cpp, has it."""
    disabled = model.env.get(_NO_ROTATION, "0").strip()
    if disabled.lstrip("+-0")[:1].isdecimal():  # atoi of llama-kv-cache.cpp, b11434
        return f"{_NO_ROTATION} is set; drop it from env"
    if binary is not None and binary.kv_layer_flags and "-khad" not in model.extra_args:
        return "this llama-server does so only when asked; add -khad and -vhad to extra_args"
    return None


def _nearest(flag: str, binary: Binary) -> str:
    near = difflib.get_close_matches(flag, sorted(binary.flags), n=1)
    return f"did you mean {near[0]}?" if near else f"see {binary.path} --help"


def name_clashes(models: Iterable[ModelConfig]) -> Iterator[tuple[ModelConfig, Finding]]:
    """Yield each model that has a name which an earlier one has, too."""
    owners: dict[str, ModelConfig] = {}
    for model in models:
        for name in (model.name, *model.aliases):
            for spelling in lookup_keys(name)[:1]:
                owner = owners.setdefault(spelling, model)
                if owner is not model:
                    key = "name" if name == model.name else "aliases"
                    yield model, (key, f"{name!r} is the name of a model in {owner.source}, too")
