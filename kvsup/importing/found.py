"""What an import finds: models and settings of the host in kvsup's keys, and notes."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvsup.errors import Problem
from kvsup.llama.helptext import Argument
from kvsup.ollama.names import lookup_keys, valid_name

_NOT_OF_NAMES = re.compile(r"[^A-Za-z0-9_.:/-]+")


@dataclass(frozen=True, slots=True)
class Value:
    """The value of a key of kvsup, and what it was where it came from."""

    value: Any
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """One argument of a llama-server as someone wrote it."""

    argument: Argument
    is_on: bool
    """False where it is switched off."""
    values: tuple[str, ...]
    line: int | None
    shown: str
    """As it was written."""
    words: tuple[str, ...] = ()
    """As it stands on a command line."""


Settings = Callable[[Mapping[str, Argument]], Iterable[Setting | Problem]]
"""The arguments of a model, once it is known which ones its llama-server takes."""


@dataclass(slots=True)
class Draft:
    """One model, as far as it is known."""

    name: str
    line: int | None
    title: str
    """What it was: ``model "qwen3" of config.yaml:12``."""
    remarks: Sequence[str] = ()
    """What its owner wrote of it."""
    values: dict[str, Value] = field(default_factory=dict)
    """By keys of a model's file."""
    options: dict[str, Value] = field(default_factory=dict)
    env: dict[str, Value] = field(default_factory=dict)
    program: str = ""
    """The llama-server that its command names; empty where none is named."""
    settings: Settings | None = None
    """None where a model has no command line."""
    takes_aliases: bool = False
    """Whether an ``--alias`` among its settings is a name that clients use."""
    notes: list[Problem] = field(default_factory=list)
    is_left_out: bool = False


@dataclass(slots=True)
class Found:
    """What a foreign configuration holds."""

    source: str
    """The file as the operator named it."""
    drafts: list[Draft] = field(default_factory=list)
    host: dict[str, Value] = field(default_factory=dict)
    notes: list[Problem] = field(default_factory=list)

    def note(self, line: int | None, key: str, message: str) -> Problem:
        """Note what concerns no single model; the same is noted once."""
        problem = Problem(self.source, line, key, message)
        if problem not in self.notes:
            self.notes.append(problem)
        return problem

    def say(self, draft: Draft, line: int | None, key: str, message: str) -> None:
        """Note what of a model has no equivalent."""
        problem = Problem(self.source, line or draft.line, key, message)
        if problem not in draft.notes:
            draft.notes.append(problem)

    def leave_out(self, draft: Draft, line: int | None, key: str, message: str) -> None:
        """Note why a model cannot be served, and write no file for it."""
        self.say(draft, line, key, f"{message}; {draft.name} is left out")
        draft.is_left_out = True

    @property
    def kept(self) -> list[Draft]:
        """The models that get a file."""
        return [draft for draft in self.drafts if not draft.is_left_out]

    @property
    def all_notes(self) -> list[Problem]:
        """Every note by its line, those of the whole file first."""
        own = [note for draft in self.drafts for note in draft.notes]
        told = dict.fromkeys((*self.notes, *own))  # what lies under all models once
        return sorted(told, key=lambda note: (note.source, note.line or 0))


def name_drafts(found: Found) -> None:
    """Give each draft a name that kvsup takes and no other has, and drop aliases that clash."""
    taken: set[str] = set()
    for draft in found.drafts:
        wanted, draft.name = draft.name, _valid(draft.name)
        if draft.name != wanted:
            message = f"{wanted!r} is no model name here: letters, digits, . _ - and one :tag are"
            found.say(draft, draft.line, "name", f"{message}; it is {draft.name!r}")
        keys = lookup_keys(draft.name)[:1]
        if not keys or keys[0] in taken:
            found.leave_out(draft, draft.line, "name", f"{draft.name!r} is another model's name")
        taken.update(keys)
    for draft in found.kept:
        kept = []
        held = draft.values.pop("aliases", Value([]))
        for alias in held.value:
            keys = lookup_keys(alias)[:1]
            if not keys:
                message = (
                    f"{alias!r} is no model name here: letters, digits, . _ - and one :tag are"
                )
                found.say(draft, None, "aliases", message)
            elif keys[0] not in taken:
                taken.update(keys)
                kept.append(alias)
            elif keys != lookup_keys(draft.name)[:1]:
                found.say(draft, None, "aliases", f"{alias!r} is the name of another model, too")
        if kept:
            draft.values["aliases"] = Value(kept, held.origin)


def absolute(path: str, folder: str) -> str:
    """Return a path as kvsup's files hold it: from the root, or from the home by ``~``.

    Relative ones begin in ``folder``: kvsup's own files may lie elsewhere than the foreign one.
    """
    return path if path.startswith("~") else os.path.normpath(os.path.join(folder, path))  # noqa: PTH118 - texts


def _valid(name: str) -> str:
    if valid_name(name):
        return name
    head, *tags = _NOT_OF_NAMES.sub("-", name).split(":")
    head = "/".join(part.strip("-.") or "model" for part in head.split("/")[-3:])
    tag = "-".join(tag.strip("-.") for tag in tags if tag.strip("-."))
    made = f"{head[:80]}:{tag[:80]}" if tag else head[:80]
    return made if valid_name(made) else "model"
