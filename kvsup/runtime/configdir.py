"""Read a configuration folder into plans: the only place where configuration files are read."""

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from kvsup.checks import Finding, name_clashes
from kvsup.config import ModelConfig
from kvsup.decode import Source, decode_host, decode_models, decode_stored, variant_name
from kvsup.environment import read_environment
from kvsup.errors import ConfigError, Problem
from kvsup.hostconfig import HostConfig
from kvsup.keys import KeyRing
from kvsup.ollama.access import OriginRules
from kvsup.ollama.names import lookup_keys
from kvsup.plan import Plan
from kvsup.runtime import paths
from kvsup.runtime.keyfile import read_keys
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.planning import Planning
from kvsup.runtime.stores import Offer, Stores
from kvsup.runtime.tomlfile import read_toml
from kvsup.stores.registries import Registries
from kvsup.stores.stored import TEMPLATE, Stored


@dataclass(frozen=True, slots=True)
class Configuration:
    """A folder, decided in full."""

    folder: Path
    host: HostConfig
    plans: tuple[Plan, ...]
    state_dir: Path
    run_dir: Path
    models_dir: Path
    """Of kvsup's own store."""
    keys: KeyRing | None
    """Who may call; None where no key is asked for."""
    read_ns: int = 0
    """When its reading began, as files' times count."""
    left_out: tuple[str, ...] = ()
    """What lies in the sources and is not served, and why, a sentence each."""
    watched: tuple[Path, ...] = ()
    """Folders and files of the sources whose change may mean other models."""
    unfinished: tuple[Path, ...] = ()
    """Files there that are no models yet, and may be once nobody writes them."""


def read_configuration(
    folder: Path,
    environ: Mapping[str, str],
    *,
    in_force: Configuration | None = None,
) -> Configuration:
    """Return the configuration of ``folder``, with Ollama's variables in ``environ`` under it.

    Args:
        folder: with a TOML file for each model.
        environ: the environment.
        in_force: the one that it is to follow in a kvsup that runs: its folders of state and of
            sockets stay, since they are locked, that of models, which is written to, and its API
            keys while kvsup.toml is missing.

    Raises:
        ConfigError: with every problem of every file.
    """
    read_ns = time.time_ns()
    files = toml_files(folder)
    if files is None:
        raise ConfigError(
            f"{folder}: no such folder; make it and write one TOML file a model, "
            "or name another: kvsup run CONFIG_DIR"
        )
    reading = _Reading(folder, environ, files)
    host = reading.host(in_force)
    keys = reading.keys(host, in_force=in_force.keys if in_force else None)
    state = in_force.state_dir if in_force else paths.state_dir(host.state_dir)
    run = in_force.run_dir if in_force else paths.run_dir(state)
    planning = Planning(state, run, environ)
    models = reading.models()
    plans = [reading.plan(model, source, planning) for model, source in models]
    found, offer = reading.offered(planning, [model for model, _ in models])
    if error := reading.error():
        raise error
    return Configuration(
        folder,
        host,
        (*(plan for plan in plans if plan), *found),
        state,
        run,
        _models_dir(host, in_force),
        keys,
        read_ns,
        left_out=offer.left_out,
        watched=offer.watched,
        unfinished=offer.unfinished,
    )


