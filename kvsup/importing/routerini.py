"""A preset file of llama.cpp's router, read into kvsup's keys.

A section is a model, ``[*]`` lies under all of them, a key is a flag without its dashes or the name
of its variable; ``;`` and ``#`` begin a comment anywhere in a line (common/preset.cpp, b11434).
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from kvsup.errors import ConfigError, Problem
from kvsup.importing.arguments import TRUE, Pair, of_pairs
from kvsup.importing.commandline import FOREVER
from kvsup.importing.found import Draft, Found, Setting, Value
from kvsup.llama.helptext import Argument

GLOBAL = "*"

_BLANK = re.compile(r"[ \t]*([;#].*)?")
_HEADER = re.compile(r"[ \t]*\[[ \t]*([^\]]*?)[ \t]*\][ \t]*([;#].*)?")
_PAIR = re.compile(r"[ \t]*([a-zA-Z_][\w.-]*)[ \t]*=[ \t]*(.*)")
_COMMENT = re.compile(r"[ \t]*[;#].*")

_OF_ROUTER = {
    "load-on-startup": "load-on-startup", "__PRESET_LOAD_ON_STARTUP": "load-on-startup",
    "stop-timeout": "stop-timeout", "__PRESET_STOP_TIMEOUT": "stop-timeout",
    "dedup-cache-models": "", "__PRESET_DEDUP_CACHE_MODELS": "",
}  # fmt: skip
"""Keys that are no arguments (common/arg.h, b11434)."""


@dataclass(slots=True)
class _Section:
    name: str
    line: int
    pairs: dict[str, Pair] = field(default_factory=dict)


def read_router_ini(text: str, source: str) -> Found:
    """Return what the preset file ``text`` holds.

    Args:
        text: the file.
        source: its path as the operator named it.

    Raises:
        ConfigError: a line is neither a section, nor a pair, nor a comment; or there is no model.
    """
    found = Found(source)
    sections = _sections(text, found)
    below = sections.pop(GLOBAL, _Section(GLOBAL, 1))
    if not sections:
        raise ConfigError((Problem(source, None, "", "holds no section, and so no model"),))
    for section in sections.values():
        title = f"section {json.dumps(section.name, ensure_ascii=False)} of {source}:{section.line}"
        draft = Draft(section.name, section.line, title, takes_aliases=True)
        pairs = {**below.pairs, **section.pairs}
        for pair in list(pairs.values()):
            if pair[0] in _OF_ROUTER:
                del pairs[pair[0]]
                _read_of_router(found, draft, pair)
        draft.values["keep_alive"] = Value(FOREVER, "the router unloads only for others")
        draft.settings = partial(_settings, pairs=tuple(pairs.values()))
        found.drafts.append(draft)
    found.note(None, "port", "the router's clients ask port 8080; kvsup listens on 11434, see port")
    message = (
        "kvsup loads as many models as memory allows; what --models-max limits, by default to 4, is"
        " max_loaded_models of kvsup.toml"
    )
    found.note(None, "models-max", message)
    return found


def _settings(
    arguments: Mapping[str, Argument], *, pairs: tuple[Pair, ...]
) -> Iterable[Setting | Problem]:
    return of_pairs(pairs, arguments)


def _sections(text: str, found: Found) -> dict[str, _Section]:
    """Return the sections by name; one that comes again takes the place of the first."""
    sections: dict[str, _Section] = {}
    section: _Section | None = None
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        if _BLANK.fullmatch(line):
            continue
        if header := _HEADER.fullmatch(line):
            section = sections[header[1]] = _Section(header[1], number)
        elif pair := _PAIR.fullmatch(line):
            key, value = pair[1], _COMMENT.sub("", pair[2]).rstrip()
            if section is not None:
                section.pairs[key] = (key, value, number)
            elif key != "version":
                found.note(number, key, "stands before any section; dropped")
        else:
            message = "is neither [section], nor key = value, nor a comment"
            problems.append(Problem(found.source, number, "", message))
    if problems:
        raise ConfigError(tuple(problems))
    return sections


def _read_of_router(found: Found, draft: Draft, pair: Pair) -> None:
    key, value, line = pair
    known = _OF_ROUTER[key]
    if known == "load-on-startup":
        if value.lower() in TRUE:
            draft.values["preload"] = Value(value=True, origin=f"{key} = {value}")
    elif known == "stop-timeout" and value.isdecimal():
        draft.values["stop_timeout"] = Value(f"{int(value)}s", f"{key} = {value}")
    else:
        found.say(draft, line, key, "no equivalent; dropped")
