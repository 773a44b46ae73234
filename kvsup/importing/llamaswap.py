"""A configuration of llama-swap, read into kvsup's keys (its config-schema.json, 2026-08)."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from kvsup.errors import ConfigError, Problem
from kvsup.importing.arguments import of_words
from kvsup.importing.command import Command, read_command
from kvsup.importing.commandline import FOREVER
from kvsup.importing.found import Draft, Found, Setting, Value
from kvsup.importing.macros import Macros
from kvsup.importing.yamltext import Located, read_yaml
from kvsup.llama.helptext import Argument
from kvsup.ollama.options import OPTIONS, check_options

_FILE_NOTES = {
    "apiKeys": "write the keys into a file of their own, see api_keys of kvsup.toml",
    "peers": "kvsup serves only models of this machine",
    "profiles": "no equivalent; variants are other settings of a model, under names of their own",
    "store": "no equivalent; kvsup why tells what happened to a model",
    "performance": "no equivalent; kvsup ps shows memory",
    "captureBuffer": "no equivalent; kvsup keeps no requests",
    "sendLoadingState": "no equivalent; a stream stays silent while its model loads",
    "includeAliasesInList": "no equivalent",
    "upstream": "no equivalent",
}
_MODEL_NOTES = {
    "cmdStop": "kvsup ends llama-server itself, see stop_timeout",
    "useModelName": "no equivalent; llama-server takes any name",
    "metadata": "no equivalent",
    "concurrencyLimit": "kvsup lets requests wait; see num_parallel, and max_queue of kvsup.toml",
    "sendLoadingState": _FILE_NOTES["sendLoadingState"],
    "timeouts": "no equivalent; kvsup waits while llama-server shows signs of life, see watchdog",
    "capabilities": "kvsup reads them from the GGUF file",
}
_NOTHING = frozenset(
    {"startPort", "logTimeFormat", "logToStdout", "metricsMaxInMemory", "ui", "proxy"}
)
"""What only llama-swap's own inside needs."""
_HANDLED_OF_FILE = frozenset(
    {
        "models", "macros", "groups", "matrix", "routing", "hooks", "globalTTL",
        "healthCheckTimeout", "unloadTimeout", "logLevel",
    }
)  # fmt: skip
_HANDLED_OF_MODEL = frozenset(
    {
        "cmd", "macros", "env", "ttl", "unloadTimeout", "filters", "aliases", "name",
        "description", "checkEndpoint", "unlisted",
    }
)  # fmt: skip
_OFF = frozenset({"0", "false"})
_UNKNOWN = "is no key of llama-swap that kvsup knows; dropped"
_LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "error": "error"}
_SWAP_NOTE = (
    "kvsup loads what fits in memory and unloads the longest idle first; for one model at a time"
    " write max_loaded_models = 1 into kvsup.toml"
)


def read_llama_swap(text: str, source: str, environ: Mapping[str, str]) -> Found:
    """Return what the configuration ``text`` holds.

    Args:
        text: YAML.
        source: its path as the operator named it.
        environ: for macros such as ``${env.HOME}``.

    Raises:
        ConfigError: it is no YAML, or no configuration of llama-swap.
    """
    document = read_yaml(text, source)
    models = document.mapping.get("models")
    if models is None or not models.mapping:
        raise ConfigError((Problem(source, document.line, "models", "holds no model"),))
    found = Found(source)
    for key, value in document.mapping.items():
        if key in _FILE_NOTES and value.text not in _OFF:
            found.note(value.line, key, _FILE_NOTES[key])
        elif key not in _HANDLED_OF_FILE | _NOTHING | _FILE_NOTES.keys():
            found.note(value.line, key, _UNKNOWN)
    reading = _Reading(found, document, text.splitlines(), environ)
    found.drafts += [reading.draft(name, model) for name, model in models.mapping.items()]
    _read_host(found, document)
    _read_together(found, document)
    found.note(None, "port", "llama-swap's clients ask port 8080; kvsup listens on 11434, see port")
    return found


