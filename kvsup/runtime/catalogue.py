"""Write, copy and delete the TOML files of models in the configuration folder, never weights.

Whatever a file loses, the trash folder has as it was before: ``NAME-1.toml``, ``NAME-2.toml`` …
The caller reads the configuration again afterwards.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from kvsup.decode import Source, overlay, variant_name
from kvsup.errors import ConfigError, Problem, RequestError, Unsupported
from kvsup.filenames import toml_name
from kvsup.ollama.names import DEFAULT_TAG, display_name, is_same_name, valid_name
from kvsup.plan import Plan
from kvsup.runtime.paths import HOST_FILE
from kvsup.runtime.tomlfile import read_toml
from kvsup.stores.stored import has_file
from kvsup.tomltext import rewrite

Table = Mapping[str, Any]

_OWN = ("aliases", "preload", "pin")
"""Keys of one variant that a copy of it has not: a name is one model's, and memory was its due."""

_OF_A_STORE = "# What a store has, with what it says of it; keys written here come first.\n"

_NEW_MODE = 0o644
"""Of a file that is not made from another."""


def copy_model(
    folder: Path,
    source: Plan,
    destination: str,
    *,
    existing: Plan | None,
    trash: Path,
    model: str | None = None,
) -> Path:
    """Write a file that serves ``source`` under the name ``destination`` too; return its path.

    It has what the source has, a variant's values over its model's, but not its aliases,
    ``preload``, ``pin`` and variants. A copy onto itself, or onto an alias of itself, is none.

    Args:
        folder: the configuration folder.
        source: the model, or a variant of one.
        destination: the new name.
        existing: what has this name now; it is deleted as ``delete_model`` does.
        trash: folder for what is replaced; made if missing.
        model: what its weights are named by, if not as the source names them.

    Raises:
        RequestError: ``destination`` is no model name, or the model that ``source`` is a variant
            of, with which it would go.
        ConfigError: a file cannot be read or written, or no longer holds the model.
    """
    if not valid_name(destination):
        raise RequestError(f'destination "{destination}" is invalid')
    if existing is not None and existing.name == source.name:
        return _file_of(folder, source)
    if existing is not None and not has_file(existing.model.source):
        existing = None  # the new file takes the name, and the store keeps its model
    text, values, mode = _described(folder, source, destination, existing)
    name = display_name(destination).removesuffix(f":{DEFAULT_TAG}")
    wanted = {"name": name, **{k: v for k, v in values.items() if k not in _OWN}}
    wanted |= {} if model is None else {"model": model}
    with _writing(folder, rewrite(text, wanted), mode=mode) as written:
        if existing is not None:
            delete_model(folder, existing, destination, trash=trash)
        target = _free_path(folder, name)
        written.replace(target)
    return target


def _described(
    folder: Path, source: Plan, destination: str, existing: Plan | None
) -> tuple[str, Table, int]:
    """Return the file of ``source`` as text, its keys, and its mode; raises as ``copy_model``."""
    if not has_file(source.model.source):
        return _OF_A_STORE, {"model": source.model.source}, _NEW_MODE
    path = _file_of(folder, source)
    file = _read(path)
    variant, base = _variant_of(file, path, source), _base_name(file, path)
    if existing is not None and variant is not None and is_same_name(destination, base):
        raise RequestError(
            f"'{source.name}' is a variant of '{destination}' and would go with it; "
            "copy it to another name first"
        )
    values = overlay(file.table, file.table["variants"][variant] if variant else {})
    return file.text, values, _mode(path)


def write_model(
    folder: Path, name: str, values: Table, comment: str, *, existing: Plan | None, trash: Path
) -> Callable[[], None]:
    """Write the file of a new model; return what takes it back.

    Args:
        folder: the configuration folder.
        name: of the model.
        values: its keys, but for the name.
        comment: the first line.
        existing: what has this name now; it is deleted as ``delete_model`` does.
        trash: folder for what is replaced; made if missing.

    Raises:
        ConfigError: a file cannot be read or written; nothing is changed.
    """
    name = display_name(name).removesuffix(f":{DEFAULT_TAG}")
    replaced = existing if existing is not None and has_file(existing.model.source) else None
    before = None if replaced is None else _read(_file_of(folder, replaced)).text
    with _writing(
        folder, rewrite(f"# {comment}\n", {"name": name, **values}), mode=_NEW_MODE
    ) as new:
        if replaced is not None:
            delete_model(folder, replaced, name, trash=trash)
        target = _free_path(folder, name)
        new.replace(target)

    def undo() -> None:
        target.unlink(missing_ok=True)
        if replaced is not None and before is not None:
            path = _file_of(folder, replaced).resolve()
            with _writing(path.parent, before, mode=_NEW_MODE) as old:
                old.replace(path)

    return undo


def reference_of(folder: Path, plan: Plan) -> tuple[str, str]:
    """Return the name of a model as its file or store has it, and what its weights are named by.

    Raises:
        ConfigError: its file cannot be read.
    """
    if not has_file(plan.model.source):
        return plan.name, plan.model.source
    path = _file_of(folder, plan)
    file = _read(path)
    return _base_name(file, path), str(file.table.get("model", ""))


