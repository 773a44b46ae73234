"""Greedy answers and tool calls: what teacher forcing misses, since errors pile up in decoding."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from kvsup.measures import Trajectory
from kvsup.tuning.sample import prompt_of
from kvsup.tuning.trial import Trial

T = TypeVar("T")


ToolCase = dict[str, Any]
"""A body of ``/v1/chat/completions`` with ``tools``."""


MAX_CALL_TOKENS = 512
"""Of the answer to a tool case that sets no limit itself."""

_LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")


async def answers(
    trial: Trial, prompts: Iterable[str], *, n_tokens: int = 48
) -> tuple[tuple[int, ...], ...]:
    """Return the ids of the model's greedy answer to each user's prompt.

    Each prompt is read anew, so that an answer does not depend on what was asked before it.

    Args:
        trial: of the pair.
        prompts: what a user says.
        n_tokens: at most so many for each.

    Raises:
        TrialFailed: as ``Trial.ask``.
    """
    found = []
    for text in prompts:
        prompt = await prompt_of(trial, [{"role": "user", "content": text}])
        body = {
            "prompt": prompt,
            "n_predict": n_tokens,
            "cache_prompt": False,
            "temperature": 0,
            "samplers": ["temperature"],
            "return_tokens": True,
            "response_fields": ["tokens"],
        }
        found.append(tuple((await trial.ask("/completion", body))["tokens"]))
    return tuple(found)


def first_differences(
    baseline: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]]
) -> Trajectory:
    """Return where each answer leaves that of f16:f16; one that only ends earlier leaves there.

    Raises:
        ValueError: there are not as many answers as in the baseline.
    """
    pairs = list(zip(baseline, candidate, strict=True))
    return Trajectory(
        first_difference=tuple(_first_difference(a, b) for a, b in pairs),
        lengths=tuple(len(a) for a, _ in pairs),
    )


async def tool_calls(trial: Trial, cases: Iterable[ToolCase]) -> tuple[str, ...]:
    """Return the tool calls of the greedy answer to each case, so that equal calls are equal texts.

    Names and arguments count, in their order, as JSON with sorted keys; ids do not.

    Args:
        trial: of the pair.
        cases: how they would be sampled is overridden, and how much where they leave it open.

    Raises:
        TrialFailed: as ``Trial.ask``.
    """
    found = []
    for case in cases:
        body = {**case, "stream": False, "n": 1, "temperature": 0, "cache_prompt": False}
        body.pop("stream_options", None)
        if not any(limit in case for limit in _LIMITS):
            body["max_tokens"] = MAX_CALL_TOKENS
        answer = await trial.ask("/v1/chat/completions", body)
        calls = answer["choices"][0]["message"].get("tool_calls") or []
        plain = [_call(call["function"]) for call in calls]
        found.append(msgspec.json.encode(plain, order="sorted").decode())
    return tuple(found)


def _first_difference(baseline: Sequence[T], candidate: Sequence[T]) -> int | None:
    for index, (a, b) in enumerate(zip(baseline, candidate, strict=False)):
        if a != b:
            return index
    return None if len(baseline) == len(candidate) else min(len(baseline), len(candidate))


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments decoded, or as they came where they are no JSON."""
    arguments = function["arguments"]
    with suppress(msgspec.DecodeError):
        arguments = msgspec.json.decode(arguments)
    return {"name": function["name"], "arguments": arguments}
