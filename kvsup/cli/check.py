"""``kvsup check``: each rule about a model's KV pair: expected, observed, and the evidence."""

import json

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from kvsup.checks import kv_setup
from kvsup.cli.tables import plain_console
from kvsup.errors import ConfigError
from kvsup.kvchoice import SLOW_RATIO, fast_pair, is_slow, path_here
from kvsup.kvrules import Finding, findings
from kvsup.kvtypes import KVPair
from kvsup.measures import SpeedProbe
from kvsup.plan import Plan
from kvsup.runtime.configdir import Configuration
from kvsup.slowpaths import Path


def show_problems(error: ConfigError, *, as_json: bool) -> None:
    """Print what is wrong, and of each broken rule what is expected and how that is known."""
    if as_json:
        problems = [
            {"source": p.source, "line": p.line, "key": p.key, "message": p.message}
            | ({"evidence": p.evidence} if p.evidence else {})
            for p in error.problems
        ]
        typer.echo(json.dumps({"problems": problems or [{"message": str(error)}]}))
        return
    if not error.problems:
        typer.echo(f"kvsup: {error}", err=True)
    for problem in error.problems:
        typer.echo(str(problem), err=True)
        if problem.evidence:
            typer.echo(f"    {problem.evidence}", err=True)


def show(configuration: Configuration, *, as_json: bool) -> bool:
    """Print for each model of a right configuration what was checked, and what could be better.

    Return whether all of them will be served.
    """
    problems = [
        {"source": plan.model.source, "line": None, "key": "kv_cache_type", "message": plan.refusal}
        for plan in configuration.plans
        if plan.refusal
    ]
    if as_json:
        models = [_as_json(plan) for plan in configuration.plans]
        answer = {"problems": problems, "models": models, "left_out": configuration.left_out}
        typer.echo(json.dumps(answer))
        return not problems
    console = plain_console()
    for plan in configuration.plans:
        tokens = f"{plan.model.num_ctx} tokens"
        if plan.model.num_ctx_is_auto:
            tokens = f"as many tokens as fit, {tokens} at least"
        verdict = "refused" if plan.refusal else "fine"
        typer.echo(f"{plan.name}: {plan.model.kv_cache_type}, {tokens}: {verdict}")
        for note in plan.notes:
            typer.echo(f"{plan.name}: {note}")
        _print_rules(console, plan)
    for line in configuration.left_out:
        typer.echo(f"left out: {line}")
    for problem in problems:
        typer.echo("{source}: {key}: {message}".format(**problem), err=True)
    return not problems


def _print_rules(console: Console, plan: Plan) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="")
    for column in ("", "EXPECTED", "OBSERVED", "EVIDENCE"):
        table.add_column(column, overflow="fold")
    rules = _rules(plan)
    for found in rules:
        table.add_row(found.verdict, found.expected, found.observed, found.evidence)
    path, fast = _path(plan)
    expected = "attention runs where its layers are, without conversion"
    table.add_row(path.verdict, expected, path.text, path.source)
    if probe := _probe(plan):
        observed = (
            f"reads prompts at {probe.prompt_ratio:.2f}, writes at {probe.generation_ratio:.2f}"
            f" behind {probe.speed.depth_tokens} tokens"
        )
        verdict = "slow" if is_slow(probe) else "fast"
        table.add_row(verdict, f"{SLOW_RATIO} of f16:f16's speed or more", observed, "kvsup probe")
    console.print(table)
    for found in rules:
        if found.verdict == "warn":
            console.print(f"{plan.name}: {found.key}: {found.message}", soft_wrap=True)
    for mend in _mends(plan, path, fast):
        console.print(f"{plan.name}: {mend}", soft_wrap=True)


def _rules(plan: Plan) -> list[Finding]:
    draft = plan.file.draft
    return findings(
        kv_setup(
            plan.model,
            binary=plan.binary,
            shape=plan.file.shape,
            draft_shape=draft.shape if draft else None,
        )
    )


def _path(plan: Plan) -> tuple[Path, KVPair | None]:
    """Return where attention runs by the table, and where that is slow the nearest fast pair."""
    path = path_here(plan.model.kv_cache_type, plan.model, plan.file.shape, plan.machine)
    if not plan.slow_kv:
        return path, None
    return path, fast_pair(plan.model, plan.file.shape, plan.machine)


def _probe(plan: Plan) -> SpeedProbe | None:
    return plan.machine.probes.get(str(plan.model.kv_cache_type))


def _mends(plan: Plan, path: Path, fast: KVPair | None) -> list[str]:
    """Return what makes a slow pair fast, and that it was measured to be slow."""
    mends = [plan.slow_kv, path.mend if path.mend not in plan.slow_kv else ""]
    if fast not in {None, plan.model.kv_cache_type} and str(fast) not in plan.slow_kv:
        mends.append(f"{fast} is the nearest pair that is fast here")
    return [mend for mend in mends if mend]


def _as_json(plan: Plan) -> dict[str, object]:
    path, fast = _path(plan)
    probe = _probe(plan)
    return {
        "name": plan.name,
        "kv_cache_type": str(plan.model.kv_cache_type),
        "num_ctx": plan.model.num_ctx,
        "num_ctx_is_auto": plan.model.num_ctx_is_auto,
        "notes": plan.notes,
        "rules": [
            {
                "rule": found.rule,
                "verdict": found.verdict,
                "key": found.key,
                "expected": found.expected,
                "observed": found.observed,
                "evidence": found.evidence,
                "nearest": str(found.nearest) if found.nearest else None,
            }
            for found in _rules(plan)
        ],
        "path": {
            "verdict": path.verdict,
            "observed": path.text,
            "evidence": path.source,
            "mend": path.mend or None,
            "nearest_fast": str(fast) if fast else None,
        },
        "slow": plan.slow_kv or None,
        "probe": msgspec.to_builtins(probe) if probe else None,
    }
