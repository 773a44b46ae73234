"""The counts and durations of an answer that came from several processes (b10434, b11434).

``usage`` and ``timings`` are those of tools/server/server-task.cpp, ``usage_json_oaicompat``, and
server-context.cpp, ``result_timings``. What a process had done when it died is added to what its
successor says, so that the durations are those that the answer took.
"""

from dataclasses import dataclass
from typing import Any

Members = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Spent:
    """What processes that died had spent on an answer, where that is known."""

    prompt_ms: float = 0.0
    predicted_ms: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.prompt_ms + other.prompt_ms, self.predicted_ms + other.predicted_ms)


@dataclass(frozen=True, slots=True)
class Before:
    """What a continued answer had before it was continued."""

    prompt_tokens: int
    """The length of the prompt without the text that was delivered."""
    predicted_tokens: int
    cached_tokens: int
    """How much of the prompt the first process found in its KV cache."""
    is_whole: bool = False
    """Whether only the end was missing: the token that was asked for to get it counts nothing."""


def sum_timings(timings: Members, spent: Spent, before: Before | None) -> None:
    """Make ``timings`` those of the whole answer.

    Args:
        timings: of the last process; changed in place.
        spent: by the processes before.
        before: None if the last process gave the whole answer.
    """
    if before is not None:
        prompt_tokens, cached = (
            before.prompt_tokens,
            min(before.cached_tokens, before.prompt_tokens),
        )
        timings["cache_n"], timings["prompt_n"] = cached, prompt_tokens - cached
        new = 0 if before.is_whole else timings.get("predicted_n", 0)
        timings["predicted_n"] = before.predicted_tokens + new
    for kind, spent_ms in (("prompt", spent.prompt_ms), ("predicted", spent.predicted_ms)):
        n, ms = timings.get(f"{kind}_n", 0), timings.get(f"{kind}_ms", 0.0) + spent_ms
        timings[f"{kind}_ms"] = ms
        timings[f"{kind}_per_token_ms"] = ms / n if n else 0.0
        timings[f"{kind}_per_second"] = 1000.0 * n / ms if ms else 0.0


def sum_usage(usage: Members, before: Before) -> None:
    """Make ``usage`` of a continued answer that of the whole answer, in place."""
    new = 0 if before.is_whole else usage["completion_tokens"]
    usage["prompt_tokens"] = before.prompt_tokens
    usage["completion_tokens"] = before.predicted_tokens + new
    usage["total_tokens"] = before.prompt_tokens + before.predicted_tokens + new
    usage["prompt_tokens_details"] = {
        "cached_tokens": min(before.cached_tokens, before.prompt_tokens)
    }
