"""An installation of Ollama, read into kvsup's keys: its variables, and the models of its store.

A model is its manifest's layers: weights, projector, draft, adapters, parameters, system prompt,
messages, Go template (server/images.go, manifest/, 2026-08). The files stay where they are.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kvsup.decode import Source, decode_host
from kvsup.environment import ignored_variables, read_environment
from kvsup.errors import Problem
from kvsup.hostconfig import HostConfig
from kvsup.importing.found import Draft, Found, Value
from kvsup.kvtypes import parse_kv_pair
from kvsup.ollama.names import DEFAULT_TAG
from kvsup.ollama.options import OPTIONS, check_options
from kvsup.stores.rewritten import REWRITTEN

_FILES = {"model": "model", "projector": "mmproj", "draft": "draft_model"}
_FOREIGN = frozenset({"tensor", "json"})
_UNIT_LINE = re.compile(r"\s*(?:export\s+)?Environment\s*=\s*(.*)")
_PLAIN_LINE = re.compile(r"\s*(?:export\s+)?([A-Z_][A-Z0-9_]*)=(.*)")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model of the store, as its manifest and its small layers have it."""

    name: str
    """In its shortest form, with the tag."""
    manifest: str
    """Path of the manifest."""
    layers: Sequence[tuple[str, str]]
    """Kind and path of each layer: ``("model", ".../blobs/sha256-…")``."""
    family: str = ""
    is_remote: bool = False
    is_library: bool = False
    """Whether it came from Ollama's own registry."""
    system: str | None = None
    messages: Sequence[Mapping[str, str]] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    problem: str = ""
    """Why it cannot be read, if so."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment, and where it is set."""

    value: str
    source: str
    line: int | None = None


def read_env_file(text: str, source: str) -> dict[str, Variable]:
    """Return the variables that a unit of systemd, a drop-in or a plain file of them sets.

    ``Environment=`` takes several assignments in quotes, and a backslash at the end of a line
    goes on in the next (systemd.exec(5), systemd.syntax(7)).
    """
    variables: dict[str, Variable] = {}
    for number, line in _whole_lines(text):
        if unit := _UNIT_LINE.match(line):
            try:
                words = shlex.split(unit[1])
            except ValueError:  # a quote without its end: systemd leaves the line out, too
                words = []
            pairs = [word.partition("=")[::2] for word in words if "=" in word]
        elif plain := _PLAIN_LINE.match(line):
            pairs = [(plain[1], plain[2].strip().strip("\"'"))]
        else:
            continue
        for name, value in pairs:
            variables[name] = Variable(value, source, number)
    return variables


