"""The parameters of a model of Ollama as keys of a TOML file."""

from collections.abc import Mapping

from kvsup.ollama.options import NUM_CTX_AUTO, OPTIONS, OptionTypeError, checked

_LEAST = {"num_ctx": 4, "num_batch": 1, "num_gpu": 0, "main_gpu": 0, "num_thread": 1}
"""Below these Ollama decides itself, but for the context, of which it takes as many (envconfig)."""


def settings_of(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return the keys that ``parameters`` stand for: those that act at loads, and ``options``.

    Unknown ones are left out, as Ollama does, and so is ``draft_num_predict``.

    Raises:
        ValueError: one has the wrong type.
    """
    try:
        known = checked(parameters)
    except OptionTypeError as error:
        raise ValueError(f"its parameters are wrong: {error}") from None
    table: dict[str, object] = {}
    options = {name: value for name, value in known.items() if OPTIONS[name].field is not None}
    if parameters.get(NUM_CTX_AUTO) is True:
        known.pop("num_ctx", None)
        table["num_ctx"] = "auto"
    for name, value in known.items():
        key = OPTIONS[name].key
        if key is None or key == "extra_args":
            continue
        if name == "num_ctx" and isinstance(value, int):
            table[key] = max(value, _LEAST[name])
        elif name not in _LEAST or (isinstance(value, int) and value >= _LEAST[name]):
            table[key] = value
    return {**table, **({"options": options} if options else {})}


def parameters_of(table: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters that say what the keys of a TOML file do.

    Only those of the model: what is of this machine, such as threads, stays in the file.
    """
    options = table.get("options")
    found = dict(options) if isinstance(options, Mapping) else {}
    if "kv_cache_type" in table:
        found["kv_cache_type"] = table["kv_cache_type"]
    if table.get("num_ctx") == "auto":
        found[NUM_CTX_AUTO] = True
    elif "num_ctx" in table:
        found["num_ctx"] = table["num_ctx"]
    return found
