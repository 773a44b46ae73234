"""What of a conversation's KV cache is worth a file, and which files are kept.

A saved slot (``/slots/{id}?action=save``) holds tokens and their K and V. Whether it can be taken
up again depends on the kind of caches (b11434, tried: docs/performance.md): what rolls back needs
context checkpoints, which lie in llama-server's memory and not in the file.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from kvsup.modelshape import ModelShape

MIN_TOKENS = 256
"""Fewer are read again sooner than a file is found, checked and loaded."""

_MAX_SHARE = 0.05
"""Of the time that reading the tokens again would take: the most that a save may take of it while
somebody waits."""

_ASSUMED_WRITE_BYTES_PER_S = 500e6
_ASSUMED_TOKENS_PER_S = 1000.0
"""A fast prompt: while a model's own speed is unknown its files are not overrated."""

Reuse = Literal["prefix", "whole", "never"]
"""What of a saved slot a prompt can take up: any common prefix; the whole, if the prompt extends
it; or nothing."""

Tokens: TypeAlias = "array[int]"


@dataclass(frozen=True, slots=True)
class Ability:
    """How far a model's slots outlive their process, and why not further."""

    reuse: Reuse
    why: str = ""


def ability(shape: ModelShape, *, swa_full: bool, has_draft: bool, is_pooled: bool) -> Ability:
    """Return what saved slots of a model are good for.

    Args:
        shape: what its header says.
        swa_full: whether layers with a sliding window keep the whole context.
        has_draft: whether another model drafts for it, whose cache is in no file.
        is_pooled: whether it serves vectors, so that no prompt is gone on with.
    """
    kinds = {cache.kind for cache in shape.caches}
    is_sparse = kinds & {"main", "indexer"} or any(c.tokens_per_cell > 1 for c in shape.caches)
    obstacles = {
        "it keeps no conversation": is_pooled or not (shape.caches or shape.state_elements),
        f"saved slots of {shape.architecture} have not been tried": not shape.is_exact or is_sparse,
        "layers with a sliding window keep too little; swa_full = true keeps all": (
            shape.n_window_tokens and not swa_full
        ),
        "the draft model's cache is in no file": has_draft,
    }
    for why, stands in obstacles.items():
        if stands:
            return Ability("never", why)
    if any(layer.is_recurrent for layer in shape.layers):
        return Ability("whole", "a recurrent state cannot be rolled back")
    return Ability("prefix")


@dataclass(frozen=True, slots=True)
class Saved:
    """One saved slot."""

    name: str
    size_bytes: int
    used_s: float
    """When it was last written or taken up: seconds since the epoch."""
    reread_s: float
    """How long reading its tokens again would take."""


def reread_s(n_tokens: int, prompt_tokens_per_s: float | None) -> float:
    """Return how long it takes to read ``n_tokens`` again; at a high speed where none is known."""
    return n_tokens / (prompt_tokens_per_s or _ASSUMED_TOKENS_PER_S)


def is_worth_waiting(*, n_tokens: int, size_bytes: int, prompt_tokens_per_s: float | None) -> bool:
    """Say whether a slot is saved although somebody waits until it is."""
    save_s = size_bytes / _ASSUMED_WRITE_BYTES_PER_S
    return save_s <= _MAX_SHARE * reread_s(n_tokens, prompt_tokens_per_s)


def to_drop(saved: Iterable[Saved], *, max_bytes: int, now_s: float) -> list[Saved]:
    """Return what is to be dropped so that the rest takes at most ``max_bytes``.

    The first to go has been unused for longest, for what reading it again costs a byte: a file that
    saves twice the time may lie unused for twice as long.
    """

    def staleness(one: Saved) -> float:
        unused_s = max(1e-6, now_s - one.used_s)
        return unused_s * max(1, one.size_bytes) / max(1e-6, one.reread_s)

    kept = sorted(saved, key=lambda one: (staleness(one), one.name))
    total_bytes = sum(one.size_bytes for one in kept)
    dropped = []
    while kept and total_bytes > max_bytes:
        dropped.append(kept.pop())
        total_bytes -= dropped[-1].size_bytes
    return dropped


def n_common(one: Tokens, other: Tokens) -> int:
    """Return how many tokens two sequences share from their start."""
    low, high = 0, min(len(one), len(other))
    a, b = memoryview(one), memoryview(other)
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def n_reused(prompt: Tokens, held: Tokens, reuse: Reuse) -> int:
    """Return how many tokens of ``prompt`` need not be read again where ``held`` is in a slot.

    The last token of a prompt is always evaluated (server-context.cpp, b11434).
    """
    shared = n_common(prompt, held)
    if reuse == "never" or (reuse == "whole" and shared < len(held)):
        return 0
    return max(0, min(shared, len(prompt) - 1))


def best(prompt: Tokens, candidates: Sequence[Tokens], reuse: Reuse) -> int | None:
    """Return the place of the candidate that saves most of ``prompt``; None if none saves enough.

    Of two that save the same it is the shorter: less to load.
    """
    gains = [n_reused(prompt, tokens, reuse) for tokens in candidates]
    places = [place for place, gain in enumerate(gains) if gain >= MIN_TOKENS]
    return min(places, key=lambda place: (-gains[place], len(candidates[place])), default=None)