@dataclass(frozen=True, slots=True)
class _Reading:
    """One configuration, and what is found in it."""

    found: Found
    document: Located
    lines: list[str]
    environ: Mapping[str, str]

    def draft(self, name: str, model: Located) -> Draft:
        """Return a model, its command not yet read into keys."""
        found, members = self.found, model.mapping
        remarks = [members[k].text for k in ("name", "description") if k in members]
        title = f"model {json.dumps(name, ensure_ascii=False)} of {found.source}:{model.line}"
        draft = Draft(name, model.line, title, [remark for remark in remarks if remark])
        for key, value in members.items():
            if key in _MODEL_NOTES and value.text not in _OFF:
                found.say(draft, value.line, key, _MODEL_NOTES[key])
            elif key not in _HANDLED_OF_MODEL | _NOTHING | _MODEL_NOTES.keys():
                found.say(draft, value.line, key, _UNKNOWN)
        layers = [part.mapping.get("macros") for part in (self.document, model)]
        nodes = {key: node for layer in layers if layer for key, node in layer.mapping.items()}
        macros = Macros({key: node.text for key, node in nodes.items()}, self.environ, name)
        self._read_command(draft, model, macros, [*nodes.values()])
        _read_env(found, draft, members.get("env"), macros)
        _read_times(draft, members, self.document.mapping)
        _read_names(found, draft, members)
        if filters := members.get("filters"):
            _read_filters(found, draft, filters.mapping)
        return draft

    def _read_command(
        self, draft: Draft, model: Located, macros: Macros, nodes: list[Located]
    ) -> None:
        found, cmd = self.found, model.mapping.get("cmd")
        if cmd is None or not cmd.text.strip():
            found.leave_out(draft, (cmd or model).line, "cmd", "is missing")
            return
        try:
            command = read_command(macros.expand(_without_comments(cmd.text)))
        except ValueError as error:
            found.leave_out(draft, cmd.line, "cmd", str(error))
            return
        if command.wrapper:
            message = "kvsup runs llama-server without it; name a script of yours as llama_server"
            found.say(draft, cmd.line, " ".join(command.wrapper), message)
        draft.program = command.program
        draft.env.update({name: Value(value, "env") for name, value in command.env})
        draft.settings = partial(_settings, command=command, ranges=[cmd, *nodes], lines=self.lines)


def _settings(
    arguments: Mapping[str, Argument],
    *,
    command: Command,
    ranges: list[Located],
    lines: list[str],
) -> Iterable[Setting | Problem]:
    return of_words(
        command.words, arguments, line_of=lambda word: _line_of(word, ranges=ranges, lines=lines)
    )


def _line_of(word: str, *, ranges: list[Located], lines: list[str]) -> int:
    """Return the line of ``word`` in the command, else in a macro, else that of the command."""
    pattern = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
    for place in ranges:
        for number in range(place.line, min(place.end, len(lines)) + 1):
            text = lines[number - 1]
            if pattern.search(text) and not text.lstrip().startswith("#"):
                return number
    return ranges[0].line


def _without_comments(text: str) -> str:
    """Drop comment lines first: a macro in one is not expanded, whatever it is."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _read_env(found: Found, draft: Draft, env: Located | None, macros: Macros) -> None:
    for item in env.items if env else ():
        name, separator, value = item.text.partition("=")
        if not separator:
            found.say(draft, item.line, "env", "an item is not NAME=value; dropped")
            continue
        try:
            value = macros.expand(value)
        except ValueError as error:
            found.say(draft, item.line, f"env {name}", f"{error}; dropped")
            continue
        draft.env[name] = Value(value, "env")


def _read_times(draft: Draft, members: Mapping[str, Located], file: Mapping[str, Located]) -> None:
    """Read when it is unloaded: a ttl of 0 is never, one of -1 the file's, which is 0 if absent."""
    own = members.get("ttl")
    has_own = own is not None and _number(own) not in {None, -1}
    ttl = own if has_own else file.get("globalTTL")
    ttl_s = _number(ttl) if ttl else 0
    shown = ("ttl" if has_own else "globalTTL") + f": {ttl_s}" if ttl else "no ttl"
    draft.values["keep_alive"] = Value(f"{ttl_s}s" if ttl_s and ttl_s > 0 else FOREVER, shown)
    for layer in (members, file):
        timeout = layer.get("unloadTimeout")
        timeout_s = _number(timeout) if timeout else None
        if timeout_s:
            draft.values["stop_timeout"] = Value(f"{timeout_s}s", f"unloadTimeout: {timeout_s}")
            return