def settings_of_file(folder: Path, plan: Plan) -> Table:
    """Return the keys of a model's file, a variant's over its model's, but for its names.

    A model without a file has none. Raises ``ConfigError`` where it cannot be read.
    """
    if not has_file(plan.model.source):
        return {}
    path = _file_of(folder, plan)
    file = _read(path)
    variant = _variant_of(file, path, plan)
    values = overlay(file.table, file.table["variants"][variant] if variant else {})
    return {k: v for k, v in values.items() if k not in {"name", *_OWN}}


def references_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file of the folder that can be read with each text that it names weights by."""
    for path in sorted(folder.glob("[!.]*.toml")):
        source = read_toml(path, str(path))
        if isinstance(source, Problem):
            continue
        variants = source.table.get("variants")
        tables = variants.values() if isinstance(variants, Mapping) else ()
        for table in (source.table, *(table for table in tables if isinstance(table, Mapping))):
            for key in ("model", "draft_model"):
                if isinstance(text := table.get(key), str):
                    yield path, text


def delete_model(folder: Path, plan: Plan, name: str, *, trash: Path) -> bool:
    """Take ``name``, one of the names of ``plan``, out of the configuration folder.

    The name of a model takes its file, with all variants in it; that of a variant only its table;
    an alias only itself. Returns whether the file is gone.

    Raises:
        ConfigError: a file cannot be read or written, or no longer holds the name.
        Unsupported: it has no file, but lies in a store that is only read.
    """
    if not has_file(plan.model.source):
        raise Unsupported(
            f"'{plan.name}' lies in a store ({plan.model.source}), where kvsup deletes nothing;"
            " delete it with the program that keeps the store, or drop the store from [sources]"
        )
    path = _file_of(folder, plan)
    file = _read(path)
    left = _without(file, path, plan, name)
    _keep(path, trash)
    if left is not None:
        real = path.resolve()  # a link stays one
        with _writing(real.parent, rewrite(file.text, left), mode=_mode(path)) as written:
            written.replace(real)
        return False
    try:
        path.unlink()
        _sync(folder)
    except OSError as error:
        raise ConfigError(f"{path} cannot be removed: {error}") from error
    return True


def _without(file: Source, path: Path, plan: Plan, name: str) -> Table | None:
    """Return what is left of ``file`` without ``name``; None if that is nothing."""
    variant = _variant_of(file, path, plan)
    if is_same_name(name, plan.name):
        return None if variant is None else _with_variant(file.table, variant, None)
    holder = file.table if variant is None else file.table["variants"][variant]
    aliases = holder.get("aliases")
    known = [str(alias) for alias in aliases] if isinstance(aliases, list) else []
    left = [alias for alias in known if not is_same_name(alias, name)]
    if left == known:
        raise _changed(path, name)
    changed = {key: value for key, value in holder.items() if key != "aliases"}
    changed |= {"aliases": left} if left else {}
    return changed if variant is None else _with_variant(file.table, variant, changed)


def _with_variant(table: Table, variant: str, changed: Table | None) -> Table:
    """Return ``table`` with one variant replaced, or without it."""
    variants = {name: value for name, value in table["variants"].items() if name != variant}
    variants |= {} if changed is None else {variant: changed}
    rest = {key: value for key, value in table.items() if key != "variants"}
    return {**rest, **({"variants": variants} if variants else {})}


def _variant_of(file: Source, path: Path, plan: Plan) -> str | None:
    """Return which variant of ``file`` the plan is; None where it is the model itself."""
    base = _base_name(file, path)
    if plan.name == base:
        return None
    variants = file.table.get("variants")
    if isinstance(variants, Mapping):
        for variant, table in variants.items():
            if variant_name(base, variant) == plan.name and isinstance(table, Mapping):
                return str(variant)
    raise _changed(path, plan.name)


def _base_name(file: Source, path: Path) -> str:
    return str(file.table.get("name", path.stem))


def _file_of(folder: Path, plan: Plan) -> Path:
    return folder / Path(plan.model.source).name


def _read(path: Path) -> Source:
    source = read_toml(path, str(path))
    if isinstance(source, Problem):
        raise ConfigError((source,))
    return source


def _changed(path: Path, name: str) -> ConfigError:
    return ConfigError(f"{path} no longer holds '{name}'; run kvsup reload")


def _free_path(folder: Path, name: str) -> Path:
    """Return a path that no file has, whatever the case, and that is no host's file."""
    taken = {HOST_FILE, *(path.name.lower() for path in folder.iterdir())}
    return folder / toml_name(name, taken)


def _keep(path: Path, trash: Path) -> None:
    """Copy a file to the trash folder, under a name that is free there."""
    try:
        trash.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = path.read_bytes()
        for n in count(1):
            try:
                kept = (trash / f"{path.stem}-{n}.toml").open("xb")
            except FileExistsError:
                continue
            with kept:
                kept.write(content)
                os.fsync(kept.fileno())
            _sync(trash)
            return
    except OSError as error:
        raise ConfigError(f"{path} cannot be kept in {trash}: {error}") from error


@contextmanager
def _writing(folder: Path, text: str, *, mode: int) -> Iterator[Path]:
    """Hold a new file beside its place, safe on disk; whoever is inside renames it."""
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".new")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error
    written = Path(name)
    try:
        with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, no path
            file.write(text)
            file.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
        yield written
        _sync(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error
    finally:
        written.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _sync(folder: Path) -> None:
    """Have the entries of a folder outlive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
