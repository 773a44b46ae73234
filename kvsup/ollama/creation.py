"""From a Modelfile to the request that makes its model (Ollama's cmd/, parser/ and api/types.go).

Ollama's server never sees a Modelfile: who has one reads it, sends the files that it names, and
asks by their digests.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from kvsup.kvtypes import parse_kv_pair
from kvsup.ollama.modelfiles import Modelfile, ModelfileError
from kvsup.ollama.options import NUM_CTX_AUTO, OPTIONS

DEAD = frozenset(
    {
        "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock",
        "mirostat", "mirostat_tau", "mirostat_eta",
    }
)  # fmt: skip
"""Parameters that Ollama once had."""

_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
"""What Go's ``strconv.ParseBool`` takes."""

_VERSION = re.compile(r"v?(\d+(?:\.\d+){0,2}(?:[-+][0-9A-Za-z.+-]+)?)", re.ASCII)


def typed_parameters(pairs: Iterable[tuple[str, str]]) -> tuple[dict[str, object], list[str]]:
    """Return the parameters of a Modelfile in their types, and those that do nothing any more.

    Beyond Ollama's there are ``kv_cache_type`` and ``num_ctx auto``.

    Raises:
        ModelfileError: one is unknown, or its value is of another type.
    """
    found: dict[str, object] = {}
    dead: list[str] = []
    for name, text in pairs:
        if name in DEAD:
            dead.append(name)
        elif name not in OPTIONS:
            raise ModelfileError(f"unknown parameter '{name}'")
        elif name == "num_ctx" and text == "auto":
            found.pop("num_ctx", None)
            found[NUM_CTX_AUTO] = True
        elif OPTIONS[name].kind == "array":
            texts = found.setdefault(name, [])
            assert isinstance(texts, list)  # noqa: S101 - made so above
            texts.append(text)
        else:
            found[name] = _typed(name, text)
            if name == "num_ctx":
                found.pop(NUM_CTX_AUTO, None)
    return found, dead


def _typed(name: str, text: str) -> object:
    match OPTIONS[name].kind:
        case "integer":
            try:
                return int(text, 10)
            except ValueError:
                raise ModelfileError(f"invalid int value [{text}]") from None
        case "float32":
            try:
                return float(text)
            except ValueError:
                raise ModelfileError(f"invalid float value [{text}]") from None
        case "boolean":
            if text not in _BOOLEANS:
                raise ModelfileError(f"invalid bool value [{text}]")
            return _BOOLEANS[text]
        case _:
            if text != "auto":
                try:
                    parse_kv_pair(text)
                except ValueError as error:
                    raise ModelfileError(f"PARAMETER {name} {text}: {error}") from None
            return text


def request_body(
    model: str,
    file: Modelfile,
    *,
    base: str,
    files: Mapping[PurePath, str],
    adapters: Mapping[PurePath, str],
    drafts: Mapping[PurePath, str],
    quantize: str = "",
) -> tuple[dict[str, object], list[str]]:
    """Return the body of ``POST /api/create``, and what of the file does nothing any more.

    Args:
        model: name of the new model.
        file: the Modelfile.
        base: name of the model that it is built on; empty where ``files`` are.
        files: digests of the files that ``FROM`` names, by path; the others alike.
        adapters: those of ``ADAPTER``.
        drafts: that of ``DRAFT``.
        quantize: type of the weights, where they are to have another.

    Raises:
        ModelfileError: a parameter or ``REQUIRES`` is wrong.
    """
    parameters, dead = typed_parameters(file.parameters)
    body: dict[str, object] = {
        "model": model,
        "from": base,
        "files": {path.name: digest for path, digest in files.items()},
        "adapters": {path.name: digest for path, digest in adapters.items()},
        "draft_files": {path.name: digest for path, digest in drafts.items()},
        "template": file.template,
        "system": file.system,
        "license": file.licenses,
        "parameters": parameters,
        "messages": [{"role": role, "content": text} for role, text in file.messages],
        "renderer": file.renderer,
        "parser": file.parser,
        "requires": _version(file.requires),
        "quantize": quantize,
    }
    return {key: value for key, value in body.items() if value}, dead


def _version(text: str) -> str:
    match = _VERSION.fullmatch(text)
    if text and match is None:
        raise ModelfileError("requires must be a valid semver (e.g. 0.14.0)")
    return match[1] if match else ""