def _read_names(found: Found, draft: Draft, members: Mapping[str, Located]) -> None:
    names = []
    for item in members["aliases"].items if "aliases" in members else ():
        name = item.mapping.get("id", item).text
        if name:
            names.append(name)
    if names:
        draft.values["aliases"] = Value(names)
    if "unlisted" in members and members["unlisted"].value is True:
        found.say(draft, members["unlisted"].line, "unlisted", "kvsup lists every model")
    check = members.get("checkEndpoint")
    if check and check.text not in {"/health", "/v1/models"}:
        found.say(draft, check.line, "checkEndpoint", "kvsup knows when llama-server is ready")


def _read_filters(found: Found, draft: Draft, filters: Mapping[str, Located]) -> None:
    """Read what is done to requests: kvsup has values that they start from, and takes none away."""
    strip, by_id = filters.get("stripParams"), filters.get("setParamsByID")
    if strip and strip.text.strip():
        message = "no equivalent; a request's own values win over those of options"
        found.say(draft, strip.line, f"stripParams {strip.text}", message)
    if by_id and by_id.mapping:
        names = ", ".join(by_id.mapping)
        message = (
            "no equivalent within one process; a variant has options of its own, a name of its own"
            " and a llama-server of its own"
        )
        found.say(draft, by_id.line, f"setParamsByID {names}", message)
    given = filters.get("setParams")
    for key, node in given.mapping.items() if given else ():
        fields = (name for name, option in OPTIONS.items() if key in {name, option.field})
        option = next(fields, None)
        value = [node.plain] if option == "stop" and node.text else node.plain
        if option and not check_options({option: value}):
            draft.options[option] = Value(value, "setParams; requests may override it")
        elif key == "chat_template_kwargs" and node.mapping:
            draft.values["chat_template_kwargs"] = Value(json.dumps(node.plain), "setParams")
        else:
            found.say(draft, node.line, f"setParams {key}", "no equivalent; requests must send it")


def _read_host(found: Found, document: Located) -> None:
    members = document.mapping
    if (timeout := members.get("healthCheckTimeout")) and (timeout_s := _number(timeout)):
        origin = f"healthCheckTimeout: {timeout_s}; here it is time without progress"
        found.host["load_timeout"] = Value(f"{max(15, timeout_s)}s", origin)
    if (level := members.get("logLevel")) and level.text in _LEVELS and level.text != "info":
        found.host["log_level"] = Value(_LEVELS[level.text], f"logLevel: {level.text}")


def _read_together(found: Found, document: Located) -> None:
    """Read which models may run together, are loaded first, and come first."""
    members = document.mapping
    by_name = {draft.name: draft for draft in found.drafts}
    routing = members["routing"].mapping if "routing" in members else {}
    router = _inner(routing.get("router"), "settings")
    groups = members.get("groups") or router.get("groups")
    matrix = members.get("matrix") or router.get("matrix")
    place = groups or matrix
    found.note(
        place.line if place else None,
        "groups" if groups else "matrix" if matrix else "no groups",
        _SWAP_NOTE,
    )
    for name, group in groups.mapping.items() if groups else ():
        persistent = group.mapping.get("persistent")
        if persistent is None or persistent.value is not True:
            continue
        for member in _inner_items(group, "members"):
            if member.text in by_name:
                origin = f"groups {name}: persistent"
                by_name[member.text].values["pin"] = Value(value=True, origin=origin)
    startup = _inner(members.get("hooks"), "on_startup")
    for item in startup["preload"].items if "preload" in startup else ():
        if item.text in by_name:
            by_name[item.text].values["preload"] = Value(value=True, origin="hooks.on_startup")
        else:
            found.note(item.line, f"preload {item.text}", "is no model of this file")
    fifo = _inner(_inner(routing.get("scheduler"), "settings").get("fifo"), "priority")
    for name, node in fifo.items():
        number = _number(node)
        if name in by_name and number:
            value = max(-10, min(10, number))
            by_name[name].values["priority"] = Value(value, f"routing: priority {number}")


def _inner(node: Located | None, key: str) -> Mapping[str, Located]:
    inner = node.mapping.get(key) if node else None
    return inner.mapping if inner else {}


def _inner_items(node: Located, key: str) -> list[Located]:
    inner = node.mapping.get(key)
    return inner.items if inner else []


def _number(node: Located) -> int | None:
    return node.value if isinstance(node.value, int) and not isinstance(node.value, bool) else None
