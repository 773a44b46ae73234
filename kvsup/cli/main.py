"""The commands of ``kvsup``. Heavy modules are imported by the command that needs them.

Exit codes: 0 done; 1 it failed, with the reason on stderr; 2 the configuration or the command line
is wrong; 3 no kvsup answers on the address; 130 interrupted.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from kvsup import __version__
from kvsup.cli import kept, kv, models
from kvsup.cli.arguments import (
    AsJson,
    ConfigDir,
    ConfigOption,
    Model,
    configuration_of,
    plan_of,
)
from kvsup.cli.coercion import spare_pydantic
from kvsup.errors import ConfigError, KvsupError

app = typer.Typer(
    name="kvsup",
    help="Supervise llama-server: the right KV cache types per model, behind Ollama's API.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line and exit."""
    command = typer.main.get_command(app)
    spare_pydantic(command)
    try:
        command()
    except ConfigError as error:
        _fail(str(error) if error.problems else f"kvsup: {error}", code=2)
    except KvsupError as error:
        _fail(f"kvsup: {error}", code=1)


@app.command()
def run(
    config_dir: ConfigDir = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", show_default=False)
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without API keys.")
    ] = False,
) -> None:
    """Serve the models of a configuration folder until a signal ends it."""
    from kvsup import serve

    configuration = configuration_of(config_dir)
    _log_to_stderr(log_level or configuration.host.log_level)
    serve.run(configuration, os.environ, is_insecure=insecure)


@app.command()
def check(config_dir: ConfigDir = None, as_json: AsJson = False) -> None:
    """Check every file of a configuration folder; exit code 2 with all problems if any."""
    from kvsup.cli.check import show as show_checks
    from kvsup.cli.check import show_problems

    try:
        configuration = configuration_of(config_dir)
    except ConfigError as error:
        show_problems(error, as_json=as_json)
        raise typer.Exit(2) from error
    if not show_checks(configuration, as_json=as_json):
        raise typer.Exit(2)


@app.command(name="import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="A llama-swap YAML, an INI of llama.cpp's router, an Ollama store, or: ollama.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(help="Folder to write into; default: as for run.", show_default=False),
    ] = None,
    env_file: Annotated[
        list[Path] | None,
        typer.Option(
            help="Unit or drop-in of systemd, or file of variables, with Ollama's settings.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files only.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write TOML files from another program's configuration; say what has no equivalent."""
    from kvsup.cli.importing import run as run_import
    from kvsup.runtime.paths import config_dir

    folder = to or config_dir(None)
    run_import(source, to=folder, env_files=env_file or (), is_dry_run=dry_run, replaces=force)


app.add_typer(kept.app)

for _command in (
    kv.estimate, kv.probe, kv.tune,
    models.pull, models.push, models.create, models.cp, models.rm,
):  # fmt: skip
    app.command()(_command)


@app.command()
def argv(
    model: Model,
    config: ConfigOption = None,
    as_json: AsJson = False,
) -> None:
    """Print the exact command line that ``run`` spawns for a model."""
    import shlex

    plan = plan_of(model, configuration_of(config))
    typer.echo(json.dumps(list(plan.argv)) if as_json else shlex.join(plan.argv))


@app.command(name="list")
def list_models(config: ConfigOption = None, as_json: AsJson = False) -> None:
    """List the configured models with the KV bytes that each will take."""
    from kvsup.cli import tables

    tables.show_plans(configuration_of(config).plans, as_json=as_json)


@app.command()
def ps(as_json: AsJson = False) -> None:
    """Show every model of the running kvsup with its state and measured bytes."""
    from kvsup.cli import client, tables

    tables.show_states(client.get("/kvsup/models"), as_json=as_json)


@app.command()
def show(model: Model, config: ConfigOption = None, as_json: AsJson = False) -> None:
    """Show what is configured for a model and what it will take."""
    from kvsup.cli import tables
    from kvsup.runtime.keepable import why_not_kept
    from kvsup.runtime.remembered import Remembered

    configuration = configuration_of(config)
    plan = plan_of(model, configuration)
    why_not = why_not_kept(plan, Remembered(configuration.state_dir))
    tables.show_plan(plan, why_not_kept=why_not, as_json=as_json)


@app.command()
def why(
    model: Annotated[
        str | None, typer.Argument(help="Name of a model.", show_default=False)
    ] = None,
    last: Annotated[int, typer.Option(min=0, help="Lines of its timeline to print.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Say why a model is as it is, and how it came about; without a model, a line for each."""
    from kvsup.cli.why import show as show_why

    show_why(model, n_lines=last, as_json=as_json)


@app.command()
def stop(model: Model) -> None:
    """Unload a model of the running kvsup once its requests have ended."""
    from kvsup.cli import client

    stopping = client.post("/kvsup/stop", {"model": model})["stopping"]
    typer.echo(f"{model}: {'stopping' if stopping else 'was not loaded'}")


@app.command()
def reset(model: Model) -> None:
    """Let a model that has given up start again."""
    from kvsup.cli import client

    client.post("/kvsup/reset", {"model": model})
    typer.echo(f"{model}: reset")


@app.command()
def reload() -> None:
    """Have the running kvsup read its configuration again.

    Exit codes as of systemctl: 0 it is in force; 1 it was refused, with the reason, and the one
    before stays in force; 3 no kvsup answers.
    """
    from kvsup.cli import client

    client.post("/kvsup/reload", {})
    typer.echo("configuration read again")


@app.command()
def logs(
    model: Model,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Last lines to print.")] = 100,
) -> None:
    """Print the log of a model's llama-server."""
    from kvsup.cli import client

    for line in client.lines(f"/kvsup/logs/{model}", lines=lines, follow=follow):
        typer.echo(line)


@app.command()
def doctor(config_dir: ConfigDir = None, as_json: AsJson = False) -> None:
    """Say what kvsup finds: binary, build, KV types, devices, configuration, port, variables."""
    from kvsup.cli.doctor import examine

    healthy = examine(config_dir, as_json=as_json)
    raise typer.Exit(0 if healthy else 1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def setup(context: typer.Context) -> None:
    """Fetch a llama-server and the demo model into the user's cache; see setup --help."""
    from kvsup.cli.setup import fetch

    raise typer.Exit(fetch(context.args))


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="model or host.", show_default=False)],
) -> None:
    """Print the JSON Schema of a model's file or of kvsup.toml, for editors."""
    from kvsup.schema import host_schema, model_schema

    schemas = {"model": model_schema, "host": host_schema}
    if kind not in schemas:
        raise typer.BadParameter("write model or host")
    typer.echo(json.dumps(schemas[kind](), indent=2, ensure_ascii=False))


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    typer.echo(json.dumps({"version": __version__}) if as_json else f"kvsup {__version__}")


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        level=getattr(logging, level.upper(), logging.INFO),
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _fail(message: str, *, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise SystemExit(code)
