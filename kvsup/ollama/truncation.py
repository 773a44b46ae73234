"""What is left out of a prompt that is longer than the context, as Ollama does it (2026-08).

A chat loses its oldest messages (server/prompt.go); system messages and the last one stay. Ollama
leaves them out one by one; here whole turns go, since many Jinja templates raise an error where the
first message is not the user's (Gemma, Mistral …), and a tool's result stays with its call. A text
keeps its first tokens and its last ones (llm/llama_server.go).
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


def turn_cuts(messages: Sequence[Message]) -> list[int]:
    """Return how many of the oldest may go so that what is left begins with a user's message.

    In rising order; the last one leaves only the system messages and the last message.
    """
    roles = [message["role"] for message in messages]
    kept = [role for role in roles[:-1] if role != "system"] + roles[-1:]
    n_all = n_droppable(messages)
    return [n for n in range(1, n_all) if kept[n] == "user"] + ([n_all] if n_all else [])


def without_oldest(messages: Sequence[Message], count: int) -> list[Message]:
    """Return ``messages`` without the ``count`` oldest that may be left out."""
    kept = []
    for place, message in enumerate(messages):
        if count and message["role"] != "system" and place < len(messages) - 1:
            count -= 1
        else:
            kept.append(message)
    return kept


def cut_around(
    prefix: Sequence[int], suffix: Sequence[int], *, room: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Return the end of what stands before a gap and the beginning of what stands behind it.

    Together at most ``room`` tokens, a quarter of them behind, as in llama-server's ``/infill``.
    """
    behind = suffix[: max(room // 4, room - len(prefix))]
    return prefix[max(0, len(prefix) - room + len(behind)) :], behind


def cut_tokens(tokens: Sequence[int], *, n_ctx: int, n_keep: int) -> list[int]:
    """Return the first ``n_keep`` tokens and the last ones, about half of ``n_ctx`` together.

    A negative ``n_keep`` keeps as many of the first as there is room for.
    """
    n_keep = min(n_keep if n_keep >= 0 else n_ctx, n_ctx - 1)
    n_left = n_ctx - max((n_ctx - n_keep) // 2, 1)
    return [*tokens[:n_keep], *tokens[len(tokens) - (n_left - n_keep) :]]
