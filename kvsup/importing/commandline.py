"""Arguments of a llama-server as keys of a model: the way back of ``kvsup/llama/argv.py``.

Which key a flag is comes from there; here is how its value is read. What has no key goes to
``extra_args``, sampling to ``options``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from kvsup.config import ModelConfig
from kvsup.errors import Problem
from kvsup.importing.arguments import FALSE, LOAD_MODES, TRUE, of_pairs, variable_pairs
from kvsup.importing.found import Draft, Found, Setting, Value, absolute
from kvsup.kvtypes import F16, parse_kv_pair
from kvsup.llama.argv import build_argv, owned_key, owned_variables
from kvsup.llama.binary import Binary
from kvsup.llama.helptext import Argument
from kvsup.ollama.options import OPTIONS, check_options

_SILENT = frozenset({"--host", "--port", "--reuse-port", "--offline"})
"""What a supervisor sets anyway, so that nothing is lost with it."""

_INSTEAD = {
    "--api-key": "name the keys in a file, see api_keys of kvsup.toml",
    "--api-key-file": "name the keys in a file, see api_keys of kvsup.toml",
    "--ssl-key-file": "kvsup speaks no TLS; put a proxy in front",
    "--ssl-cert-file": "kvsup speaks no TLS; put a proxy in front",
    "--slot-save-path": "kvsup keeps conversations itself, see warm_swap",
    "--models-max": "write max_loaded_models into kvsup.toml",
}

FOREVER = "-1"
"""A keep_alive that gives way to any other."""

_LORA = "--lora"
_LOAD_MODE = "--load-mode"
_MAPS = frozenset({"mmap", "none", "auto"})
_FILES = frozenset({"FNAME", "FILE", "PATH", "DIR"})
"""How the help calls values that are paths."""

_TEMPLATE_VALUES, _TEMPLATE_FLAG = "chat_template_kwargs", "--chat-template-kwargs"
"""A value that other programs put into requests, and the argument that has it for all of them."""

_HUB = "--hf-repo"
_REMOTE = frozenset({_HUB, "--model-url", "--docker-repo"})

_POOL_NOTE = (
    "llama-server without --parallel serves four requests from one pool of context; kvsup serves"
    " num_parallel, by default 1, each with num_ctx tokens, and the others wait"
)


@dataclass(slots=True)
class _Line:
    """The arguments of one model that are no option and no extra one; the last of each counts."""

    settings: dict[str, Setting] = field(default_factory=dict)

    def put(self, setting: Setting) -> None:
        """Keep an argument; a mode that locks the memory outlives one that only maps or reads.

        LoRAs are gathered, as llama-server does.
        """
        name = setting.argument.on[-1]
        if name == _LORA and (held := self.settings.get(name)):
            setting = replace(
                held, values=held.values + setting.values, shown=f"{held.shown} {setting.shown}"
            )
        if mode := _load_mode(setting):
            before = self.take(_LOAD_MODE)
            if before is None or "lock" not in _load_mode(before) or mode not in _MAPS:
                self.settings[_LOAD_MODE] = setting
        else:
            self.settings[name] = setting

    def take(self, *names: str) -> Setting | None:
        """Return the argument with one of these spellings."""
        for key, setting in self.settings.items():
            if not {key, *setting.argument.on}.isdisjoint(names):
                return setting
        return None

    def number(self, name: str) -> int | None:
        """Return the number behind ``name``; words such as auto, and what is below 0, are none."""
        setting = self.take(name)
        text = "".join(setting.values) if setting else ""
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def apply_settings(
    found: Found, draft: Draft, arguments: Mapping[str, Argument], *, folder: str
) -> None:
    """Put the arguments of ``draft`` into its values, and note what has no equivalent.

    A model without a command line stays as it is.

    Args:
        found: holds the draft and takes notes of the whole file.
        draft: a model with settings not yet read.
        arguments: what its llama-server takes.
        folder: where relative paths begin.
    """
    if draft.settings is None:
        return
    env = {name: str(value.value) for name, value in draft.env.items()}
    pairs = variable_pairs(env, arguments, line=draft.line)
    line = _Line()
    given = _given(arguments)
    options: dict[str, Value] = {}
    extra: list[Setting] = []
    for setting in (*of_pairs(pairs, arguments), *draft.settings(arguments)):
        if isinstance(setting, Problem):
            found.say(draft, setting.line, setting.key, setting.message)
            continue
        key = _key(setting.argument)
        option = _option(setting.argument)
        if not key and (not setting.words or setting.words[0] in given):
            continue
        if key is not None or _load_mode(setting):
            line.put(setting)
        elif option is not None:
            value = _option_value(found, draft, option, setting)
            options |= {} if value is None else {option: Value(value, setting.shown)}
        else:
            extra.append(_with_paths(setting, folder))
    draft.options = {**options, **draft.options}
    for name, _, _ in pairs:
        del draft.env[name]
    for name in owned_variables(list(draft.env)):
        found.say(draft, None, f"env {name}", "is kvsup's own; use the model's keys instead")
        del draft.env[name]
    for setting in line.settings.values():
        _note_owned(found, draft, setting)
    _set_files(found, draft, line, folder)
    _set_context(found, draft, line)
    _set_pairs(found, draft, line)
    _set_placement(found, draft, line, extra)
    _set_rest(found, draft, line)
    words = [word for setting in extra for word in setting.words]
    kwargs = draft.values.pop(_TEMPLATE_VALUES, None)
    if kwargs is not None and _TEMPLATE_FLAG in arguments and _TEMPLATE_FLAG not in words:
        words += [_TEMPLATE_FLAG, kwargs.value]
    if words:
        draft.values["extra_args"] = Value(words, "no key of kvsup's")


def _key(argument: Argument) -> str | None:
    keys = [owned_key(name) for name in (*argument.on, *argument.off)]
    return next((key for key in keys if key is not None), None)


def _given(arguments: Mapping[str, Argument]) -> set[str]:
    """Return every spelling of the switches that are on each command line of kvsup's."""
    binary = Binary("", "", None, (), frozenset(arguments), ())
    bare = build_argv(binary, ModelConfig(model=""), socket="", pooling=None)
    spellings: set[str] = set()
    for word in bare:
        argument = arguments.get(word)
        if argument is not None and not argument.n_values:
            spellings.update(argument.on if word in argument.on else argument.off)
    return spellings