def _whole_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line that is no comment with its number, joined to those that it goes on in."""
    first, begun = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip()[:1] in {"#", ";"}:
            continue
        first = first if begun else number
        begun += line.removesuffix("\\")
        if line.endswith("\\"):
            begun += " "
            continue
        yield first, begun
        begun = ""


def read_ollama(
    models: Sequence[StoredModel], variables: Mapping[str, Variable], source: str
) -> Found:
    """Return what an installation of Ollama holds.

    Args:
        models: those of its store.
        variables: of its environment.
        source: the store, as the operator knows it.
    """
    found = Found(source)
    _read_variables(found, variables)
    for model in models:
        found.drafts.append(_draft(found, model))
    message = "kvsup serves these files where they are; ollama rm takes them from kvsup, too"
    found.note(None, "models", message)
    return found


def _read_variables(found: Found, variables: Mapping[str, Variable]) -> None:
    values = {name: variable.value for name, variable in variables.items()}
    settings = read_environment(values)
    for key, value in settings.table.items():
        name = settings.spelling[key]
        variable = variables[name]
        _, problems = decode_host(Source("", {key: value}), Source("", {}))
        if problems:
            message = f"{problems[0].message}; dropped"
            found.notes.append(Problem(variable.source, variable.line, name, message))
        elif value != _DEFAULTS.get(key):
            found.host[key] = Value(value, f"{name}={variable.value}")
    for name, message in ignored_variables(values).items():
        if name == "OLLAMA_MODELS" or not values[name]:
            continue
        variable = variables[name]
        found.notes.append(Problem(variable.source, variable.line, name, message))
    if found.host.get("host", Value("127.0.0.1")).value not in {"127.0.0.1", "::1", "localhost"}:
        message = "beyond this machine kvsup listens only with api_keys, or with run --insecure"
        place = variables["OLLAMA_HOST"]
        found.notes.append(Problem(place.source, place.line, "OLLAMA_HOST", message))


_DEFAULTS: dict[str, object] = {"host": HostConfig().host, "port": HostConfig().port}


def _draft(found: Found, model: StoredModel) -> Draft:
    name = model.name.removesuffix(f":{DEFAULT_TAG}")
    draft = Draft(name, None, f"{model.name} of Ollama, {model.manifest}")
    if model.problem:
        found.leave_out(draft, None, name, model.problem)
        return draft
    if model.is_remote:
        found.leave_out(draft, None, name, "is served by Ollama's cloud, and kvsup has none")
        return draft
    for kind, path in model.layers:
        key = _FILES.get(kind)
        if key and key not in draft.values:
            draft.values[key] = Value(path, f"layer {kind}")
    if "model" not in draft.values:
        what = "is made of tensors" if _FOREIGN & dict(model.layers).keys() else "has no weights"
        found.leave_out(draft, None, name, f"{what}; llama-server loads GGUF files")
        return draft
    adapters = [path for kind, path in model.layers if kind == "adapter"]
    if adapters:
        draft.values["adapters"] = Value(adapters, "layer adapter")
    if model.system:
        draft.values["system"] = Value(model.system, "layer system")
    if model.messages:
        draft.values["messages"] = Value(list(map(dict, model.messages)), "layer messages")
    _note_layers(found, draft, model)
    for option, value in model.parameters.items():
        _read_parameter(found, draft, option, value)
    return draft


def _note_layers(found: Found, draft: Draft, model: StoredModel) -> None:
    kinds = {kind for kind, _ in model.layers}
    if kinds & {"template", "prompt"}:
        message = "kvsup formats prompts by the GGUF's own template, not by Ollama's; see template"
        found.say(draft, None, f"{draft.name} template", message)
    if model.is_library and model.family in REWRITTEN:
        message = (
            f"Ollama's own files of {model.family} may be written for its engine alone; if"
            " llama-server does not load this one, fetch a GGUF file from elsewhere"
        )
        found.say(draft, None, f"{draft.name} model", message)


def _read_parameter(found: Found, draft: Draft, name: str, value: object) -> None:
    option = OPTIONS.get(name)
    shown = f"{draft.name} parameter {name}"
    if option is None:
        found.say(draft, None, shown, "is no option that llama-server has; dropped")
    elif option.key is None:
        if problem := check_options({name: value}).get(name):
            found.say(draft, None, shown, f"{problem}; dropped")
        else:
            draft.options[name] = Value(value, "parameter")
    elif option.kind == "string":
        try:
            draft.values[option.key] = Value(str(parse_kv_pair(str(value))), f"parameter {name}")
        except ValueError as error:
            found.say(draft, None, shown, f"{error}; dropped")
    elif isinstance(value, bool) == (option.kind == "boolean") and isinstance(value, (int, float)):
        plain = value if isinstance(value, bool) else int(value)
        if name == "draft_num_predict":
            held = draft.values.get("extra_args", Value([])).value
            words = [*held, "--spec-draft-n-max", str(plain)]
            draft.values["extra_args"] = Value(words, "no key of kvsup's")
            return
        if name == "num_ctx":
            plain = max(4, plain)
        if isinstance(plain, bool) or plain >= (0 if name in {"num_gpu", "main_gpu"} else 1):
            draft.values[option.key] = Value(plain, f"parameter {name}")
    else:
        found.say(draft, None, shown, f"{value!r} is no {option.kind}; dropped")
