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
from kvsup.stores.stored import Stored

_FOLDER = "templates"


def prompts_of(
    model: ModelConfig, stored: Stored | None, state: Path
) -> tuple[ModelConfig, str, list[Finding]]:
    """Return ``model`` with a Jinja template made of its store's, where it has no other.

    The file lies in the state folder, named by what it holds. With it come what the model's owner
    should know, and what is wrong.
    """
    if stored is None or not stored.go_template.strip() or model.template is not None:
        return model, "", []
    try:
        header = metadata_of(Path(model.model))
    except (GGUFError, OSError):  # told where the weights are read
        return model, "", []
    has_own = "tokenizer.chat_template" in header.values
    if has_own or f"{header.architecture}.pooling_type" in header.values:
        return model, "", []
    jinja = jinja_of(stored.go_template)
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
        return model, "", [("model", f"its template cannot be written to {path}: {error.strerror}")]
    word = "its chat template is made of the store's"
    if uses_tools(stored.go_template):
        word += ", but without tools; for them name a Jinja file in template"
    return msgspec.structs.replace(model, template=str(path)), word, []