def _with_paths(setting: Setting, folder: str) -> Setting:
    """Return an argument with its paths, if its values are such, made absolute."""
    if setting.argument.hint not in _FILES:
        return setting
    flag, *values = setting.words
    paths = [",".join(absolute(path, folder) for path in text.split(",")) for text in values]
    return replace(setting, words=(flag, *paths))


def _option(argument: Argument) -> str | None:
    """Return the option of Ollama's that a sampling argument is."""
    words = {name.lstrip("-").replace("-", "_") for name in argument.on}
    for name, option in OPTIONS.items():
        if option.field and {name, option.field, option.field.removeprefix("n_")} & words:
            return name
    return None


def _option_value(found: Found, draft: Draft, name: str, setting: Setting) -> float | None:
    text = " ".join(setting.values)
    try:
        value = float(text) if OPTIONS[name].kind == "float32" else int(text)
    except ValueError:
        found.say(draft, setting.line, setting.shown, "is no number; dropped")
        return None
    if problem := check_options({name: value}).get(name):
        found.say(draft, setting.line, setting.shown, f"{problem}; dropped")
        return None
    return value


def _load_mode(setting: Setting) -> str:
    """Return the mode of ``--load-mode``, or of an older switch."""
    name = setting.argument.on[-1]
    if name == _LOAD_MODE:
        return " ".join(setting.values)
    if name in LOAD_MODES:
        opposite = f"--{name[5:]}" if name.startswith("--no-") else f"--no-{name[2:]}"
        return LOAD_MODES.get(name if setting.is_on else opposite, "")
    return ""


def _note_owned(found: Found, draft: Draft, setting: Setting) -> None:
    """Note an argument that is kvsup's own and that no key stands for."""
    names = {*setting.argument.on, *setting.argument.off}
    instead = next((_INSTEAD[name] for name in names if name in _INSTEAD), None)
    if instead is not None:
        found.say(draft, setting.line, setting.shown, instead)
    elif _key(setting.argument) == "" and not names & _SILENT:
        found.say(draft, setting.line, setting.shown, "is kvsup's own; dropped")


def _set_files(found: Found, draft: Draft, line: _Line, folder: str) -> None:
    for names, key in (
        (("--model",), "model"),
        (("--mmproj",), "mmproj"),
        (("--model-draft", "--spec-draft-model"), "draft_model"),
        (("--chat-template-file",), "template"),
    ):
        setting = line.take(*names)
        if setting and setting.values:
            path = absolute(" ".join(setting.values), folder)
            is_same = path == " ".join(setting.values)
            draft.values[key] = Value(path, setting.words[0] if is_same else setting.shown)
    if lora := line.take(_LORA):
        paths = [absolute(path, folder) for text in lora.values for path in text.split(",")]
        draft.values["adapters"] = Value(paths, lora.shown)
    if "model" in draft.values:
        return
    remote = line.take(*_REMOTE)
    if remote:
        name = "".join(remote.values)
        mend = "fetch this one and write its path as model"
        if _HUB in remote.argument.on:
            mend = f'kvsup pull hf.co/{name}, and write model = "hf:{name}"'
        message = f"kvsup loads files that are there; {mend}"
        found.leave_out(draft, remote.line, remote.shown, message)
    else:
        found.leave_out(draft, draft.line, "model", "no --model names its file")


