"""``kvsup pull``, ``push``, ``create``, ``cp``, ``rm``: by the kvsup that runs, else without."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvsup.cli.arguments import ConfigOption, Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from kvsup.runtime.changes import Changes
    from kvsup.runtime.modelworks import ModelWorks
    from kvsup.runtime.works import Work

Insecure = Annotated[
    bool, typer.Option("--insecure", help="Ask the registry by plain HTTP, as Ollama has it.")
]


def pull(model: Model, insecure: Insecure = False, config: ConfigOption = None) -> None:
    """Fetch a model from a registry or from Hugging Face, or what has changed of it.

    NAME as for Ollama: llama3.2, USER/MODEL:TAG, hf.co/ORG/REPO:Q4_K_M, HOST:PORT/USER/MODEL. An
    interrupted pull goes on where it was when it is called again.
    """
    body = {"model": model, "insecure": insecure}
    _follow("/api/pull", body, lambda works: works.pull(model, is_insecure=insecure), config)


def push(model: Model, insecure: Insecure = False, config: ConfigOption = None) -> None:
    """Send a model to the registry that its name begins with."""
    body = {"model": model, "insecure": insecure}
    _follow("/api/push", body, lambda works: works.push(model, is_insecure=insecure), config)


def create(
    model: Model,
    file: Annotated[
        Path, typer.Option("--file", "-f", help="Modelfile.", show_default="Modelfile")
    ] = Path("Modelfile"),
    quantize: Annotated[
        str | None,
        typer.Option("--quantize", "-q", help="Type of the weights, e.g. Q4_K_M."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Make a model as a Modelfile says, with a TOML file beside it that can be edited.

    Beyond Ollama's there are PARAMETER kv_cache_type q8_0:q4_0 and PARAMETER num_ctx auto.
    """
    from kvsup.cli.creating import create as create_model

    create_model(model, file, quantize or "", config)


def cp(source: Model, destination: Model, config: ConfigOption = None) -> None:
    """Copy a model: its settings under a second name, its weights once."""
    from kvsup.cli import client, offline

    if not client.send_if_running(
        "POST", "/api/copy", {"source": source, "destination": destination}
    ):
        offline.change(lambda changes: changes.copy(source, destination), config)
    typer.echo(f"copied {source!r} to {destination!r}")


def rm(
    models: Annotated[list[str], typer.Argument(help="Names of models.", show_default=False)],
    config: ConfigOption = None,
) -> None:
    """Delete models: TOML files go to the trash; weights only where kvsup fetched or made them."""
    from kvsup.cli import client, offline

    for name in models:
        if not client.send_if_running("DELETE", "/api/delete", {"model": name}):
            offline.change(partial(_delete, name), config)
        typer.echo(f"deleted {name!r}")


async def _delete(name: str, changes: "Changes") -> None:
    await changes.delete(name)


def _follow(
    path: str,
    body: dict[str, object],
    join: "Callable[[ModelWorks], AbstractContextManager[Work]]",
    config: Path | None,
) -> None:
    """Show the lines of a work: of the kvsup that runs, or of one that is done here."""
    from kvsup.cli import client, offline
    from kvsup.cli.progress import shown

    lines = client.objects_if_running(path, body)
    with shown() as show:
        if lines is None:
            offline.follow(join, config, show)
        else:
            for line in lines:
                show(line)
