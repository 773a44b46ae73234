"""How the prompts of a model of a store are written, where its GGUF does not say."""

import hashlib
from pathlib import Path

import msgspec

from kvsup.checks import Finding
from kvsup.config import ModelConfig
from kvsup.gguf import GGUFError
from kvsup.runtime.modelfile import metadata_of
from kvsup.runtime.privatefiles import make_folder, replace_file
from kvsup.stores.jinja import jinja_of, uses_tools
from kvsup.stores.stored import TEMPLATE, Stored

_FOLDER = "templates"


def prompts_of(
    model: ModelConfig, stored: Stored | None, state: Path
) -> tuple[ModelConfig, str, list[Finding]]:
    """Return ``model`` with a Jinja template made of its store's, where it has no other.

    The file lies in the state folder, named by what it holds. With it come what the model's owner
    should know, and what is wrong.
    """
    is_asked = model.template == TEMPLATE
    text = stored.go_template if stored is not None else ""
    if is_asked and not text.strip():
        return _without(model), "", [("template", "its store has none; name a Jinja file")]
    if not is_asked and (not text.strip() or model.template is not None or not _needs_one(model)):
        return model, "", []
    jinja = jinja_of(text)
    if jinja is None and is_asked:
        return (
            _without(model),
            "",
            [("template", "its store's cannot be converted; name a Jinja file")],
        )
    if jinja is None:
        word = (
            "its GGUF has no chat template, and its store one that cannot be converted, so chats"
            " are written as llama-server does without one; name a Jinja file in template"
        )
        return model, word, []
    path = state / _FOLDER / f"{hashlib.sha256(jinja.encode()).hexdigest()[:32]}.jinja"
    try:
        if not path.is_file():
            make_folder(path.parent)
            replace_file(path, jinja.encode())
    except OSError as error:
        wrong = ("model", f"its template cannot be written to {path}: {error.strerror}")
        return _without(model), "", [wrong]
    word = "its chat template is made of the store's"
    if uses_tools(text):
        word += ", but without tools; for them name a Jinja file in template"
    return msgspec.structs.replace(model, template=str(path)), word, []


def _needs_one(model: ModelConfig) -> bool:
    """Say whether a model is one that chats, and whose GGUF does not say how."""
    try:
        header = metadata_of(Path(model.model))
    except (GGUFError, OSError):  # told where the weights are read
        return False
    has_own = "tokenizer.chat_template" in header.values
    return not has_own and f"{header.architecture}.pooling_type" not in header.values


def _without(model: ModelConfig) -> ModelConfig:
    return model if model.template != TEMPLATE else msgspec.structs.replace(model, template=None)
