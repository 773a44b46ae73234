"""How a model in a store is named where a path could be: ``ollama:NAME``, ``hf:ORG/REPO:TAG``."""

import re
from dataclasses import dataclass

from kvsup.ollama.names import full_name, quoted, valid_name, without_source

OLLAMA = "ollama:"
HUB = "hf:"
HUB_HOST = "hf.co"
"""What models of Hugging Face are called by."""

_REPOSITORY = re.compile(
    r"""(?:(?P<org>[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})/)?
        (?P<repo>[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})
        (?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}))?""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class OllamaName:
    """A name of Ollama with every part; its manifest lies at ``HOST/NAMESPACE/MODEL/TAG``."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Return the folders down to the manifest, and its file."""
        return (self.host, self.namespace, self.model, self.tag)


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of Hugging Face, and which of its files."""

    repository: str
    """``ORG/REPO``, or ``REPO`` alone."""
    tag: str = ""
    """A quantization such as ``Q4_K_M``, or a file's name; empty where it is left open."""

    @property
    def pulled(self) -> OllamaName | None:
        """Return the name under which kvsup has it once it was pulled; None if it can have none."""
        text = f"{HUB_HOST}/{self.repository}{f':{self.tag}' if self.tag else ''}"
        return _ollama_name(text) if valid_name(text) and "/" in self.repository else None


def parse_reference(text: str) -> OllamaName | HubName | None:
    """Return what ``text`` refers to; None where it is no reference, but a path.

    Raises:
        ValueError: it begins as a reference and is none.
    """
    if text.startswith(OLLAMA):
        return _ollama_name(text.removeprefix(OLLAMA))
    if text.startswith(HUB):
        return _hub_name(text.removeprefix(HUB))
    return None


def _ollama_name(text: str) -> OllamaName:
    if not valid_name(text) or without_source(text) != text or "://" in text:
        raise ValueError(
            f"{quoted(text)} is no model of Ollama; write ollama:NAME or ollama:NAME:TAG as"
            " `ollama list` has it"
        )
    host, namespace, last = full_name(text).split("/")
    model, _, tag = last.partition(":")
    return OllamaName(host, namespace, model, tag)


def _hub_name(text: str) -> HubName:
    match = _REPOSITORY.fullmatch(text)
    names = (match["org"] or "", match["repo"]) if match else ()
    # huggingface_hub refuses these, too (validate_repo_id); "--" parts the names in its cache
    if match is None or any("--" in name or ".." in name for name in names):
        raise ValueError(
            f"{quoted(text)} is no repository of Hugging Face; write hf:ORG/REPO or"
            " hf:ORG/REPO:QUANTIZATION, e.g. hf:ggml-org/gemma-3-1b-it-GGUF:Q4_K_M"
        )
    return HubName("/".join(filter(None, names)), match["tag"] or "")
