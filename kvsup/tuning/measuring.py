"""What a study measures of f16:f16 and of another pair, each in one trial, as documents to keep."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from kvsup.divergence import quality_of
from kvsup.kvtypes import F16, KVPair
from kvsup.measures import Quality, Speed, TokenScores, Trajectory
from kvsup.plan import Plan
from kvsup.runtime.remembered import key_of
from kvsup.tuning import forcing, greedy, sample, speed
from kvsup.tuning.forcing import Reference
from kvsup.tuning.judge import Judge
from kvsup.tuning.sample import Conversation, Sample
from kvsup.tuning.stages import PROMPTS, SPEED_ROUNDS, Costs, Schedule
from kvsup.tuning.trial import Trial, trial

MAX_TRIAL_TOKENS = 8192
"""Context of a trial: what f16:f16 must still have room for."""

_PROBE_TOKENS = 32
"""Scored to learn what one costs."""

Tick = Callable[[float], None]
"""Takes expected seconds that were worked off."""


class Facts(Struct, frozen=True, kw_only=True):
    """What the log of a trial told."""

    kv_bytes: tuple[int, int] | None
    compute_bytes: int
    flash_attention: str
    unrotated: tuple[str, ...]
    """Halves, ``k`` or ``v``, that are quantized and not rotated."""
    path: str
    """Where attention runs; empty where that is not known."""


class Baseline(Struct, frozen=True, kw_only=True):
    """f16:f16: what every other pair is held against."""

    schedule: Schedule
    sample: Sample
    reference: Reference
    answers: tuple[tuple[int, ...], ...]
    tool_calls: tuple[str, ...]
    facts: Facts


class Screened(Struct, frozen=True, kw_only=True):
    """A pair on the first tokens of the sample."""

    quality: Quality


class Full(Screened, frozen=True, kw_only=True):
    """Everything of a pair, on the whole sample."""

    scores: TokenScores | None
    """None where llama-perplexity measured, which tells no single tokens."""
    trajectory: Trajectory
    speeds: tuple[Speed, ...]
    facts: Facts


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, and on what."""

    plan: Plan
    conversations: tuple[Conversation, ...]
    tool_cases: tuple[greedy.ToolCase, ...] = ()
    judge: Judge | None = None
    """Measures losses instead of llama-server."""

    @property
    def trial_tokens(self) -> int:
        """Return the context of the trials."""
        return min(self.plan.model.num_ctx, MAX_TRIAL_TOKENS)

    @property
    def max_deep_tokens(self) -> int:
        """Return the greatest depth that leaves room for a prompt and an answer."""
        return self.trial_tokens * 3 // 4

    def key(self, pair: KVPair) -> str:
        """Return what changes with everything that a measurement of ``pair`` depends on."""
        configured = msgspec.structs.replace(
            self.plan.configured, kv_cache_type=pair, num_ctx=self.trial_tokens, num_parallel=1
        )
        identity = self.plan.configured_as(configured).identity
        return key_of(identity, self.plan.binary.stamp, self.conversations, self.tool_cases)


async def baseline(subject: Subject, decide: Callable[[Costs], Schedule], tick: Tick) -> Baseline:
    """Return f16:f16's scores and answers, as long as ``decide`` makes of what a little costs.

    Raises:
        TrialFailed: it cannot be run.
    """
    began_s = time.monotonic()
    async with trial(subject.plan, F16, num_ctx=subject.trial_tokens) as running:
        load_s = time.monotonic() - began_s
        # First, since a case that is refused should not cost the reference.
        calls = await greedy.tool_calls(running, subject.tool_cases)
        costs = await _costs(running, subject, load_s)
        plan = decide(costs)
        tick(costs.load_s)
        text = await sample.prepare(
            running, subject.conversations, max_scored_tokens=plan.full_tokens
        )
        reference = await forcing.reference(running, text, on_token=lambda: tick(costs.score_s))
        answers = await _answers(running, plan)
        tick(plan.answers_s)
        return Baseline(
            schedule=plan,
            sample=text,
            reference=reference,
            answers=answers,
            tool_calls=calls,
            facts=_facts(running),
        )


