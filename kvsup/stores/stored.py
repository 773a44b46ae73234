"""A model of a store: what it is called, its files, and what the store says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvsup.stores.references import OLLAMA

TEMPLATE = "store"
"""Value of the key ``template`` that asks for the store's own in the place of the GGUF's."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A model as a store has it."""

    reference: str
    """What a TOML file names it by: ``ollama:llama3.2:latest``, ``hf:org/repo:Q4_K_M``, a path."""
    name: str
    """What clients call it where no TOML file does."""
    weights: str
    """Path of the GGUF file, of a split model the first."""
    table: Mapping[str, object] = field(default_factory=dict)
    """TOML keys that hold where the model's file does not say otherwise."""
    go_template: str = ""
    """How its prompts are written, for where the GGUF does not say."""
    digest: str = ""
    """SHA-256 of its manifest, where it has one."""
    licenses: tuple[str, ...] = ()
    """Paths of its licenses."""
    notes: tuple[str, ...] = ()
    """What its owner should know, in sentences."""

    @property
    def is_ollamas(self) -> bool:
        """Say whether Ollama fetched it, and may have published it."""
        return self.reference.startswith(OLLAMA)


def has_file(source: str) -> bool:
    """Say whether a model that came from ``source`` has a TOML file, so that it can be edited."""
    return source.endswith(".toml")


def editable(source: str) -> str:
    """Return where a person writes what such a model is to have."""
    return source if has_file(source) else f'a TOML file of its own (model = "{source}")'