def _set_context(found: Found, draft: Draft, line: _Line) -> None:
    """Divide ``--ctx-size``, which is the total over all slots, by their number."""
    total, n_parallel = line.number("--ctx-size"), line.number("--parallel")
    size, slots = line.take("--ctx-size"), line.take("--parallel")
    if not n_parallel:
        found.note(None, "num_parallel", _POOL_NOTE)
    n_parallel = min(n_parallel or 1, 256)
    if n_parallel > 1 and slots:
        draft.values["num_parallel"] = Value(n_parallel, slots.shown)
        unified = line.take("--kv-unified")
        if unified and unified.is_on:
            draft.values["kv_unified"] = Value(value=True, origin=unified.shown)
    if not total or size is None:
        draft.values["num_ctx"] = Value("auto", "no --ctx-size: as much as fits")
        return
    shown = f"{size.shown}, for all {n_parallel} slots" if n_parallel > 1 else size.shown
    draft.values["num_ctx"] = Value(max(4, total // n_parallel), shown)


def _set_pairs(found: Found, draft: Draft, line: _Line) -> None:
    for key, names in (
        ("kv_cache_type", ("--cache-type-k", "--cache-type-v")),
        ("draft_kv_cache_type", ("--cache-type-k-draft", "--cache-type-v-draft")),
    ):
        halves = [line.take(name) for name in names]
        if not any(halves) or (key.startswith("draft") and "draft_model" not in draft.values):
            continue
        types = [
            " ".join(half.values) if half else str(default)
            for half, default in zip(halves, (F16.k, F16.v), strict=True)
        ]
        shown = " ".join(half.shown for half in halves if half)
        try:
            draft.values[key] = Value(str(parse_kv_pair(":".join(types))), shown)
        except ValueError as error:
            found.say(draft, next(h.line for h in halves if h), shown, f"{error}; dropped")


def _set_placement(found: Found, draft: Draft, line: _Line, extra: list[Setting]) -> None:
    """Set the keys of devices and loading; a split among GPUs has none and stays an argument."""
    layers = line.take("--n-gpu-layers", "--gpu-layers")
    if layers:
        number = line.number(layers.argument.on[-1])
        if "".join(layers.values) == "all":
            number = 999
        if number is not None:
            draft.values["gpu_layers"] = Value(number, layers.shown)
    main = line.take("--main-gpu")
    split = next((s for s in extra if "--split-mode" in s.argument.on), None)
    if split and split.values == ("none",):
        extra.remove(split)
        shown = f"{split.shown} {main.shown}" if main else split.shown
        draft.values["main_gpu"] = Value(line.number("--main-gpu") or 0, shown)
    elif main:
        message = "counts only with --split-mode none or row; main_gpu would use that GPU alone"
        found.say(draft, main.line, main.shown, message)
    mode = line.take(_LOAD_MODE)
    wanted = _load_mode(mode) if mode else "auto"
    if mode and wanted in {"mmap", "none"}:
        draft.values["use_mmap"] = Value(wanted == "mmap", mode.shown)
    elif mode and wanted != "auto":
        draft.env["LLAMA_ARG_LOAD_MODE"] = Value(wanted, mode.shown)


def _set_rest(found: Found, draft: Draft, line: _Line) -> None:
    for name, key, read in _ROWS:
        setting = line.take(name)
        held = draft.values.get(key)
        if setting is None or (held is not None and held.value != FOREVER):
            continue
        try:
            value = read(setting)
        except ValueError:
            message = f"{' '.join(setting.values)!r} is no value for {key}; dropped"
            found.say(draft, setting.line, setting.shown, message)
            continue
        if value is not None:
            draft.values[key] = Value(value, setting.shown)
    alias = line.take("--alias")
    if alias and draft.takes_aliases:
        aliases = [name.strip() for name in "".join(alias.values).split(",") if name.strip()]
        draft.values["aliases"] = Value(aliases, alias.shown)


def _count(setting: Setting) -> int | None:
    """Return a number; 0 and less leave it to llama-server."""
    number = int(" ".join(setting.values))
    return number if number > 0 else None


def _word(setting: Setting) -> str | None:
    """Return on or off; auto is kvsup's default. An older build's bare ``-fa`` means on."""
    word = " ".join(setting.values).lower() or "on"
    if word in TRUE | FALSE:
        return "on" if word in TRUE else "off"
    if word != "auto":
        raise ValueError(word)
    return None


def _mebibytes(setting: Setting) -> object:
    """Return a size; one without limit (-1) is as much as kvsup would give."""
    number = int(" ".join(setting.values))
    if number < 0:
        return "1TiB"
    return f"{number}MiB" if number else 0


def _switch(setting: Setting) -> bool | None:
    return setting.is_on or None


def _embedding(setting: Setting) -> str | None:
    return "on" if setting.is_on else None


def _idle(setting: Setting) -> str | None:
    number = int(" ".join(setting.values))
    return f"{number}s" if number >= 0 else None


_ROWS: tuple[tuple[str, str, Callable[[Setting], object]], ...] = (
    ("--flash-attn", "flash_attention", _word),
    ("--threads", "threads", _count),
    ("--batch-size", "batch_size", _count),
    ("--ubatch-size", "ubatch_size", _count),
    ("--cache-ram", "prompt_cache", _mebibytes),
    ("--swa-full", "swa_full", _switch),
    ("--reasoning", "reasoning", _word),
    ("--embeddings", "embedding", _embedding),
    ("--sleep-idle-seconds", "keep_alive", _idle),
)
"""Long spelling, key, and how the value is read."""