def toml_files(folder: Path) -> list[Path] | None:
    """Return the files of a configuration folder, None where there is no such folder.

    Hidden ones are left out, since editors keep locks and drafts: ``.#chat.toml`` is Emacs's, a
    link to nowhere.

    Raises:
        ConfigError: it cannot be listed.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names are what is wanted
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        problem = Problem(_shown(folder), None, "", f"cannot be listed: {error.strerror}")
        raise ConfigError((problem,)) from error
    return sorted(folder / n for n in names if n.endswith(".toml") and not n.startswith("."))


def read_host(folder: Path, environ: Mapping[str, str]) -> tuple[HostConfig, ConfigError | None]:
    """Return the host's settings, as far as they can be read, and what is wrong with them.

    A folder that is not there has none.
    """
    files, unlisted = [], None
    try:
        files = toml_files(folder) or []
    except ConfigError as error:
        unlisted = error
    reading = _Reading(folder, environ, [path for path in files if path.name == paths.HOST_FILE])
    host = reading.host()
    return host, unlisted or reading.error()


@dataclass(slots=True)
class _Reading:
    """One pass over a folder; problems are gathered and raised at the end."""

    folder: Path
    environ: Mapping[str, str]
    files: Sequence[Path]
    """What is read of it, listed once: a folder that is replaced meanwhile is not an empty one."""
    _problems: list[Problem] = field(default_factory=list)
    _stored: dict[str, Stored] = field(default_factory=dict)
    """Models of stores that files name, by what they are called in the files."""
    _stores: Stores = field(init=False)
    _environment: Source = field(init=False)
    _host_file: Source | None = field(init=False)
    """None, too, where it is there and cannot be read."""
    _model_files: list[tuple[Path, Source]] = field(init=False)

    def __post_init__(self) -> None:
        environment = read_environment(self.environ)
        self._environment = Source("environment", environment.table, spelling=environment.spelling)
        host_file = self.folder / paths.HOST_FILE
        self._host_file = self._source(host_file) if host_file in self.files else None
        keys = self._key_file()
        models = [
            f for f in self.files if f != host_file and _absolute(f.name, self.folder) != keys
        ]
        self._model_files = [(path, source) for path in models if (source := self._source(path))]

    def error(self) -> ConfigError | None:
        """Return what was found, by file and line; None if all is well."""
        if not self._problems:
            return None
        order = sorted(self._problems, key=lambda p: (p.source, p.line or 0))
        return ConfigError(tuple(dict.fromkeys(order)))

    def host(self, in_force: Configuration | None = None) -> HostConfig:
        """Return the host's settings, with paths made absolute."""
        host, problems = decode_host(self._host_file, self._environment)
        self._problems += problems
        try:
            OriginRules(host.origins)
        except ValueError as error:
            self._add("origins", str(error), self._environment)
        try:
            Registries.parse(host.registries)
        except ValueError as error:
            self._add("registries", str(error), self._environment)
        if host.models_dir is not None:
            models = str(_absolute(host.models_dir, self.folder))
            host = msgspec.structs.replace(host, models_dir=models)
        own = OwnStore(_models_dir(host, in_force))
        self._stores = Stores(host.sources, self.environ, own=own, base=self.folder)
        for key, message in self._stores.missing():
            self._add(f"sources.{key}", message, self._host_file or self._environment)
        if host.state_dir is not None:
            state = str(_absolute(host.state_dir, self.folder))
            host = msgspec.structs.replace(host, state_dir=state)
        if (keys := self._key_file()) is not None:
            host = msgspec.structs.replace(host, api_keys=str(keys))
        return host

    def keys(self, host: HostConfig, *, in_force: KeyRing | None) -> KeyRing | None:
        """Return the API keys, None where the host names no file of them.

        Those ``in_force`` go only with the line in kvsup.toml: a file that is missing or empty for
        a moment, as in a checkout of another branch or on a full disk, opens nothing.
        """
        if host.api_keys is None:
            if in_force is not None and not (self._host_file and self._host_file.table):
                gone = (
                    "is gone or empty, which named the API keys; put it back, or start kvsup again"
                )
                self._problems.append(
                    Problem(_shown(self.folder / paths.HOST_FILE), None, "", gone)
                )
            return None
        path = Path(host.api_keys)
        keys, problems = read_keys(path, _shown(path))
        self._problems += problems
        return keys

    def models(self) -> list[tuple[ModelConfig, Source]]:
        """Return every model and variant with the file it stands in."""
        shared = self._shared()
        models: list[tuple[ModelConfig, Source]] = []
        for path, source in self._model_files:
            decoded, problems = decode_models(
                source, shared, stem=path.stem, stored=self._said_by_store
            )
            self._problems += problems
            located = (self._located(model, source, path.parent) for model in decoded)
            models += [(model, source) for model in located if model is not None]
        sources = {id(model): source for model, source in models}
        for model, finding in name_clashes(model for model, _ in models):
            self._note(model, sources[id(model)], finding)
        return models

    def plan(self, model: ModelConfig, source: Source, planning: Planning) -> Plan | None:
        """Return the plan of ``model``, or None with its problems noted."""
        planned = planning.plan(model, self._stored.get(model.name))
        for finding in planned.findings:
            evidence = planned.evidence.get(finding[1], "")
            self._note(model, source, finding, evidence=evidence)
        return planned.plan

    def offered(self, planning: Planning, taken: Iterable[ModelConfig]) -> tuple[list[Plan], Offer]:
        """Return the plans of what the sources hold, but for names that files have ``taken``."""
        names = {key for m in taken for n in (m.name, *m.aliases) for key in lookup_keys(n)[:1]}
        offer, shared = self._stores.offer(), self._shared()
        plans: list[Plan] = []
        left_out, unfinished = list(offer.left_out), []
        for stored in offer.models:
            if not names.isdisjoint(lookup_keys(stored.name)):
                continue
            try:
                table = {"model": stored.weights, **stored.table}
                model = decode_stored(stored.name, table, shared, source=stored.reference)
            except ValueError as error:
                left_out.append(f"{stored.reference}: {error}")
                continue
            if isinstance(wrong := planning.binary(model), str):
                self._add("llama_server", wrong, self._host_file or self._environment)
                break
            planned = planning.plan(model, stored)
            if planned.plan is not None:
                plans.append(planned.plan)
                continue
            unfinished.append(Path(stored.weights))
            left_out += [f"{stored.reference}: {message}" for _, message in planned.findings]
        return plans, replace(offer, left_out=tuple(left_out), unfinished=tuple(unfinished))

    def _shared(self) -> Mapping[str, Any]:
        """Return the keys of the host that are defaults for every model, with paths."""
        shared = {**self._environment.table, **(self._host_file.table if self._host_file else {})}
        if isinstance(server := shared.get("llama_server"), str):
            shared["llama_server"] = _program(server, self.folder)
        return shared

    def _said_by_store(self, named: object) -> Mapping[str, Any]:
        """Return the keys that a store has for a model, if it is one of a store."""
        try:
            stored = self._stores.resolve(named) if isinstance(named, str) else None
        except ValueError:  # told where the path is wanted
            return {}
        return stored.table if stored else {}

    def _located(self, model: ModelConfig, source: Source, folder: Path) -> ModelConfig | None:
        """Return ``model`` with absolute paths; None with a problem where a store has it not."""
        found = {}
        for key in ("model", "draft_model"):
            try:
                stored = self._stores.resolve(getattr(model, key) or "")
            except ValueError as error:
                self._note(model, source, (key, str(error)))
                return None
            if stored is not None:
                found[key] = stored.weights
                if key == "model":
                    self._stored[model.name] = stored
        return _with_paths(msgspec.structs.replace(model, **found), folder)

    def _source(self, path: Path) -> Source | None:
        """Return a TOML file, parsed; None with its problem noted."""
        source = read_toml(path, _shown(path))
        if isinstance(source, Problem):
            self._problems.append(source)
            return None
        return source

    def _key_file(self) -> Path | None:
        """Return the file of API keys that kvsup.toml names; it is no model's, wherever it lies."""
        named = self._host_file.table.get("api_keys") if self._host_file else None
        return _absolute(named, self.folder) if isinstance(named, str) else None

    def _note(
        self, model: ModelConfig, source: Source, finding: Finding, *, evidence: str = ""
    ) -> None:
        """Note a finding where its key was written: variant, model, kvsup.toml or environment."""
        key, message = finding
        top = key.partition(".")[0]
        variant = _variant_of(model, source)
        if variant and (top == "name" or top in source.table["variants"][variant]):
            self._problems.append(source.problem(f"variants.{variant}.{key}", message))
        elif top in source.table or top in {"name", "model"}:
            self._problems.append(source.problem(key, message))
        else:
            self._add(key, message, source)
        self._problems[-1] = replace(self._problems[-1], evidence=evidence)

    def _add(self, key: str, message: str, otherwise: Source) -> None:
        """Note a problem in kvsup.toml or the environment if it has the key, else elsewhere."""
        holders = [s for s in (self._host_file, self._environment) if s and key in s.table]
        self._problems.append((holders or [otherwise])[0].problem(key, message))


