"""``kvsup kv``: the conversations that are kept in files."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from kvsup.cli.arguments import AsJson

if TYPE_CHECKING:
    from kvsup.runtime.kvarchive import Read
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
    from kvsup.units import format_bytes

    _check_kept([] if model is None else [model])
    answer = client.delete_if_running("/kvsup/kv", {} if model is None else {"model": model})
    if answer is None:
        with _files() as files:
            freed_bytes = files.clear(model)
    else:
        freed_bytes = answer["freed_bytes"]
    typer.echo(f"removed {format_bytes(freed_bytes)}")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="A new file.", show_default=False)],
    models: Annotated[
        list[str] | None, typer.Argument(help="Names of models; all without.", show_default=False)
    ] = None,
) -> None:
    """Write what is kept to one file, for another kvsup with the same models.

    It holds prompts and answers, and is readable by you alone. What a loaded model has not saved
    yet is not in it: stop it before.
    """
    from kvsup.cli.tables import new_table, plain_console
    from kvsup.errors import KvsupError
    from kvsup.runtime.kvarchive import ArchiveError, Packed, conversations
    from kvsup.runtime.kvimport import is_whole
    from kvsup.units import format_bytes

    if file.exists():
        raise KvsupError(f"{file} is there already; name a new file")
    _check_kept(models or [])
    table = new_table("MODEL", "TOKENS", "SIZE")
    beside = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        with _new_file(beside) as written:
            _pack(models or [], written)
        n_damaged = 0
        with beside.open("rb") as again:
            for one in conversations(again.read):
                if isinstance(one, Packed) and is_whole(one):
                    size = format_bytes(one.sidecar.size_bytes)
                    table.add_row(one.sidecar.model, str(one.sidecar.n_tokens), size)
                else:
                    n_damaged += 1
        beside.rename(file)
    except (OSError, ArchiveError) as error:
        raise KvsupError(f"{file} could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
    plain_console().print(table)
    if n_damaged:
        raise KvsupError(f"{n_damaged} conversations were damaged on disk; no import takes them")


@app.command(name="import")
def import_kept(
    file: Annotated[Path, typer.Argument(help="What export wrote.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Take conversations from a file of export; say of each whether, and why not.

    Only those of a model that is here with the same weights, settings and llama-server are taken.
    Nothing that is kept here gives way to them. Exit code 1 if the file breaks off, or is none.
    """
    from kvsup.cli import client
    from kvsup.cli.tables import new_table, plain_console
    from kvsup.errors import KvsupError
    from kvsup.units import format_bytes

    if not file.is_file():
        raise KvsupError(f"{file} is no file")
    try:
        with file.open("rb") as opened:
            if client.get_if_running("/kvsup/kv") is None:
                answer = _take(opened.read)
            else:
                answer = client.put("/kvsup/kv/archive", opened)
    except OSError as error:
        raise KvsupError(f"{file} cannot be read: {error.strerror or error}") from error
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        table = new_table("MODEL", "TOKENS", "SIZE", "TAKEN")
        for one in answer["conversations"]:
            taken = f"no: {one['why_not']}" if one["why_not"] else "yes"
            table.add_row(one["model"], str(one["tokens"]), format_bytes(one["bytes"]), taken)
        plain_console().print(table)
    if answer["problem"]:
        raise KvsupError(f"{file}: {answer['problem']}")


def _kept() -> list[dict[str, Any]]:
    """Return what is kept, as the kvsup that runs says, or else the disk."""
    from kvsup.cli import client
    from kvsup.runtime.kvfiles import described

    answer = client.get_if_running("/kvsup/kv")
    if answer is not None:
        return list(answer["conversations"])
    with _files() as files:
        return described(files.entries())


def _check_kept(models: list[str]) -> None:
    """Raise KvsupError where nothing is kept of one of ``models``."""
    from kvsup.errors import KvsupError

    kept = {one["model"] for one in _kept()} if models else set()
    for model in models:
        if model not in kept:
            raise KvsupError(f"nothing is kept of {model!r}; see kvsup kv list")


def _pack(models: list[str], out: BinaryIO) -> None:
    """Write what is kept to ``out``, as the kvsup that runs sends it, or else from the disk."""
    from kvsup.cli import client
    from kvsup.runtime.kvarchive import packed

    if client.save_if_running("/kvsup/kv/archive", {"model": models}, out.write):
        return
    with _files() as files:
        entries = [e for e in files.entries() if not models or e.sidecar.model in models]
        out.writelines(packed(entries))


def _take(read: "Read") -> dict[str, Any]:
    """Take what is good of a file while no kvsup runs, and return what the running one would."""
    import anyio
    import msgspec

    from kvsup.cli.arguments import configuration_of
    from kvsup.runtime.keepable import models_by_identity
    from kvsup.runtime.kvarchive import ArchiveError
    from kvsup.runtime.kvimport import Desk, Outcome, take
    from kvsup.runtime.remembered import Remembered
    from kvsup.runtime.weightsums import WeightSums

    configuration = configuration_of(None)
    outcomes: list[Outcome] = []
    problem = ""
    with _files() as files:
        sums = WeightSums(Remembered(configuration.state_dir))
        models = anyio.run(models_by_identity, configuration.plans, sums)
        try:
            outcomes.extend(take(read, Desk(files, models)))
        except ArchiveError as error:
            problem = str(error)
    return {"conversations": msgspec.to_builtins(outcomes), "problem": problem}


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file of this user alone, and sync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _files() -> "Iterator[KVFiles]":
    """Yield what is kept while no kvsup runs: it holds the state folder, as a running one does.

    Raises:
        KvsupError: one runs that did not answer.
    """
    from kvsup.runtime.configdir import read_host
    from kvsup.runtime.kvfiles import KVFiles
    from kvsup.runtime.paths import config_dir, kv_dir, state_dir
    from kvsup.runtime.statelock import held

    host, problem = read_host(config_dir(None), os.environ)
    if problem is not None:
        raise problem
    state = state_dir(host.state_dir)
    with held(state):
        yield KVFiles(kv_dir(state), max_bytes=host.max_kv_files_bytes, emit=lambda _event: None)
