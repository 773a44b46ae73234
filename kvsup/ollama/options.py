"""Ollama's options and llama-server's names for them (api/types.go, llm/llama_server.go)."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvsup.errors import RequestError

_FLOAT32_MAX = 3.4e38
_INT32_MAX = 2**31 - 1
"""llama-server reads larger numbers as others (b11434)."""

Kind = Literal["integer", "float32", "boolean", "array", "string"]


class OptionTypeError(RequestError):
    """An option has the wrong JSON type; Ollama answers 500."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its type, and where it goes."""

    kind: Kind
    field: str | None = None
    """llama-server's request field; None for an option that acts at load time."""
    default: float | None = None
    """Ollama's default, sent since llama-server's differ (top_p 0.95, min_p 0.05)."""
    key: str | None = None
    """For a load-time option: the key of a model's TOML file that sets it."""


OPTIONS: Mapping[str, Option] = {
    "num_predict": Option("integer", "n_predict", -1),
    "num_keep": Option("integer", "n_keep", 4),
    "seed": Option("integer", "seed", -1),
    "temperature": Option("float32", "temperature", 0.8),
    "top_k": Option("integer", "top_k", 40),
    "top_p": Option("float32", "top_p", 0.9),
    "min_p": Option("float32", "min_p", 0.0),
    "typical_p": Option("float32", "typical_p", 1.0),
    "repeat_last_n": Option("integer", "repeat_last_n", 64),
    "repeat_penalty": Option("float32", "repeat_penalty", 1.0),
    "presence_penalty": Option("float32", "presence_penalty", 0.0),
    "frequency_penalty": Option("float32", "frequency_penalty", 0.0),
    "stop": Option("array", "stop"),
    "num_ctx": Option("integer", key="num_ctx"),
    "num_batch": Option("integer", key="batch_size"),
    "num_gpu": Option("integer", key="gpu_layers"),
    "main_gpu": Option("integer", key="main_gpu"),
    "use_mmap": Option("boolean", key="use_mmap"),
    "num_thread": Option("integer", key="threads"),
    "draft_num_predict": Option("integer", key="extra_args"),
    "kv_cache_type": Option("string", key="kv_cache_type"),  # kvsup's own: Ollama has none
}

NUM_CTX_AUTO = "num_ctx_auto"
"""Stands among the parameters of a store's model for ``num_ctx = "auto"``: Ollama passes it over,
where it would refuse a ``num_ctx`` that is no number."""

LOAD_TIME_OPTIONS = frozenset(name for name, option in OPTIONS.items() if option.field is None)
"""Options that llama-server takes as arguments; ``kvsup/fitting.py`` says what becomes of them."""


def sampling_fields(*layers: Mapping[str, object], num_ctx: int) -> dict[str, object]:
    """Return llama-server's request fields for layers of options, of which the last wins.

    Ollama's defaults lie below all layers. Unknown and load-time options are left out. A negative
    ``num_predict``, or one above ten times ``num_ctx``, becomes that bound.

    Raises:
        OptionTypeError: an option has the wrong type.
    """
    merged: dict[str, object] = {
        name: option.default for name, option in OPTIONS.items() if option.default is not None
    }
    for layer in layers:
        merged.update(checked(layer))
    merged = _resolved(merged, num_ctx)
    limit = 10 * num_ctx
    n_predict = merged["num_predict"]
    if not isinstance(n_predict, int) or not 0 <= n_predict <= limit:
        merged["num_predict"] = limit
    if merged["num_keep"] == 0:
        del merged["num_keep"]
    return {
        field: value for name, value in merged.items() if (field := OPTIONS[name].field) is not None
    }


def checked(options: Mapping[str, object]) -> dict[str, object]:
    """Return those of ``options`` that Ollama knows, in their types.

    Raises:
        OptionTypeError: an option has the wrong type.
    """
    return {
        name: _typed(name, value)
        for name, value in options.items()
        if value is not None and name in OPTIONS
    }


def given_fields(options: Mapping[str, object], *, num_ctx: int) -> dict[str, object]:
    """Return llama-server's request fields for the sampling options among ``options``.

    As ``sampling_fields``, but without Ollama's defaults and without a bound for ``num_predict``.
    """
    given = _resolved(checked(options), num_ctx)
    return {field: given[name] for name in given if (field := OPTIONS[name].field) is not None}


def load_time_options(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the load-time options among ``options``, in their types.

    Raises:
        OptionTypeError: an option has the wrong type.
    """
    return {
        name: _typed(name, options[name])
        for name in LOAD_TIME_OPTIONS & options.keys()
        if options[name] is not None
    }


def check_options(options: Mapping[str, object]) -> dict[str, str]:
    """Return what is wrong with a model's ``[options]`` table: option → message; empty if sound.

    A table is stricter than a request: unknown and load-time options are wrong, too.
    """
    problems = {}
    for name, value in options.items():
        option = OPTIONS.get(name)
        if option is None:
            problems[name] = _unknown_text(name)
        elif option.field is None:
            problems[name] = f"acts at load time; use the key {option.key} of the model instead"
        else:
            try:
                _typed(name, value)
            except OptionTypeError as error:
                problems[name] = str(error)
    return problems


def _resolved(options: dict[str, object], num_ctx: int) -> dict[str, object]:
    """Give -1 for the whole context as a number, since llama-server refuses it (b11434)."""
    if options.get("repeat_last_n") == -1:
        return {**options, "repeat_last_n": num_ctx}
    return options


def _unknown_text(name: str) -> str:
    near = difflib.get_close_matches(name, OPTIONS.keys() - LOAD_TIME_OPTIONS, n=1)
    if near:
        return f"no such option; did you mean {near[0]}?"
    known = ", ".join(name for name in OPTIONS if name not in LOAD_TIME_OPTIONS)
    return f"no such option; there are {known}"


def _typed(name: str, value: object) -> object:
    """Return ``value`` in the type that the option has; integers are cut from fractions."""
    kind = OPTIONS[name].kind
    quoted = json.dumps(name)
    if kind == "array":
        if not isinstance(value, list):
            raise OptionTypeError(f"option {quoted} must be of type array")
        if not all(isinstance(item, str) for item in value):
            raise OptionTypeError(f"option {quoted} must be of an array of strings")
        return value
    if (kind == "boolean" and isinstance(value, bool)) or (
        kind == "string" and isinstance(value, str)
    ):
        return value
    if (
        kind in {"boolean", "string"}
        or isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not abs(value) <= _FLOAT32_MAX
    ):
        raise OptionTypeError(f"option {quoted} must be of type {kind}")
    return max(-_INT32_MAX, min(int(value), _INT32_MAX)) if kind == "integer" else float(value)
