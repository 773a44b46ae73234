"""Read a configuration folder into plans: the only place where configuration files are read."""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec
import tomli

from kvsup.checks import model_findings, name_clashes
from kvsup.config import HostConfig, ModelConfig
from kvsup.decode import Source, decode_host, decode_models
from kvsup.environment import read_environment
from kvsup.errors import ConfigError, Problem
from kvsup.gguf import GGUFError, Metadata, read_metadata_of, split_paths
from kvsup.llama.argv import build_environment
from kvsup.llama.binary import Binary
from kvsup.modelshape import shape_of
from kvsup.plan import ModelFile, Plan, make_plan
from kvsup.runtime import paths
from kvsup.runtime.binaries import default_binary, probe


@dataclass(frozen=True, slots=True)
class Configuration:
    """A folder, decided in full."""

    folder: Path
    host: HostConfig
    plans: tuple[Plan, ...]
    state_dir: Path
    run_dir: Path


@dataclass(slots=True)
class _Reading:
    folder: Path
    environ: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)
    binaries: dict[str, Binary | str] = field(default_factory=dict)
    """What each path is, or why it cannot be used."""

    def sources(self) -> list[tuple[Path, Source]]:
        """Return every TOML file of the folder that can be parsed, by name."""
        found = []
        for path in sorted(self.folder.glob("*.toml")):
            name = _shown(path)
            try:
                text = path.read_text("utf-8")
                found.append((path, Source(name, tomli.loads(text), text)))
            except (OSError, UnicodeDecodeError) as error:
                self.problems.append(Problem(name, None, "", f"cannot be read: {error}"))
            except tomli.TOMLDecodeError as error:
                line = re.search(r"at line (\d+)", str(error))
                self.problems.append(
                    Problem(name, int(line[1]) if line else None, "", f"is no TOML: {error}")
                )
        return found

    def binary(self, path: str, state: Path) -> Binary | str:
        """Return the binary at ``path``, asked once in this reading, or what is wrong with it."""
        if path not in self.binaries:
            bare = build_environment(
                self.environ, ModelConfig(model=""), config_home="/nonexistent"
            )
            bare.pop("LLAMA_SERVER_ROUTER_PORT")
            try:
                self.binaries[path] = probe(path, state=state, environment=bare)
            except ValueError as error:
                self.binaries[path] = str(error)
        return self.binaries[path]


