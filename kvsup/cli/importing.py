"""``kvsup import``: the configuration of another program as TOML files, checked before written."""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer

from kvsup.config import ModelConfig
from kvsup.decode import decode_models
from kvsup.errors import ConfigError, KvsupError, Problem
from kvsup.importing.commandline import apply_settings
from kvsup.importing.found import Draft, Found, Value, absolute, name_drafts
from kvsup.importing.llamaswap import read_llama_swap
from kvsup.importing.ollama import Variable, read_env_file, read_ollama
from kvsup.importing.routerini import read_router_ini
from kvsup.importing.tomlfiles import host_text, model_files, model_text, plain
from kvsup.llama.helptext import Argument, parse_arguments
from kvsup.ollama.names import lookup_keys
from kvsup.runtime import paths
from kvsup.runtime.binaries import default_binary, help_of
from kvsup.runtime.configdir import read_configuration, toml_files
from kvsup.runtime.importstore import read_store, store_of
from kvsup.runtime.newfiles import write_files
from kvsup.runtime.tomlfile import read_toml
from kvsup.tomltext import rewrite

OLLAMA = "ollama"

_INI_LINE = re.compile(r"^\s*\[[^\]]+\]\s*$", re.MULTILINE)
_YAML_LINE = re.compile(r"^[\"']?models[\"']?\s*:", re.MULTILINE)
_MAX_BYTES = 4 << 20


def run(
    source: str, *, to: Path, env_files: Sequence[Path], is_dry_run: bool, replaces: bool
) -> None:
    """Import ``source`` into the folder ``to``, and print what has no equivalent.

    Args:
        source: a file of llama-swap or of llama.cpp's router, a store of Ollama, or ``ollama``.
        to: the configuration folder.
        env_files: files with Ollama's variables, used instead of those of this process.
        is_dry_run: print the files, and write nothing.
        replaces: whether files that are there may be replaced.

    Raises:
        ConfigError: the source cannot be read, or a file is there already.
        KvsupError: no model of it can be served here.
    """
    found, folder = _read(source, env_files)
    _settle(found, folder, has_host=(to / paths.HOST_FILE).exists() and not replaces)
    name_drafts(found)
    _leave_out_known(found, model_files(found, {paths.HOST_FILE}), to)
    files = _checked(found, model_files(found, {paths.HOST_FILE}))
    texts = {name: model_text(draft, name) for name, draft in files.items()}
    if found.host:
        _add_host(found, to, texts, replaces=replaces)
    for note in found.all_notes:
        typer.echo(str(note), err=True)
    if not files:
        raise KvsupError(f"{source}: none of {len(found.drafts)} models can be served")
    if is_dry_run:
        for name, text in texts.items():
            typer.echo(f"#### {to / name}\n{text}")
        return
    write_files(to, texts, replaces=replaces)
    for name in texts:
        typer.echo(str(to / name))
    typer.echo(f"{len(files)} of {len(found.drafts)} models imported; see kvsup check {to}")


def _read(source: str, env_files: Sequence[Path]) -> tuple[Found, str]:
    """Return what ``source`` holds, and the folder where its relative paths begin."""
    path = Path(source)
    if source == OLLAMA or (path / "manifests").is_dir():
        variables = _variables(env_files)
        named = variables.get("OLLAMA_MODELS")
        store = path if source != OLLAMA else store_of(named.value if named else None)
        return read_ollama(read_store(store), variables, str(store)), str(store.absolute())
    text = _text(path)
    folder = str(path.absolute().parent)
    if path.suffix == ".toml":
        raise ConfigError(f"{source}: is TOML, as kvsup's own files are; copy it")
    if path.suffix in {".yaml", ".yml"} or (path.suffix != ".ini" and _YAML_LINE.search(text)):
        return read_llama_swap(text, source, os.environ), folder
    if path.suffix == ".ini" or _INI_LINE.search(text):
        return read_router_ini(text, source), folder
    raise ConfigError(
        f"{source}: is neither a configuration of llama-swap (YAML with models:) nor presets of"
        f" llama.cpp's router (INI); for an installation of Ollama write kvsup import {OLLAMA}"
    )


def _variables(env_files: Sequence[Path]) -> dict[str, Variable]:
    if not env_files:
        return {name: Variable(value, "environment") for name, value in os.environ.items()}
    found: dict[str, Variable] = {}
    for path in env_files:
        found |= read_env_file(_text(path), str(path))
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: is longer than {_MAX_BYTES} bytes; no configuration is")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


