"""How fast a pair reads prompts and generates behind a full cache, and beside f16:f16."""

import math
import time
from collections.abc import Sequence
from itertools import cycle, islice

import msgspec
from msgspec import Struct

from kvsup.kvchoice import SLOW_RATIO
from kvsup.kvtypes import F16, KVPair
from kvsup.measures import Speed, SpeedProbe
from kvsup.plan import Plan
from kvsup.tuning.trial import Trial, TrialFailed, trial

PROBE_STEP_TOKENS = 128
PROBE_MAX_TOKENS = 2048
"""Deepest that a probe looks."""

PROBE_PROMPT_TOKENS = 64
PROBE_GENERATION_TOKENS = 24
_ROOM = PROBE_PROMPT_TOKENS + PROBE_GENERATION_TOKENS
PROBE_CTX_TOKENS = PROBE_MAX_TOKENS + _ROOM
PROBE_ROUNDS = 3
"""At most; the fastest counts: whatever else runs on the machine only ever slows one down."""

_FILLING_PART = 0.6

_CLEAR = math.log(1.6)
"""How far from the limit of what is slow a ratio is clear at once, up or down."""

_FILLING = "The keeper trimmed the lamp, noted the wind, and counted seven sails before dark. "
_ASIDE = "A cart with apples rolled down to the harbour while nobody was looking at the clock. "


class _Timings(Struct, frozen=True):
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float


class _Answer(Struct, frozen=True):
    timings: _Timings


async def speed_at(
    trial: Trial, depth_tokens: int, *, prompt_tokens: int = 128, generation_tokens: int = 32
) -> Speed:
    """Return the speeds behind ``depth_tokens`` tokens in the cache.

    The first token of a generation comes out of the last step of the prompt, so n tokens take
    n - 1 steps; llama-server's own rate counts n (b11434). Where a cache is restored from a
    checkpoint, for a sliding window or recurrent state, a few tokens more are read, and count.

    Args:
        trial: with a slot of at least the three sums of tokens.
        depth_tokens: what the cache holds before; its contents do not matter to the speed.
        prompt_tokens: read at that depth, at least 1.
        generation_tokens: generated then, at least 2.

    Raises:
        TrialFailed: as ``Trial.ask``; or the cache held a part of the prompt already.
    """
    filling = await fill(trial, depth_tokens)
    aside = await _cycled(trial, _ASIDE, prompt_tokens)
    answer = await _complete(
        trial, (*filling, *aside), n_predict=generation_tokens, keep=bool(filling)
    )
    timings = answer.timings
    if timings.prompt_n < prompt_tokens:
        raise TrialFailed(
            f"{trial.plan.name} with {trial.pair} cannot be timed: "
            f"{timings.prompt_n} tokens were read for {prompt_tokens}"
        )
    return Speed(
        depth_tokens=depth_tokens,
        prompt_tokens_per_s=_rate(timings.prompt_n, timings.prompt_ms),
        generation_tokens_per_s=_rate(timings.predicted_n - 1, timings.predicted_ms),
    )


async def fill(trial: Trial, depth_tokens: int) -> tuple[int, ...]:
    """Fill the cache with ``depth_tokens`` tokens, keeping what it holds of them, and return them.

    Raises:
        TrialFailed: as ``Trial.ask``.
    """
    tokens = await _cycled(trial, _FILLING, depth_tokens)
    if tokens:
        await _complete(trial, tokens, n_predict=0, keep=True)
    return tokens


async def probe(plan: Plan, pair: KVPair, *, time_limit_s: float = 8.0) -> SpeedProbe:
    """Return the speeds of ``pair`` and of f16:f16 at one depth, as deep as the time allows.

    Each of the two has a third of ``time_limit_s``, loads not counted; the pair's cache is filled
    in steps for over half of its own, and f16:f16 gets the same depth. At most 2048 tokens, and
    what the model was trained for. Where that leaves open whether the pair is slow, both are filled
    and measured once more, and the better counts: a machine with other work only ever slows one
    down.

    Raises:
        TrialFailed: one of the two did not load, or died.
    """
    found = await _beside(plan, pair, None, time_limit_s / 3)
    if all(abs(math.log(ratio / SLOW_RATIO)) > _CLEAR for ratio in found.ratios):
        return found
    again = await _beside(plan, pair, found.speed.depth_tokens, time_limit_s / 6)
    return msgspec.structs.replace(
        found,
        speed=fastest([found.speed, again.speed]),
        baseline=fastest([found.baseline, again.baseline]),
    )


