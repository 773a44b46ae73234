"""``kvsup kv``: the conversations that are kept in files."""

import json
import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvsup.cli.arguments import AsJson

if TYPE_CHECKING:
    from kvsup.runtime.kvfiles import KVFiles

app = typer.Typer(
    name="kv", help="Conversations kept while their model is not loaded.", no_args_is_help=True
)

ModelName = Annotated[
    str | None, typer.Argument(help="Name of a model; all without one.", show_default=False)
]


@app.command(name="list")
def list_kept(model: ModelName = None, as_json: AsJson = False) -> None:
    """List what is kept, the last used first."""
    from kvsup.cli.tables import new_table, plain_console
    from kvsup.units import format_bytes, format_span

    kept = [one for one in _kept() if model in {None, one["model"]}]
    if as_json:
        typer.echo(json.dumps(kept))
        return
    table = new_table("MODEL", "TOKENS", "SIZE", "USED", "FILE")
    for one in sorted(kept, key=lambda one: -one["used_at"]):
        ago = f"{format_span(max(0.0, time.time() - one['used_at']))} ago"
        size = format_bytes(one["bytes"])
        table.add_row(one["model"], str(one["tokens"]), size, ago, one["path"])
    plain_console().print(table)


@app.command()
def clear(model: ModelName = None) -> None:
    """Remove what is kept: of one model, or of all."""
    from kvsup.cli import client
    from kvsup.errors import KvsupError
    from kvsup.units import format_bytes

    if model is not None and all(one["model"] != model for one in _kept()):
        raise KvsupError(f"nothing is kept of {model!r}; see kvsup kv list")
    query = {} if model is None else {"model": model}
    answer = client.delete_if_running("/kvsup/kv", query)
    freed_bytes = answer["freed_bytes"] if answer is not None else _files().clear(model)
    typer.echo(f"removed {format_bytes(freed_bytes)}")


def _kept() -> list[dict[str, Any]]:
    """Return what is kept, as the kvsup that runs says, or else the disk."""
    from kvsup.cli import client
    from kvsup.runtime.kvfiles import described

    answer = client.get_if_running("/kvsup/kv")
    return described(_files().entries()) if answer is None else list(answer["conversations"])


def _files() -> "KVFiles":
    from kvsup.runtime.configdir import read_host
    from kvsup.runtime.kvfiles import KVFiles
    from kvsup.runtime.paths import config_dir, kv_dir, state_dir

    host, problem = read_host(config_dir(None), os.environ)
    if problem is not None:
        raise problem
    folder = kv_dir(state_dir(host.state_dir))
    return KVFiles(folder, max_bytes=host.max_kv_files_bytes, emit=lambda _event: None)
