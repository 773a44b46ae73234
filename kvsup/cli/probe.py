"""``kvsup probe``: how fast a KV pair is on this binary and device, measured in seconds."""

import json

import anyio
import msgspec
import typer

from kvsup.errors import KvsupError
from kvsup.kvtypes import F16, parse_kv_pair
from kvsup.plan import Plan
from kvsup.runtime.knowledge import keep_probe
from kvsup.runtime.remembered import Remembered
from kvsup.tuning.speed import probe


def show(plan: Plan, *, pair: str | None, store: Remembered, as_json: bool) -> None:
    """Measure, keep and print.

    Raises:
        TrialFailed: a llama-server did not load, or died.
    """
    try:
        wanted = (
            parse_kv_pair(pair, allowed=plan.binary.kv_types) if pair else plan.model.kv_cache_type
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if wanted == F16:
        raise KvsupError("f16:f16 is what others are compared with; name another by --pair")
    found = anyio.run(probe, plan, wanted)
    keep_probe(store, plan, found)
    if as_json:
        ratios = {"prompt_ratio": found.prompt_ratio, "generation_ratio": found.generation_ratio}
        typer.echo(json.dumps({**msgspec.to_builtins(found), **ratios}))
        return
    typer.echo(f"{plan.name}, {plan.binary.label}, behind {found.speed.depth_tokens} tokens:")
    rows = (
        ("reads prompts", found.speed.prompt_tokens_per_s, found.baseline.prompt_tokens_per_s),
        ("writes", found.speed.generation_tokens_per_s, found.baseline.generation_tokens_per_s),
    )
    for what, speed, baseline in rows:
        typer.echo(
            f"{what} {speed:.0f} tokens/s with {found.pair}, {baseline:.0f} with f16:f16:"
            f" {speed / baseline:.2f}"
        )