def read_configuration(folder: Path, environ: Mapping[str, str]) -> Configuration:
    """Return the configuration of ``folder``, with Ollama's variables in ``environ`` under it.

    Raises:
        ConfigError: with every problem of every file.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder; make it and write one TOML file a model, "
            "or name another: kvsup run CONFIG_DIR"
        )
    reading = _Reading(folder, environ)
    host, below, files = _host_and_files(reading)
    models = _models(reading, below, files)
    state = paths.state_dir(host.state_dir)
    run = paths.run_dir(state)
    plans = [_plan(reading, model, source, state, run) for model, source in models]
    if reading.problems:
        order = sorted(reading.problems, key=lambda p: (p.source, p.line or 0))
        raise ConfigError(tuple(dict.fromkeys(order)))
    return Configuration(folder, host, tuple(p for p in plans if p), state, run)


def _host_and_files(
    reading: _Reading,
) -> tuple[HostConfig, dict[str, object], list[tuple[Path, Source]]]:
    environment = read_environment(reading.environ)
    below = Source("environment", environment.table, spelling=environment.spelling)
    files = reading.sources()
    own = next((source for path, source in files if path.name == paths.HOST_FILE), None)
    host, problems = decode_host(own, below)
    reading.problems += problems
    if host.state_dir is not None:
        state = _absolute(host.state_dir, reading.folder)
        host = msgspec.structs.replace(host, state_dir=str(state))
    table = {**environment.table, **(own.table if own else {})}
    if isinstance(server := table.get("llama_server"), str):
        table["llama_server"] = _program(server, reading.folder)
    return host, table, [(path, source) for path, source in files if path.name != paths.HOST_FILE]


def _models(
    reading: _Reading, below: dict[str, object], files: list[tuple[Path, Source]]
) -> list[tuple[ModelConfig, Source]]:
    models: list[tuple[ModelConfig, Source]] = []
    for path, source in files:
        decoded, problems = decode_models(source, below, stem=path.stem)
        reading.problems += problems
        models += [(_with_paths(model, path.parent), source) for model in decoded]
    sources = {id(model): source for model, source in models}
    for model, (key, message) in name_clashes(model for model, _ in models):
        reading.problems.append(
            sources[id(model)].problem(_place(model, source=sources[id(model)], key=key), message)
        )
    if not models and not reading.problems:
        reading.problems.append(
            Problem(
                _shown(reading.folder), None, "",
                'holds no model; write one TOML file a model, e.g. model = "model.gguf"',
            )
        )  # fmt: skip
    return models


def _plan(
    reading: _Reading, model: ModelConfig, source: Source, state: Path, run: Path
) -> Plan | None:
    """Return the plan of ``model``, or None with its problems noted."""
    path = model.llama_server or default_binary(paths.cache_dir())
    binary = reading.binary(path, state) if path else "none found; run kvsup setup"
    findings: list[tuple[str, str]] = []
    if isinstance(binary, str):
        findings.append(("llama_server", binary))
    file = _model_file(model, findings)
    findings += model_findings(
        model,
        binary=None if isinstance(binary, str) else binary,
        shape=None if file is None else file.shape,
    )
    for key, message in findings:
        reading.problems.append(source.problem(_place(model, source=source, key=key), message))
    if findings or file is None or isinstance(binary, str):
        return None
    return make_plan(model, binary, file, inherited=reading.environ, run_dir=str(run))


def _model_file(model: ModelConfig, findings: list[tuple[str, str]]) -> ModelFile | None:
    beside = {"mmproj": model.mmproj, "template": model.template}
    missing = [key for key, named in beside.items() if named and not Path(named).is_file()]
    findings += [(key, f"no such file: {beside[key]}") for key in missing]
    path = Path(model.model)
    if not path.is_file():
        findings.append(("model", f"no such file: {path}; write the path of a GGUF file"))
        return None
    try:
        parts = split_paths(path)
        headers = [_metadata(part, _stamp(part)) for part in parts]
        shape = shape_of(headers[0])
    except (GGUFError, OSError) as error:
        findings.append(("model", f"{path}: {error}"))
        return None
    if missing:
        return None
    weights = [*parts, *(Path(named) for named in (model.mmproj,) if named)]
    others = [Path(named) for named in beside.values() if named]
    return ModelFile(
        metadata=headers[0],
        shape=shape,
        n_params=sum(header.n_params for header in headers),
        size_bytes=sum(weight.stat().st_size for weight in weights),
        modified_ns=path.stat().st_mtime_ns,
        stamp=";".join(_stamp(file) for file in (*parts, *others)),
    )


def _stamp(path: Path) -> str:
    """Return what changes when the file is replaced or written."""
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


@lru_cache(maxsize=256)
def _metadata(path: Path, _stamped: str) -> Metadata:
    """Read a header once while the file stays the same."""
    return read_metadata_of(path)


def _place(model: ModelConfig, *, source: Source, key: str) -> str:
    """Return the dotted key to point at: in the variant's table if the model is a variant of it."""
    variants = source.table.get("variants", {})
    variant = next((v for v in variants if model.name.endswith((f":{v}", f"-{v}"))), None)
    top = key.split(".", maxsplit=1)[0]
    inside = variant is not None and top in variants[variant]
    return f"variants.{variant}.{key}" if inside else key


def _with_paths(model: ModelConfig, folder: Path) -> ModelConfig:
    return msgspec.structs.replace(
        model,
        model=str(_absolute(model.model, folder)),
        mmproj=None if model.mmproj is None else str(_absolute(model.mmproj, folder)),
        template=None if model.template is None else str(_absolute(model.template, folder)),
        llama_server=None if model.llama_server is None else _program(model.llama_server, folder),
    )


def _absolute(text: str, folder: Path) -> Path:
    """Return the path that ``text`` names.

    ``kvsup:NAME`` is a model that ``kvsup setup`` fetched, ``~`` the home; other relative paths
    start in ``folder``. Links stay as they are: resolving would lose the names the user chose.
    """
    if text.startswith(paths.FETCHED):
        return paths.cache_dir() / "models" / text.removeprefix(paths.FETCHED)
    return Path(os.path.abspath(folder / Path(text).expanduser()))  # noqa: PTH100 - see above


def _program(text: str, folder: Path) -> str:
    """Return the program's path; a bare name is looked up on PATH."""
    if "/" not in text:
        return shutil.which(text) or text
    return str(_absolute(text, folder))


def _shown(path: Path) -> str:
    """Return the path as short as it is clear: relative where it lies below the current folder."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