def _models_dir(host: HostConfig, in_force: Configuration | None) -> Path:
    return in_force.models_dir if in_force else paths.models_dir(host.models_dir)


def _variant_of(model: ModelConfig, source: Source) -> str | None:
    base = str(source.table.get("name", Path(source.name).stem))
    variants = source.table.get("variants", {})
    if not isinstance(variants, Mapping):
        return None
    return next((v for v in variants if variant_name(base, v) == model.name), None)


def _with_paths(model: ModelConfig, folder: Path) -> ModelConfig:
    return msgspec.structs.replace(
        model,
        model=str(_absolute(model.model, folder)),
        mmproj=None if model.mmproj is None else str(_absolute(model.mmproj, folder)),
        draft_model=None
        if model.draft_model is None
        else str(_absolute(model.draft_model, folder)),
        adapters=tuple(str(_absolute(path, folder)) for path in model.adapters),
        template=model.template
        if model.template is None or model.template == TEMPLATE
        else str(_absolute(model.template, folder)),
        llama_server=None if model.llama_server is None else _program(model.llama_server, folder),
    )


def _absolute(text: str, folder: Path) -> Path:
    """Return the path that ``text`` names.

    ``kvsup:NAME`` is a model that ``kvsup setup`` fetched, ``~`` the home; other relative paths
    start in ``folder``. Links stay as they are: resolving would lose the names the user chose.
    """
    if text.startswith(paths.FETCHED):
        return paths.cache_dir() / "models" / text.removeprefix(paths.FETCHED)
    return Path(os.path.abspath(folder / os.path.expanduser(text)))  # noqa: PTH100, PTH111 - see above; "~nobody" stays as it is


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
