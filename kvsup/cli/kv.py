"""The commands about KV pairs: what they take, how fast they are, and which is best."""

from pathlib import Path
from typing import Annotated

import typer

from kvsup.cli.arguments import AsJson, ConfigOption, ModelOrFile, plan_or_file
from kvsup.units import parse_bytes


def estimate(
    model: ModelOrFile,
    config: ConfigOption = None,
    pairs: Annotated[
        str | None,
        typer.Option(help='Pairs, e.g. "q8_0:q4_0,q5_1:q5_1", or all.', show_default=False),
    ] = None,
    num_ctx: Annotated[
        int | None, typer.Option(min=4, help="Tokens of one request.", show_default=False)
    ] = None,
    num_parallel: Annotated[
        int | None, typer.Option(min=1, max=256, help="Requests at once.", show_default=False)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Memory for all of it: the largest context.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what each KV pair of a model takes, and the largest context that fits a budget."""
    from kvsup.cli import estimate as estimating

    plan, _, _ = plan_or_file(model, config)
    plan = estimating.with_wishes(plan, num_ctx=num_ctx, num_parallel=num_parallel)
    try:
        chosen = estimating.chosen_pairs(pairs, plan)
        budget_bytes = None if budget is None else parse_bytes(budget)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json and pairs is None:
        chosen = chosen[:1]
    estimating.show(plan, pairs=chosen, budget_bytes=budget_bytes, as_json=as_json)


def probe(
    model: ModelOrFile,
    config: ConfigOption = None,
    pair: Annotated[
        str | None, typer.Option(help="Another pair than the model's.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure in seconds how fast a model's KV pair is here, beside f16:f16, and keep it."""
    from kvsup.cli import probe as probing

    plan, store, _ = plan_or_file(model, config)
    probing.show(plan, pair=pair, store=store, as_json=as_json)


def tune(
    model: ModelOrFile,
    config: ConfigOption = None,
    goal: Annotated[
        str | None,
        typer.Option(help="accurate, balanced, small or fast.", show_default="the model's kv_goal"),
    ] = None,
    max_kld: Annotated[
        float | None,
        typer.Option(help="Largest mean KL divergence, in nats.", show_default=False),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=256, help="Tokens that must fit.", show_default=False)
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory that they must fit in.", show_default=False)
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(help='Only these, e.g. "q8_0:q4_0,q5_1:q5_1", or all.', show_default=False),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Your own text to measure on.", show_default=False)
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            help="JSON array of chats with tools; calls must be the same.", show_default=False
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="server or perplexity.")] = "server",
    budget_time: Annotated[str, typer.Option(help="Time for all of it.")] = "10m",
    fresh: Annotated[
        bool,
        typer.Option("--fresh/--resume", help="Measure anew, or use what earlier runs measured."),
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Set kv_cache_type in the model's file.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a plot: .png or .svg.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the best KV pair for a model on this machine, by measuring."""
    from kvsup.cli.tune import Options
    from kvsup.cli.tune import tune as tune_model

    plan, store, configuration = plan_or_file(model, config)
    options = Options(
        goal=goal or plan.model.kv_goal,
        max_kld=max_kld,
        context=context,
        memory=memory,
        pairs=pairs,
        text=text,
        tools=tools,
        method=method,
        budget_time=budget_time,
        fresh=fresh,
        write=write,
        plot=plot,
        as_json=as_json,
    )
    folder = configuration.folder if configuration else None
    raise typer.Exit(tune_model(plan, options, store=store, folder=folder))
