"""What the disk says of a model's weights; ``runtime/modelfile.py`` reads it."""

from dataclasses import dataclass

from kvsup.config import ModelConfig
from kvsup.gguf import Metadata, Tensor
from kvsup.memory import Draft
from kvsup.modelshape import ModelShape


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the disk says of a model's weights."""

    metadata: Metadata
    """Header of the first part."""
    shape: ModelShape
    n_params: int
    size_bytes: int
    """All parts of a split model together, the projector and the adapters."""
    modified_ns: int
    stamp: str
    """Changes when a file is replaced or written, the chat template's included."""
    parts: tuple[tuple[str, str], ...] = ()
    """Path and stamp of each file of weights that a llama-server may map, the draft's included."""
    template: str | None = None
    """The Jinja chat template in force: the file that the TOML names, else the GGUF's own."""
    projector: Metadata | None = None
    """Header of the projector for images or audio."""
    tensors: tuple[Tensor, ...] = ()
    """Those of all parts."""
    has_fim_tokens: bool = False
    """Whether the vocabulary has tokens to fill in a middle with."""
    licenses: tuple[str, ...] = ()
    """Paths of texts, where a store has them."""
    digest: str = ""
    """By which a store knows the model; empty where it is none's."""
    suspicion: str = ""
    """What is a likely cause if it does not load; empty where nothing is known."""
    draft: "ModelFile | None" = None
    """The draft model's weights, of which only shape and size are of interest."""

    def weights_bytes(self, model: ModelConfig) -> int:
        """Return the bytes of weights that ``model`` loads of them, the draft model's apart."""
        if model.mmproj is not None or self.projector is None:
            return self.size_bytes
        return self.size_bytes - (self.projector.header_bytes + (self.projector.tensor_bytes or 0))

    def draft_of(self, model: ModelConfig) -> Draft | None:
        """Return what drafts for ``model``, as memory sees it."""
        if self.draft is None or model.draft_model is None:
            return None
        return Draft(self.draft.shape, self.draft.size_bytes, model.draft_kv_cache_type)
