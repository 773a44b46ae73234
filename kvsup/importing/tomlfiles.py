"""What was found, as TOML files with a comment on where each value comes from."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import tomli
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Item, Table

from kvsup.config import ModelConfig
from kvsup.errors import Problem
from kvsup.filenames import toml_name
from kvsup.hostconfig import HostConfig
from kvsup.importing.found import Draft, Found, Value

_MODEL_KEYS = [field.encode_name for field in msgspec.structs.fields(ModelConfig)]
_HOST_KEYS = [field.encode_name for field in msgspec.structs.fields(HostConfig)]


def model_files(found: Found, taken: Collection[str]) -> dict[str, Draft]:
    """Return the models that are kept by the names of their files, which are none of ``taken``."""
    files: dict[str, Draft] = {}
    for draft in found.kept:
        files[toml_name(draft.name, {*taken, *files})] = draft
    return files


def model_text(draft: Draft, file: str) -> str:
    """Return the TOML file of a model, with what has no equivalent in its first comments."""
    tables = {"options": draft.options, "env": draft.env}
    values = {**draft.values, **{key: Value(held) for key, held in tables.items() if held}}
    if file.removesuffix(".toml") != draft.name:
        values["name"] = Value(draft.name)
    comments = [f"Imported from {draft.title}.", *draft.remarks]
    if draft.notes:
        comments += ["", "Without an equivalent here:", *map(_noted, draft.notes)]
    return _text(comments, values, _MODEL_KEYS)


def host_text(found: Found) -> str:
    """Return ``kvsup.toml``."""
    return _text([f"Imported from {found.source}."], found.host, _HOST_KEYS)


def plain(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return values without where they come from."""
    return {
        key: plain(value.value) if isinstance(value.value, dict) else value.value
        for key, value in values.items()
    }


def _noted(note: Problem) -> str:
    return f"- {note.key}: {note.message}" + (f" (line {note.line})" if note.line else "")


def _text(comments: list[str], values: Mapping[str, Value], order: list[str]) -> str:
    document = tomlkit.document()
    for comment in comments:
        document.add(tomlkit.comment(_line(comment)))
    document.add(tomlkit.nl())
    for key in sorted(values, key=order.index):
        value = values[key]
        if isinstance(value.value, dict):
            table = tomlkit.table()
            _fill(table, value.value)
            document.add(key, table)
        else:
            document.add(key, _item(value))
    text = tomlkit.dumps(document).replace("# \n", "#\n")
    wanted = plain(values)
    try:
        is_right = tomli.loads(text) == wanted
    except tomli.TOMLDecodeError:
        is_right = False
    return text if is_right else tomlkit.dumps(wanted)


def _fill(table: Table, values: Mapping[str, Value]) -> None:
    for key in sorted(values):
        table.add(key, _item(values[key]))


def _item(value: Value) -> Item:
    try:
        item = _written(value.value)
    except (TOMLKitError, ValueError):
        item = tomlkit.item(value.value)
    return item.comment(_line(value.origin)) if value.origin else item


def _written(value: object) -> Item:
    """Return a value as a person would write it: texts over several lines, tables in one each."""
    if isinstance(value, str) and "\n" in value:
        return tomlkit.string(value, multiline=True)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return tomlkit.item(value)
    array = tomlkit.array().multiline(multiline=True)
    for one in value:
        table = tomlkit.inline_table()
        table.update(one)
        array.append(table)
    return array


def _line(text: str) -> str:
    """Return ``text`` as one line without characters that a comment cannot hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
