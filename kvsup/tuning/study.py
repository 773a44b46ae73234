"""Find the best pair for one model, binary and machine, in stages that fit a budget of time.

1. ``reference``: f16:f16 scores the sample and answers the prompts; what that took decides how much
   is measured of how many pairs.
2. ``screen``: each type in K alone and in V alone, on the first tokens of the sample. A pair's loss
   is predicted as the sum of its halves'.
3. ``measure``: f16:f16 once more in a new process (the floor), then the pairs that the predictions
   leave, in full.
4. ``cross-check``: the same pairs by llama-perplexity where it is there and time is left.

Whatever is done is kept at once, by all that it depends on; a study that was broken off finds it.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Literal, TypeVar

import anyio
import msgspec
from msgspec import Struct

from kvsup.divergence import spearman
from kvsup.kvtypes import F16, KVPair
from kvsup.measures import Goal, Method
from kvsup.pareto import candidates, halves, predicted
from kvsup.plan import Plan
from kvsup.runtime.knowledge import keep_tuned
from kvsup.runtime.remembered import Remembered, key_of
from kvsup.tuning import measuring, sample
from kvsup.tuning.greedy import ToolCase
from kvsup.tuning.judge import Judge, judging
from kvsup.tuning.measuring import Baseline, Full, Screened, Subject
from kvsup.tuning.report import StudyResult, concluded, environment_of, measurement_of, tuned
from kvsup.tuning.sample import Conversation
from kvsup.tuning.stages import (
    MAX_SLOWNESS,
    Costs,
    Event,
    Meter,
    PairDone,
    PairFailed,
    Schedule,
    Stage,
    finalists,
    schedule,
)
from kvsup.tuning.trial import TrialFailed

FORM = 1
"""Grows when the same key would mean another measurement: what was kept before is then unused."""

KIND = "tune"
"""Of the documents that are kept of a study."""
LEAST_PATIENCE_S = 60.0
"""With one pair, however little was planned for it."""

MIN_RANKED = 4
"""Fewer pairs have no ranking to speak of."""
CHECK_PROMPTS = 2
"""How much longer llama-perplexity reads a token than llama-server, since it keeps all logits."""

D = TypeVar("D", bound=Struct)
T = TypeVar("T", bound=Screened)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person wants of a study."""

    goal: Goal = "balanced"
    max_kld: float | None = None
    """A limit on the mean loss in nats, instead of the goal's own."""
    num_ctx: int | None = None
    """Tokens of one request that bytes are for; None: as configured."""
    memory_bytes: int | None = None
    """What the model may take in all."""
    pairs: tuple[KVPair, ...] | Literal["all"] | None = None
    """To measure in full; None: those that screening leaves."""
    text: str | None = None
    """To score instead of the built-in conversations."""
    tool_cases: tuple[ToolCase, ...] = ()
    method: Method = "server"
    budget_s: float = 600.0
    is_fresh: bool = False
    """Measure anew what was measured before."""


async def study(
    plan: Plan, wishes: Wishes, *, remembered: Remembered, emit: Callable[[Event], None]
) -> StudyResult:
    """Return what is found; a study of the model's usual pairs is kept for ``auto``.

    Args:
        plan: the model as it is configured; its pair is of no account.
        wishes: what to look for.
        remembered: where every measurement is kept.
        emit: told how far the study is.

    Raises:
        TrialFailed: f16:f16 itself cannot be run.
    """
    text = wishes.text
    conversations = sample.built_in() if text is None else sample.from_text(text)
    with judging(plan, conversations) as judge:
        if wishes.method == "perplexity" and judge is None:
            raise TrialFailed(f"{plan.binary.path} has no llama-perplexity beside it")
        work = _Study(
            plan,
            wishes,
            kept=_Kept(remembered, is_fresh=wishes.is_fresh),
            emit=emit,
            conversations=conversations,
            judge=judge,
        )
        result = await work.result()
    if result.is_complete and wishes.pairs in {None, "all"}:
        keep_tuned(remembered, plan, tuned(result))
    return result


class _Kept:
    """What was measured before, unless it is to be measured anew, and what is measured now."""

    def __init__(self, remembered: Remembered, *, is_fresh: bool) -> None:
        self._remembered = remembered
        self._is_fresh = is_fresh

    def read(self, key: str, as_type: type[D]) -> D | None:
        return None if self._is_fresh else self._remembered.read(KIND, key, as_type)

    def write(self, key: str, document: Struct) -> None:
        self._remembered.write(KIND, key, document)


