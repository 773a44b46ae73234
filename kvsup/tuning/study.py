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

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial

import msgspec

from kvsup.divergence import spearman
from kvsup.kvtypes import F16, KVPair
from kvsup.pareto import ALWAYS, halves, predicted
from kvsup.plan import Plan
from kvsup.runtime.knowledge import keep_tuned
from kvsup.runtime.remembered import Remembered, key_of
from kvsup.tuning import measuring, sample
from kvsup.tuning.judge import CHECK_CHUNKS, MAX_CHUNKS, Judge, judging
from kvsup.tuning.measuring import Baseline, Full, Screened, Subject
from kvsup.tuning.report import StudyResult, concluded, environment_of, measurement_of, tuned
from kvsup.tuning.sample import Conversation
from kvsup.tuning.scope import Wishes, cache_bytes, check_room, considered
from kvsup.tuning.stages import (
    Costs,
    Event,
    Schedule,
    Stage,
    finalists,
    schedule,
    shortfall,
)
from kvsup.tuning.steps import Steps
from kvsup.tuning.trial import TrialFailed

FORM = 2
"""Grows when the same key would mean another measurement: what was kept before is then unused."""

MIN_RANKED = 4
"""Fewer pairs have no ranking to speak of."""
CHECK_PROMPTS = 2
"""How much longer llama-perplexity reads a token than llama-server, since it keeps all logits."""


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
        ConfigError: nothing that was asked for can be measured; the message says what can.
        TrialFailed: f16:f16 itself cannot be run.
    """
    pairs, refused = considered(plan, wishes)
    text = wishes.text
    conversations = sample.built_in() if text is None else sample.from_text(text)
    max_chunks = MAX_CHUNKS if wishes.method == "perplexity" else CHECK_CHUNKS
    with judging(plan, conversations, max_chunks=max_chunks) as judge:
        if wishes.method == "perplexity" and judge is None:
            raise TrialFailed(f"{plan.binary.path} has no llama-perplexity beside it")
        work = _Study(
            plan,
            wishes,
            steps=Steps(remembered, budget_s=wishes.budget_s, is_fresh=wishes.is_fresh, emit=emit),
            conversations=conversations,
            judge=judge,
        )
        result = await work.result(pairs, refused)
    if result.is_complete and work.is_for_auto:
        keep_tuned(remembered, plan, tuned(result))
    return result


class _Study:
    def __init__(
        self,
        plan: Plan,
        wishes: Wishes,
        *,
        steps: Steps,
        conversations: tuple[Conversation, ...],
        judge: Judge | None,
    ) -> None:
        self._plan = plan
        self._wishes = wishes
        self._steps = steps
        self._subject = Subject(
            plan=plan,
            conversations=conversations,
            tool_cases=wishes.tool_cases,
            judge=judge if wishes.method == "perplexity" else None,
        )
        self._checker = judge if wishes.method == "server" else None
        self.is_for_auto = wishes.pairs in {None, "all"}
        """The usual pairs are looked at, whatever memory they take."""

    async def result(self, pairs: tuple[KVPair, ...], refused: Mapping[KVPair, str]) -> StudyResult:
        """Work through the stages; ``refused`` cannot run."""
        wishes = self._wishes
        plans = {pair: self._at_context(pair) for pair in (F16, *pairs)}
        check_room(plans, wishes.memory_bytes)
        named = refused.items() if isinstance(wishes.pairs, tuple) else ()
        self._steps.note(*plans[F16].notes, *(f"{pair} is left out: {why}" for pair, why in named))
        alone = halves(pairs) if wishes.pairs is None else ()
        base = await self._baseline(len(alone), len(pairs))
        n_silent = base.tool_calls.count("[]")
        if n_silent:
            self._steps.note(f"f16:f16 calls no tool in {n_silent} of {len(base.tool_calls)} cases")
        losses, is_screened = await self._screen(alone, base)
        chosen = pairs
        if not is_screened:  # what there was no time to screen is kept out
            chosen = tuple(p for p in pairs if str(p) in ALWAYS or predicted(p, losses) is not None)
        if wishes.pairs is None:
            chosen = self._finalists(chosen, plans, losses, base.schedule)
        found, is_complete = await self._measure((F16, *chosen), base)
        agreement = await self._cross_check(found, base)
        measurements = [
            measurement_of(
                its_plan,
                found,
                trial_tokens=self._subject.trial_tokens,
                predicted_nats=predicted(pair, losses),
                failure=self._steps.failures.get(pair),
            )
            for pair, its_plan in plans.items()
        ]
        environment = environment_of(
            plans[F16],
            base,
            found,
            method=wishes.method,
            trial_tokens=self._subject.trial_tokens,
            measured_at=datetime.now(timezone.utc),
            wall_s=self._steps.spent_s,
        )
        return concluded(
            measurements,
            {str(pair): full.scores for pair, full in found.items() if full.scores},
            environment,
            model=self._plan.name,
            goal=wishes.goal,
            max_kld=wishes.max_kld,
            cache_bytes=cache_bytes(plans[F16], wishes.memory_bytes),
            refused={str(pair): reason for pair, reason in refused.items()},
            rank_agreement=agreement,
            is_complete=is_screened and is_complete and not self._steps.is_cut,
            notes=self._steps.notes,
        )

    def _finalists(
        self,
        pairs: Sequence[KVPair],
        plans: Mapping[KVPair, Plan],
        losses: Mapping[KVPair, float],
        plan: Schedule,
    ) -> tuple[KVPair, ...]:
        """Return the pairs to measure in full."""
        room_bytes = cache_bytes(plans[F16], self._wishes.memory_bytes)
        sizes = {
            pair: plan.estimate.kv_bytes + plan.estimate.scratch_bytes
            for pair, plan in plans.items()
        }
        choose = partial(
            finalists, pairs, sizes, losses, n_most=plan.n_finalists, max_kld=self._wishes.max_kld
        )
        if room_bytes is None:
            return choose()
        self.is_for_auto &= max(sizes.values()) <= room_bytes
        return choose(max_bytes=room_bytes)

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
        if (kept := self._steps.read(key, Baseline)) is not None:
            return kept
        self._steps.meter.expect(wishes.budget_s)
        self._steps.meter.begin("reference", str(F16), 0.0)
        spent_s = 0.0

        def decide(costs: Costs) -> Schedule:
            nonlocal spent_s
            spent_s = self._steps.spent_s
            plan = schedule(
                costs,
                budget_s=wishes.budget_s - spent_s,
                n_halves=n_halves,
                n_wanted=n_wanted,
                max_deep_tokens=self._subject.max_deep_tokens,
            )
            short = shortfall(plan, n_halves, spent_s=spent_s, budget_s=wishes.budget_s)
            self._steps.note(*([short] if short else []))
            self._expect(
                plan, n_halves=n_halves, n_full=1 + plan.n_finalists, more_s=plan.reference_s
            )
            self._steps.meter.begin("reference", str(F16), plan.reference_s)
            return plan

        base = await measuring.baseline(self._subject, decide, self._steps.meter.tick)
        self._steps.meter.end(self._steps.spent_s - spent_s)
        self._steps.write(key, base)
        return base

    async def _screen(
        self, alone: Sequence[KVPair], base: Baseline
    ) -> tuple[dict[KVPair, float], bool]:
        """Return the losses of types alone, and whether there was time for all of them."""
        plan, losses, is_complete = base.schedule, {}, True
        text = base.sample.first(plan.screen_tokens).digest
        keys = {pair: self._key(pair, "screen", text) for pair in alone}
        kept = {pair: self._steps.read(key, Screened) for pair, key in keys.items()}
        n_left = sum(done is None for done in kept.values())
        self._expect(plan, n_halves=n_left, n_full=1 + plan.n_finalists)
        if n_left:
            await self._prepare(self._subject.judge, "reference", plan.costs)
        step_s = plan.screen_s + _judged_s(self._subject.judge, plan.costs)
        for pair, before in kept.items():
            done = before
            if before is None and self._steps.is_late(step_s):
                is_complete = False
            elif before is None:
                work = partial(
                    measuring.screened, self._subject, pair, base, self._steps.meter.tick
                )
                done = await self._steps.done("screen", pair, keys[pair], work, step_s)
            if done is not None:
                losses[pair] = done.quality.mean_kld_nats
        return losses, is_complete

    async def _measure(
        self, pairs: Sequence[KVPair], base: Baseline
    ) -> tuple[dict[KVPair, Full], bool]:
        """Return what was found of ``pairs``, and whether there was time for all of them."""
        plan, is_complete = base.schedule, True
        step_s = plan.full_s + _judged_s(self._subject.judge, plan.costs)
        found: dict[KVPair, Full] = {}
        facts = (base.sample.digest, plan.answer_tokens, plan.deep_tokens)
        keys = {pair: self._key(pair, "full", *facts) for pair in pairs}
        kept = {pair: self._steps.read(key, Full) for pair, key in keys.items()}
        n_left = sum(done is None for done in kept.values())
        self._expect(plan, n_full=n_left)
        if n_left:
            await self._prepare(self._subject.judge, "reference", plan.costs)
        for pair, before in kept.items():
            done = before
            if before is None and found and self._steps.is_late(step_s):
                is_complete = False
            elif before is None:
                work = partial(measuring.full, self._subject, pair, base, self._steps.meter.tick)
                done = await self._steps.done("measure", pair, keys[pair], work, step_s)
            if done is not None:
                found[pair] = done
        return found, is_complete

    async def _cross_check(self, found: Mapping[KVPair, Full], base: Baseline) -> float | None:
        """Return how far llama-perplexity ranks the pairs alike; None where it cannot be said."""
        pairs = [pair for pair in found if pair != F16]
        judge, costs = self._checker, base.schedule.costs
        if judge is None or len(pairs) < MIN_RANKED:
            return None
        step_s = _judged_s(judge, costs)
        keys = {pair: self._key(pair, "cross-check", judge.n_tokens) for pair in pairs}
        kept = {pair: self._steps.read(key, Screened) for pair, key in keys.items()}
        n_left = sum(done is None for done in kept.values())
        if n_left and self._steps.is_late((1 + n_left) * step_s):
            return None
        self._steps.meter.expect((1 + n_left) * step_s)
        if n_left:
            try:
                await self._prepare(judge, "cross-check", costs)
            except TrialFailed as error:
                self._steps.note(f"losses were not compared with llama-perplexity's: {error}")
                return None
        theirs = {}
        for pair, before in kept.items():
            done = before
            if before is None:
                work = partial(measuring.judged, judge, pair)
                done = await self._steps.done("cross-check", pair, keys[pair], work, step_s)
            if done is not None:
                theirs[pair] = done.quality.mean_kld_nats
        ours = {pair: found[pair].quality.mean_kld_nats for pair in theirs}
        return rank_agreement(ours, theirs)

    async def _prepare(self, judge: Judge | None, stage: Stage, costs: Costs) -> None:
        """Let llama-perplexity, where it is asked, run f16:f16 once.

        Raises:
            TrialFailed: it cannot, or takes too long.
        """
        if judge is None or judge.is_prepared:
            return
        step_s = _judged_s(judge, costs)
        try:
            await self._steps.timed(stage, str(F16), judge.prepare, step_s)
        except TimeoutError as error:
            raise TrialFailed("llama-perplexity takes too long for f16:f16") from error

    def _expect(
        self, plan: Schedule, *, n_halves: int = 0, n_full: int = 0, more_s: float = 0.0
    ) -> None:
        """Say what is to be done yet, with the cross-check for which there may be time."""
        judged_s = _judged_s(self._subject.judge, plan.costs)
        checks_s = (1 + plan.n_finalists) * _judged_s(self._checker, plan.costs)
        screens_s = n_halves * (plan.screen_s + judged_s)
        self._steps.meter.expect(more_s + screens_s + n_full * (plan.full_s + judged_s) + checks_s)

    def _key(self, pair: KVPair, stage: str, *parts: object) -> str:
        """Return what changes with all that a measurement of ``stage`` depends on."""
        subject = self._subject
        if stage in {"screen", "cross-check"}:
            subject = replace(subject, tool_cases=())
        binary = self._plan.binary
        machine = ([(d.name, d.description) for d in binary.devices], os.cpu_count())
        asked = (sample.chat_prompts(), self._wishes.method)
        return key_of(FORM, subject.key(pair), machine, asked, stage, *parts)


def rank_agreement(ours: Mapping[KVPair, float], theirs: Mapping[KVPair, float]) -> float | None:
    """Return how far two kinds of losses of the same pairs rank them alike, -1 to 1.

    None where too few pairs, or losses that are all equal, have no ranking to speak of.
    """
    if len(ours) < MIN_RANKED or min(len(set(ours.values())), len(set(theirs.values()))) < 2:
        return None
    return spearman([ours[pair] for pair in theirs], list(theirs.values()))


def _judged_s(judge: Judge | None, costs: Costs) -> float:
    """Return the seconds that llama-perplexity should take for one pair."""
    return costs.load_s + judge.n_tokens * CHECK_PROMPTS * costs.prompt_s if judge else 0.0