@dataclass(slots=True)
class _Servers:
    """The llama-servers that models name, each asked once for its arguments."""

    found: Found
    folder: str
    default: str | None = field(default_factory=lambda: default_binary(paths.cache_dir()))
    _known: dict[str, Mapping[str, Argument] | str] = field(default_factory=dict)

    def of(self, draft: Draft) -> tuple[str, Mapping[str, Argument]]:
        """Return the llama-server that will run a model, and what it takes.

        Raises:
            KvsupError: there is none, neither its own nor kvsup's.
        """
        if draft.program:
            path = shutil.which(_program(draft.program, self.folder))
            arguments = self._arguments(path) if path else "is not on this machine"
            if path and not isinstance(arguments, str):
                return path, arguments
            self.found.say(draft, None, draft.program, f"{arguments}; kvsup's own is used")
        if self.default is None:
            raise KvsupError("no llama-server found; run kvsup setup, and then this again")
        arguments = self._arguments(self.default)
        if isinstance(arguments, str):
            raise KvsupError(arguments)
        return self.default, arguments

    def _arguments(self, path: str) -> Mapping[str, Argument] | str:
        """Return what a llama-server takes, or why it cannot be asked."""
        if path not in self._known:
            try:
                self._known[path] = parse_arguments(help_of(path, inherited=os.environ))
            except ValueError as error:
                self._known[path] = str(error)
        return self._known[path]


def _settle(found: Found, folder: str, *, has_host: bool) -> None:
    """Read each model's arguments by the llama-server that will run it, and name that one.

    Where all have the same, which kvsup would not take by itself, it is the host's, unless the host
    has a file already.
    """
    servers = _Servers(found, folder)
    chosen: list[tuple[Draft, str]] = []
    for draft in found.kept:
        if draft.settings is None:
            continue
        path, arguments = servers.of(draft)
        apply_settings(found, draft, arguments, folder=folder)
        chosen.append((draft, path))
    others = [(draft, path) for draft, path in chosen if not _is_same(path, servers.default)]
    if len({path for _, path in chosen}) == 1 and others and not has_host:
        draft, path = others[0]
        found.host["llama_server"] = Value(path, draft.program)
        return
    for draft, path in others:
        draft.values["llama_server"] = Value(path, draft.program)


def _program(named: str, folder: str) -> str:
    if "/" not in named:
        return named
    return os.path.expanduser(absolute(named, folder))  # noqa: PTH111 - a text


def _is_same(program: str, default: str | None) -> bool:
    return default is not None and Path(program).resolve() == Path(default).resolve()


def _leave_out_known(found: Found, files: Mapping[str, Draft], to: Path) -> None:
    """Leave out models, and drop aliases, whose names other files of the folder have."""
    taken: dict[str, Path] = {}
    for path in toml_files(to) or ():
        source = read_toml(path, str(path))
        if path.name in {paths.HOST_FILE, *files} or isinstance(source, Problem):
            continue
        for model in decode_models(source, {}, stem=path.stem)[0]:
            taken |= dict.fromkeys(_names(model), path)
    for draft in files.values():
        for key in lookup_keys(draft.name)[:1]:
            if key in taken:
                message = f"{draft.name!r} is the name of a model in {taken[key]}"
                found.leave_out(draft, None, "name", message)
        aliases = draft.values.pop("aliases", Value([]))
        kept = [alias for alias in aliases.value if not taken.keys() & lookup_keys(alias)[:1]]
        if kept:
            draft.values["aliases"] = Value(kept, aliases.origin)
        for alias in sorted({*aliases.value} - {*kept}):
            found.say(draft, None, "aliases", f"{alias!r} is the name of a model in {to}")


def _names(model: ModelConfig) -> list[str]:
    return [key for name in (model.name, *model.aliases) for key in lookup_keys(name)[:1]]


def _checked(found: Found, files: dict[str, Draft]) -> dict[str, Draft]:
    """Return those of ``files`` in which the check that ``run`` makes finds nothing wrong.

    It is made on a copy, so that nothing wrong is ever written; what is wrong with the host's
    settings is left out, too.
    """
    while files:
        problems = _problems(found, files)
        if not problems:
            break
        for problem in problems:
            name = Path(problem.source).name
            if name in files:
                found.leave_out(files[name], None, problem.key or "file", problem.message)
            elif problem.key in found.host:
                found.note(None, problem.key, f"{problem.message}; left out")
                del found.host[problem.key]
            else:
                raise ConfigError((problem,))
        files = {name: draft for name, draft in files.items() if not draft.is_left_out}
    return files


def _problems(found: Found, files: Mapping[str, Draft]) -> Sequence[Problem]:
    with tempfile.TemporaryDirectory() as staged:
        folder = Path(staged)
        for name, draft in files.items():
            (folder / name).write_text(model_text(draft, name), "utf-8")
        if found.host:
            (folder / paths.HOST_FILE).write_text(host_text(found), "utf-8")
        try:
            read_configuration(folder, os.environ)
        except ConfigError as error:
            if not error.problems:
                raise
            return error.problems
    return ()


def _add_host(found: Found, to: Path, texts: dict[str, str], *, replaces: bool) -> None:
    """Add the host's file; the keys of one that is there stay as they are without ``--force``."""
    path = to / paths.HOST_FILE
    if not path.exists():
        texts[path.name] = host_text(found)
        return
    source = read_toml(path, str(path))
    if isinstance(source, Problem):
        raise ConfigError((source,))
    wanted = {**source.table, **plain(found.host)}
    if wanted == dict(source.table):
        return
    if replaces:
        texts[path.name] = rewrite(source.text, wanted)
        return
    for key, value in found.host.items():
        if source.table.get(key) != value.value:
            message = f"is there already; write {key} = {value.value!r} into it, or use --force"
            found.notes.append(Problem(str(path), None, key, message))