class _Study:
    def __init__(
        self,
        plan: Plan,
        wishes: Wishes,
        *,
        kept: _Kept,
        emit: Callable[[Event], None],
        conversations: tuple[Conversation, ...],
        judge: Judge | None,
    ) -> None:
        self._began_s = time.monotonic()
        self._plan = plan
        self._wishes = wishes
        self._kept = kept
        self._emit = emit
        self._meter = Meter(emit)
        self._judge = judge
        self._subject = Subject(
            plan=plan,
            conversations=conversations,
            tool_cases=wishes.tool_cases,
            judge=judge if wishes.method == "perplexity" else None,
        )
        self._failures: dict[KVPair, str] = {}

    async def result(self) -> StudyResult:
        """Work through the stages."""
        wishes, plan = self._wishes, self._plan
        possible, refused = candidates(
            plan.binary.kv_types, plan.file.shape, plan.model.flash_attention
        )
        wanted = possible if wishes.pairs is None or wishes.pairs == "all" else wishes.pairs
        pairs = tuple(dict.fromkeys(pair for pair in wanted if pair != F16))
        alone = halves(pairs) if wishes.pairs is None else ()
        plans = {pair: self._at_context(pair) for pair in (F16, *pairs)}
        base = await self._baseline(len(alone), len(pairs))
        if self._subject.judge is not None:
            await self._subject.judge.prepare()
        losses = await self._screen(alone, base)
        chosen = pairs
        if wishes.pairs is None:
            bytes_of = {pair: plan.estimate.kv_bytes for pair, plan in plans.items()}
            chosen = finalists(pairs, bytes_of, losses, n_most=base.schedule.n_finalists)
        found, is_complete = await self._measure((F16, *chosen), base)
        agreement = await self._cross_check(found, base)
        measurements = [
            measurement_of(
                its_plan,
                found,
                trial_tokens=self._subject.trial_tokens,
                predicted_nats=predicted(pair, losses),
                failure=self._failures.get(pair),
            )
            for pair, its_plan in plans.items()
        ]
        scores = {str(pair): full.scores for pair, full in found.items() if full.scores}
        environment = environment_of(
            plans[F16],
            base,
            found,
            method=wishes.method,
            trial_tokens=self._subject.trial_tokens,
            measured_at=datetime.now(timezone.utc),
            wall_s=time.monotonic() - self._began_s,
        )
        return concluded(
            measurements,
            scores,
            environment,
            model=plan.name,
            goal=wishes.goal,
            max_kld=wishes.max_kld,
            cache_bytes=_cache_bytes(plans[F16], wishes.memory_bytes),
            refused={str(pair): reason for pair, reason in refused.items()},
            rank_agreement=agreement,
            is_complete=is_complete,
        )

    def _at_context(self, pair: KVPair) -> Plan:
        """Return the plan that bytes are told of."""
        num_ctx = self._wishes.num_ctx or self._plan.model.num_ctx
        return self._plan.configured_as(
            msgspec.structs.replace(
                self._plan.configured,
                kv_cache_type=pair,
                kv_is_auto=False,
                num_ctx=num_ctx,
                num_ctx_is_auto=False,
            )
        )

    # The stages.

    async def _baseline(self, n_halves: int, n_pairs: int) -> Baseline:
        wishes = self._wishes
        n_wanted = None if wishes.pairs is None else n_pairs
        key = self._key(F16, "baseline", wishes.budget_s, n_halves, n_wanted)
        if (kept := self._kept.read(key, Baseline)) is not None:
            return kept
        self._meter.expect(wishes.budget_s)
        self._meter.begin("reference", str(F16), 0.0)

        def decide(costs: Costs) -> Schedule:
            plan = schedule(
                costs,
                budget_s=wishes.budget_s - (time.monotonic() - self._began_s),
                n_halves=n_halves,
                n_wanted=n_wanted,
                max_deep_tokens=self._subject.max_deep_tokens,
            )
            n_full = 2 + plan.n_finalists
            self._meter.expect(n_halves * plan.screen_s + n_full * plan.full_s)
            self._meter.begin("reference", str(F16), plan.full_s)
            return plan

        base = await measuring.baseline(self._subject, decide, self._meter.tick)
        self._kept.write(key, base)
        return base

    async def _screen(self, alone: Sequence[KVPair], base: Baseline) -> dict[KVPair, float]:
        """Return the losses of types alone; those that fail are missing."""
        plan, losses = base.schedule, {}
        text = base.sample.first(plan.screen_tokens).digest
        keys = {pair: self._key(pair, "screen", text) for pair in alone}
        n_left = sum(self._kept.read(key, Screened) is None for key in keys.values())
        self._meter.expect(n_left * plan.screen_s + (1 + plan.n_finalists) * plan.full_s)
        for pair, key in keys.items():
            done = self._kept.read(key, Screened)
            if done is None:
                work = partial(measuring.screened, self._subject, pair, base, self._meter.tick)
                step_s = plan.screen_s + _judged_s(self._subject.judge, base)
                done = await self._done("screen", pair, key, work, step_s)
            if done is not None:
                losses[pair] = done.quality.mean_kld_nats
        return losses

    async def _measure(
        self, pairs: Sequence[KVPair], base: Baseline
    ) -> tuple[dict[KVPair, Full], bool]:
        """Return what was found of ``pairs``, and whether there was time for all of them."""
        plan, is_complete = base.schedule, True
        step_s = plan.full_s + _judged_s(self._subject.judge, base)
        found: dict[KVPair, Full] = {}
        facts = (base.sample.digest, plan.answer_tokens, plan.deep_tokens)
        keys = {pair: self._key(pair, "full", *facts) for pair in pairs}
        kept = {pair: self._kept.read(key, Full) for pair, key in keys.items()}
        self._meter.expect(step_s * sum(done is None for done in kept.values()))
        for pair, before in kept.items():
            done = before
            if before is None and found and self._is_late(step_s):
                is_complete = False
            elif before is None:
                work = partial(measuring.full, self._subject, pair, base, self._meter.tick)
                done = await self._done("measure", pair, keys[pair], work, step_s)
            if done is not None:
                found[pair] = done
        return found, is_complete

    async def _cross_check(self, found: Mapping[KVPair, Full], base: Baseline) -> float | None:
        """Return how far llama-perplexity ranks the pairs alike; None where it cannot be said."""
        pairs = [pair for pair in found if pair != F16]
        judge = self._judge
        if judge is None or self._subject.judge is not None or len(pairs) < MIN_RANKED:
            return None
        step_s = _judged_s(judge, base)
        keys = {pair: self._key(pair, "cross-check", judge.n_tokens) for pair in pairs}
        kept = {pair: self._kept.read(key, Screened) for pair, key in keys.items()}
        n_left = sum(done is None for done in kept.values())
        if n_left and self._is_late((1 + n_left) * step_s):
            return None
        self._meter.expect(n_left * step_s)
        if n_left:
            await judge.prepare()
        judged = {}
        for pair, before in kept.items():
            done = before
            if before is None:
                work = partial(measuring.judged, judge, pair)
                done = await self._done("cross-check", pair, keys[pair], work, step_s)
            if done is not None:
                judged[pair] = done.quality.mean_kld_nats
        if len(judged) < MIN_RANKED:
            return None
        ours = [found[pair].quality.mean_kld_nats for pair in judged]
        return spearman(ours, list(judged.values()))

    def _is_late(self, step_s: float) -> bool:
        return time.monotonic() - self._began_s + step_s > self._wishes.budget_s

    async def _done(
        self,
        stage: Stage,
        pair: KVPair,
        key: str,
        work: Callable[[], Awaitable[T]],
        step_s: float,
    ) -> T | None:
        """Measure and keep; None with its failure noted."""
        began_s = time.monotonic()
        self._meter.begin(stage, str(pair), step_s)
        try:
            with anyio.fail_after(max(MAX_SLOWNESS * step_s, LEAST_PATIENCE_S)):
                done = await work()
        except (TrialFailed, TimeoutError) as error:
            slow = f"it takes more than {MAX_SLOWNESS:g} times as long as f16:f16"
            reason = slow if isinstance(error, TimeoutError) else str(error)
            self._failures[pair] = reason
            self._emit(PairFailed(stage, str(pair), reason))
            return None
        finally:
            self._meter.end(time.monotonic() - began_s)
        self._kept.write(key, done)
        self._emit(PairDone(stage, str(pair), done.quality.mean_kld_nats))
        return done

    def _key(self, pair: KVPair, *parts: object) -> str:
        return key_of(FORM, self._subject.key(pair), self._wishes.method, *parts)


def _cache_bytes(plan: Plan, memory_bytes: int | None) -> int | None:
    """Return what is left of ``memory_bytes`` for the cache."""
    return None if memory_bytes is None else memory_bytes - plan.size_bytes + plan.estimate.kv_bytes


def _judged_s(judge: Judge | None, base: Baseline) -> float:
    """Return the seconds that llama-perplexity should take for one pair."""
    return judge.n_tokens * CHECK_PROMPTS * base.schedule.costs.prompt_s if judge else 0.0
