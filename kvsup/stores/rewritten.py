"""GGUF files that Ollama published for its own engine, which it rewrites while it loads them.

Its build of llama.cpp has a layer for that (llama/compat), a stock llama-server has not. Files
without their marks, which are ordinary GGUFs and those from ``hf.co/…``, are loaded by both.
"""

from collections.abc import Iterable

_FOREIGN = frozenset(
    {
        "deepseekocr", "glm4moelite", "glmocr", "gptoss", "mllama", "nemotron_h_omni", "olmo3",
        "qwen25vl",
    }
)  # fmt: skip
"""Architectures that no stock llama-server has a model for under that name."""

REWRITTEN = frozenset(
    {
        "gemma3", "gemma3n", "gemma4", "laguna", "lfm2", "llama4", "mistral3", "nemotron_h_moe",
        "qwen35", "qwen35moe", "qwen3next", "qwen3vl", "qwen3vlmoe", *_FOREIGN,
    }
)  # fmt: skip
"""Architectures of which published files are rewritten (llama/compat, 2026-08)."""

_NOW_AND_THEN = frozenset({"bert", "clip", "llama"})
"""Those of which few are: a Llama 3 or two, snowflake-arctic-embed2, old projectors."""

_PROJECTOR_TENSORS = ("v.", "mm.", "a.")


def why_not_stock(architecture: str, tensor_names: Iterable[str]) -> str:
    """Return why a stock llama-server cannot load a file of Ollama's; empty if it may."""
    if architecture in _FOREIGN:
        return f"its architecture {architecture} is one of Ollama's own engine"
    if architecture != "clip" and any(n.startswith(_PROJECTOR_TENSORS) for n in tensor_names):
        return "it has its projector inside the model file, as only Ollama's own engine reads it"
    return ""


def suspicion(architecture: str) -> str:
    """Return what may be the cause where a file of Ollama's store does not load; or empty."""
    if architecture not in REWRITTEN | _NOW_AND_THEN:
        return ""
    return (
        f"Ollama rewrites some of the {architecture} files that it published while it loads them,"
        " which a stock llama-server does not"
    )


MEND = "get the same model from Hugging Face (hf:ORG/REPO, or ollama pull hf.co/ORG/REPO)"
"""What helps in either case."""
