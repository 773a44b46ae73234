"""What is left out of a prompt that is longer than the context, as Ollama does it (2026-08).

A chat loses its oldest messages, one by one (server/prompt.go); system messages and the last one
stay. A text keeps its first tokens and its last ones (llm/llama_server.go).
"""

from collections.abc import Sequence

IMAGE_TOKENS = 768
"""What Ollama counts for an image."""

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)
"""Ollama's text for a prompt that is not to be shifted."""

Message = dict[str, object]


def n_droppable(messages: Sequence[Message]) -> int:
    """Return how many messages may be left out."""
    return sum(message["role"] != "system" for message in messages[:-1])


def without_oldest(messages: Sequence[Message], count: int) -> list[Message]:
    """Return ``messages`` without the ``count`` oldest that may be left out."""
    kept = []
    for place, message in enumerate(messages):
        if count and message["role"] != "system" and place < len(messages) - 1:
            count -= 1
        else:
            kept.append(message)
    return kept


def cut_tokens(tokens: Sequence[int], *, n_ctx: int, n_keep: int) -> list[int]:
    """Return the first ``n_keep`` tokens and the last ones, about half of ``n_ctx`` together.

    A negative ``n_keep`` keeps as many of the first as there is room for.
    """
    n_keep = min(n_keep if n_keep >= 0 else n_ctx, n_ctx - 1)
    n_left = n_ctx - max((n_ctx - n_keep) // 2, 1)
    return [*tokens[:n_keep], *tokens[len(tokens) - (n_left - n_keep) :]]
