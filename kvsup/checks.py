"""Check decoded models against the binary that will run them and the weights they name.

Pure: what was read from disk comes in, problems go out. Each problem says what to write instead.
"""

import difflib
from collections.abc import Iterable, Iterator

from kvsup.config import ModelConfig
from kvsup.kvrules import violation
from kvsup.kvtypes import parse_kv_pair
from kvsup.llama.argv import owned_arguments, owned_variables, unknown_arguments
from kvsup.llama.binary import Binary
from kvsup.modelshape import ModelShape
from kvsup.ollama.names import lookup_keys, valid_name
from kvsup.ollama.options import check_options

Finding = tuple[str, str]
"""A key of the model, and what is wrong with it."""


def model_findings(
    model: ModelConfig, *, binary: Binary | None, shape: ModelShape | None
) -> Iterator[Finding]:
    """Yield what is wrong with ``model``.

    Args:
        model: decoded, with absolute paths.
        binary: None where it could not be asked; its rules are then left out.
        shape: None where the weights could not be read.
    """
    for name in (model.name, *model.aliases):
        if not valid_name(name):
            key = "name" if name == model.name else "aliases"
            yield key, f"{name!r} is no model name; letters, digits, . _ - and one :tag are"
    if binary is not None:
        try:
            parse_kv_pair(str(model.kv_cache_type), allowed=binary.kv_types)
        except ValueError as error:
            yield "kv_cache_type", str(error)
    broken = violation(model.kv_cache_type, model.flash_attention, shape)
    if broken is not None:
        yield "kv_cache_type", broken.message
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
    for option, message in check_options(model.options).items():
        yield f"options.{option}", message


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