async def _costs(running: Trial, subject: Subject, load_s: float) -> Costs:
    text = await sample.prepare(running, subject.conversations, max_scored_tokens=_PROBE_TOKENS)
    spent_s = []
    for _ in range(SPEED_ROUNDS):  # the first one reads the prompt, too
        began_s = time.monotonic()
        await forcing.reference(running, text)
        spent_s.append(time.monotonic() - began_s)
    score_s = min(spent_s) / text.n_scored
    fresh = await _speed(running, 0)
    return Costs(
        load_s=load_s,
        score_s=score_s,
        answer_s=1 / fresh.generation_tokens_per_s,
        prompt_s=1 / fresh.prompt_tokens_per_s,
    )


async def screened(subject: Subject, pair: KVPair, base: Baseline, tick: Tick) -> Screened:
    """Return the scores of ``pair`` on as many tokens as the schedule says.

    Raises:
        TrialFailed: it cannot be measured.
    """
    plan = base.schedule
    if subject.judge is not None:
        return await judged(subject.judge, pair)
    async with trial(subject.plan, pair, num_ctx=subject.trial_tokens) as running:
        tick(plan.costs.load_s)
        text = base.sample.first(plan.screen_tokens)
        return Screened(quality=quality_of(await _scores(running, text, base, tick)))


async def judged(judge: Judge, pair: KVPair) -> Screened:
    """Return what llama-perplexity says of ``pair``.

    Raises:
        TrialFailed: it cannot be measured.
    """
    return Screened(quality=await judge.quality(pair))


async def full(subject: Subject, pair: KVPair, base: Baseline, tick: Tick) -> Full:
    """Return everything of ``pair``.

    Raises:
        TrialFailed: it cannot be measured.
    """
    plan, scores = base.schedule, None
    quality = None if subject.judge is None else await subject.judge.quality(pair)
    async with trial(subject.plan, pair, num_ctx=subject.trial_tokens) as running:
        tick(plan.costs.load_s)
        calls = await greedy.tool_calls(running, subject.tool_cases)
        same = tuple(a == b for a, b in zip(base.tool_calls, calls, strict=True))
        depths = (0, plan.deep_tokens) if plan.deep_tokens else (0,)
        speeds = [await _speed(running, depth) for depth in depths]
        tick(plan.speeds_s)
        if quality is None:
            scores = await _scores(running, base.sample, base, tick)
            quality = quality_of(scores)
        trajectory = greedy.first_differences(base.answers, await _answers(running, plan))
        tick(plan.answers_s)
        return Full(
            quality=quality,
            scores=scores,
            trajectory=msgspec.structs.replace(trajectory, same_tool_calls=same),
            speeds=tuple(speeds),
            facts=_facts(running),
        )


async def _speed(running: Trial, depth_tokens: int) -> Speed:
    return speed.fastest([await speed.speed_at(running, depth_tokens) for _ in range(SPEED_ROUNDS)])


async def _scores(running: Trial, text: Sample, base: Baseline, tick: Tick) -> TokenScores:
    score_s = base.schedule.costs.score_s
    return await forcing.score(running, text, base.reference, on_token=lambda: tick(score_s))


async def _answers(running: Trial, plan: Schedule) -> tuple[tuple[int, ...], ...]:
    prompts = sample.chat_prompts()[:PROMPTS]
    return await greedy.answers(running, prompts, n_tokens=plan.answer_tokens)


def _facts(running: Trial) -> Facts:
    measured, shape = running.measured, running.plan.file.shape
    return Facts(
        kv_bytes=measured.kv_bytes,
        compute_bytes=sum(b.size_bytes for b in measured.buffers if b.kind == "compute"),
        flash_attention=measured.flash_attention,
        unrotated=tuple(measured.unrotated),
        path=measured.attention_path(
            sum(layer.has_cache for layer in shape.layers), has_experts=_has_experts(running.plan)
        ),
    )


def _has_experts(plan: Plan) -> bool:
    return bool(plan.file.metadata.integer(f"{plan.file.metadata.architecture}.expert_count"))
