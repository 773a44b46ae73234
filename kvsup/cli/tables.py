"""Print plans and states as tables, or as JSON for scripts."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from kvsup.config import canonical
from kvsup.plan import Plan
from kvsup.units import format_bytes, format_duration
from kvsup.warmth import Reuse

_REUSE: Mapping[Reuse, str] = {
    "prefix": "kept, and gone on with from where a prompt parts from them",
    "whole": "kept, and gone on with by a prompt that begins with all of one",
    "never": "not kept",
}


def show_plans(plans: Iterable[Plan], *, as_json: bool) -> None:
    """Print one line a model: what is configured and what it will take."""
    if as_json:
        typer.echo(json.dumps([_plan(plan) for plan in plans]))
        return
    table = new_table("MODEL", "KV-CACHE", "CONTEXT", "K", "V", "WEIGHTS", "KEEP-ALIVE")
    for plan in plans:
        table.add_row(
            plan.name,
            str(plan.model.kv_cache_type),
            _context(plan.model.num_parallel, plan.model.num_ctx),
            format_bytes(plan.estimate.k_bytes),
            format_bytes(plan.estimate.v_bytes),
            format_bytes(plan.estimate.weights_bytes),
            format_duration(plan.model.keep_alive_s),
        )
    plain_console().print(table)


def show_states(answer: dict[str, Any], *, as_json: bool) -> None:
    """Print the answer of ``GET /kvsup/models``."""
    if as_json:
        typer.echo(json.dumps(answer))
        return
    table = new_table(
        "MODEL", "STATE", "KV CACHE", "CONTEXT", "K", "V", "SIZE", "BUSY", "WAIT", "UNTIL", "PID"
    )
    for model in answer["models"]:
        loaded = model["pid"] is not None
        table.add_row(
            model["name"],
            model["state"],
            model["kv_cache_type"],
            _context(model["num_parallel"], model["num_ctx"]),
            format_bytes(model["k_bytes"]) if loaded and model["k_bytes"] else "-",
            format_bytes(model["v_bytes"]) if loaded and model["v_bytes"] else "-",
            format_bytes(model["size_bytes"]) if loaded else "-",
            str(model["in_flight"]),
            str(model["waiting"]),
            _until(model) if loaded else "-",
            str(model["pid"] or "-"),
        )
    console = plain_console()
    console.print(table)
    for model in answer["models"]:
        if model["failure"]:
            console.print(f"{model['name']}: {model['failure']}")
        for what in model["given_up"]:
            console.print(f"{model['name']}: memory was short: {what}")
        for sentence in model["kv_warnings"]:
            console.print(f"{model['name']}: {sentence}")
        if told := _warmth(model):
            console.print(f"{model['name']}: {told}")
    if answer["waiting"]:
        longest_s = max(request["waited_ms"] for request in answer["queue"]) / 1000
        console.print(f"{answer['waiting']} requests wait, the longest for {longest_s:.1f} s")
    if answer["refused_configuration"]:
        console.print("configuration not taken up:")
        console.print(answer["refused_configuration"])


def show_plan(plan: Plan, *, why_not_kept: str, as_json: bool) -> None:
    """Print everything that is known of a model before it runs.

    ``why_not_kept`` says why its conversations are kept in no file; empty where they are.
    """
    if as_json:
        kept = {"are_kept": not why_not_kept, "why_not": why_not_kept, "reuse": plan.warmth.reuse}
        typer.echo(
            json.dumps({**_plan(plan), "conversations": kept, "config": canonical(plan.model)})
        )
        return
    metadata = plan.file.metadata
    rows = {
        "model": plan.name,
        "from": plan.model.source,
        "weights": f"{plan.model.model} ({format_bytes(plan.file.size_bytes)})",
        "architecture": f"{metadata.architecture}, {metadata.file_type}",
        "KV cache": f"K {plan.model.kv_cache_type.k} {format_bytes(plan.estimate.k_bytes)}, "
        f"V {plan.model.kv_cache_type.v} {format_bytes(plan.estimate.v_bytes)}"
        + ("" if plan.estimate.is_exact else " (a guess: known only after a load)"),
        "context": _context(plan.model.num_parallel, plan.model.num_ctx),
        "memory": f"{format_bytes(plan.size_bytes)} in all",
        "conversations": f"not kept: {why_not_kept}" if why_not_kept else _REUSE[plan.warmth.reuse],
        "llama-server": f"{plan.binary.path} ({plan.binary.label})",
    }
    for step in range(1, len(plan.configured.fallback) + 1):
        lower = plan.on_step(step)
        words = "; ".join(lower.given_up)
        rows[f"fallback {step}"] = f"{words}: {format_bytes(lower.size_bytes)} in all"
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    plain_console().print(table)


def _plan(plan: Plan) -> dict[str, object]:
    return {
        "name": plan.name,
        "model": plan.model.model,
        "kv_cache_type": str(plan.model.kv_cache_type),
        "num_ctx": plan.model.num_ctx,
        "num_parallel": plan.model.num_parallel,
        "k_bytes": plan.estimate.k_bytes,
        "v_bytes": plan.estimate.v_bytes,
        "weights_bytes": plan.estimate.weights_bytes,
        "size_bytes": plan.size_bytes,
        "is_exact": plan.estimate.is_exact,
        "source": plan.model.source,
    }


def new_table(*columns: str) -> Table:
    """Return a table without lines, whose columns are never cut."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _context(n_parallel: int, n_ctx: int) -> str:
    return f"{n_parallel} x {n_ctx}"


def _warmth(model: dict[str, Any]) -> str:
    """Return what is kept of a model's conversations, in words; empty where nothing is known."""
    told = []
    if n_kept := model["kept_conversations"]:
        noun = "conversation" if n_kept == 1 else "conversations"
        told.append(f"{n_kept} {noun} kept ({format_bytes(model['kept_bytes'])})")
    if n_restored := model["restored_tokens"]:
        told.append(f"{n_restored} tokens restored")
    if (rate := model["cache_hit_rate"]) is not None:
        told.append(f"hit rate {100 * rate:.0f} %")
    return ", ".join(told)


def _until(model: dict[str, Any]) -> str:
    if model["in_flight"]:
        return "busy"
    return "-" if model["idle_in_s"] is None else f"{max(0, round(model['idle_in_s']))} s"


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that never cuts, as a pipe has no width, and prints texts as they are.

    What a configuration, a path or a llama-server says may have ``[brackets]`` and ``:colons:``.
    """
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 250
    return console