async def _beside(plan: Plan, pair: KVPair, depth: int | None, time_s: float) -> SpeedProbe:
    """Return both speeds, each within a time; without a depth as deep as that allows."""
    deepest = max(0, min(PROBE_MAX_TOKENS, (plan.trained_tokens or PROBE_MAX_TOKENS) - _ROOM))
    async with trial(plan, pair, num_ctx=deepest + _ROOM) as running:
        until_s = time.monotonic() + time_s
        if depth is None:
            depth = await _deepened(running, deepest, _FILLING_PART * time_s)
        else:
            await fill(running, depth)
        speed = await _best(running, depth, until_s)
        splits = running.measured.splits
    async with trial(plan, F16, num_ctx=deepest + _ROOM) as running:
        until_s = time.monotonic() + time_s
        await fill(running, depth)
        baseline = await _best(running, depth, until_s)
        baseline_splits = running.measured.splits
    return SpeedProbe(
        pair=str(pair),
        speed=speed,
        baseline=baseline,
        graph_splits=splits.generation if splits else None,
        baseline_splits=baseline_splits.generation if baseline_splits else None,
    )


async def _deepened(trial: Trial, deepest_tokens: int, time_s: float) -> int:
    """Fill the cache as far as the time allows, by at least one step; return the tokens in it."""
    depth, began_s, step_s = 0, time.monotonic(), 0.0
    while depth < deepest_tokens and time.monotonic() - began_s + step_s < time_s:
        step_began_s = time.monotonic()
        depth = min(depth + PROBE_STEP_TOKENS, deepest_tokens)
        await fill(trial, depth)
        step_s = time.monotonic() - step_began_s
    return depth


async def _best(trial: Trial, depth_tokens: int, until_s: float) -> Speed:
    """Return the fastest of one round, and of more for which there is time."""
    speeds: list[Speed] = []
    round_s = 0.0
    while len(speeds) < PROBE_ROUNDS and (not speeds or time.monotonic() + round_s < until_s):
        began_s = time.monotonic()
        speeds.append(
            await speed_at(
                trial,
                depth_tokens,
                prompt_tokens=PROBE_PROMPT_TOKENS,
                generation_tokens=PROBE_GENERATION_TOKENS,
            )
        )
        round_s = time.monotonic() - began_s
    return fastest(speeds)


def fastest(speeds: Sequence[Speed]) -> Speed:
    """Return the best of each speed at one depth: other work only ever slows one down."""
    return Speed(
        depth_tokens=speeds[0].depth_tokens,
        prompt_tokens_per_s=max(speed.prompt_tokens_per_s for speed in speeds),
        generation_tokens_per_s=max(speed.generation_tokens_per_s for speed in speeds),
    )


async def _complete(
    trial: Trial, tokens: tuple[int, ...], *, n_predict: int, keep: bool
) -> _Answer:
    """Read ``tokens``, but for those that the cache holds where it is to be kept, and generate."""
    answer: _Answer = await trial.ask(
        "/completion",
        {
            "prompt": tokens,
            "n_predict": n_predict,
            "cache_prompt": keep,
            "ignore_eos": True,
            "temperature": 0,
            "samplers": ["temperature"],
            "response_fields": ["timings"],
        },
        shape=_Answer,
    )
    return answer


async def _cycled(trial: Trial, text: str, n_tokens: int) -> tuple[int, ...]:
    tokens = (await trial.ask("/tokenize", {"content": text}))["tokens"]
    return tuple(islice(cycle(tokens), n_tokens))


def _rate(n_tokens: int, took_ms: float) -> float:
    return 1000 * n_tokens / took_ms
