"""What a study found, as one document: pairs, environment, picks, and how sure they are."""

import os
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import partial

import msgspec
from msgspec import Struct

from kvsup.divergence import is_tie
from kvsup.kvtypes import F16, KVPair
from kvsup.measures import Goal, Method, PairMeasurement, TokenScores, Tuned
from kvsup.pareto import (
    FLOOR_FACTOR,
    GOALS,
    deep_speed,
    finding,
    loss_nats,
    overlaps,
    pareto,
    pick,
    size_bytes,
)
from kvsup.plan import Plan
from kvsup.tuning.measuring import Baseline, Full

COMMENT = "# kvsup tune"
"""How the line begins that stands above a pair that was written into a file."""


class Environment(Struct, frozen=True, kw_only=True):
    """All that the numbers of a study depend on."""

    model_file: str
    model_stamp: str
    model_digest: str
    binary: str
    build: str
    version: str
    devices: tuple[str, ...]
    """Empty on a CPU."""
    threads: int | None
    """None: one a core."""
    cores: int | None
    """Of the machine; None: not known."""
    gpu_layers: int | None
    extra_args: tuple[str, ...]
    flash_attention: str
    """What it came out as, from the log."""
    unrotated: tuple[str, ...]
    """Halves, ``k`` or ``v``, that were quantized and not rotated, from the log."""
    method: Method
    sample_digest: str
    text_kinds: tuple[str, ...]
    screen_tokens: int
    """Scored for each type alone; 0: nothing was screened."""
    full_tokens: int
    """Scored for each pair that was measured in full."""
    prompts: int
    """Chats answered greedily."""
    num_ctx: int
    """Tokens of one request that bytes are for."""
    num_parallel: int
    trial_ctx: int
    """Tokens of the context that was measured in."""
    measured_at: str
    """ISO date and time, UTC."""
    wall_s: float
    """Of this run; what an earlier one had measured already is not in it."""


class StudyResult(Struct, frozen=True, kw_only=True):
    """One study, complete or broken off."""

    model: str
    goal: Goal
    pick: str | None
    """The pair for the goal, under the limits that were given; None: no pair will do."""
    reason: str
    sentence: str
    """Whether K or V matters more."""
    picks: dict[str, str]
    """Pair for each goal that has one, without limits."""
    front: tuple[str, ...]
    """Measured pairs that no other dominates in bytes and loss, by bytes."""
    ties: tuple[tuple[str, ...], ...]
    """Pairs that cannot be told apart from their neighbours at this sample."""
    at_floor: tuple[str, ...]
    """Pairs that lose no more than f16:f16 does against itself."""
    pairs: tuple[PairMeasurement, ...]
    """Every pair that was considered, the smallest loss first."""
    refused: dict[str, str]
    """Pairs that this model or binary cannot run, with the reason."""
    rank_agreement: float | None
    """Spearman's correlation with llama-perplexity over the finalists; None: not compared."""
    is_complete: bool
    """All that should be measured was measured, or failed for another reason than time."""
    notes: tuple[str, ...]
    """What went otherwise than was asked for, with the mend."""
    environment: Environment


def concluded(
    measurements: Sequence[PairMeasurement],
    scores: Mapping[str, TokenScores],
    environment: Environment,
    *,
    model: str,
    goal: Goal,
    max_kld: float | None,
    cache_bytes: int | None,
    refused: Mapping[str, str],
    rank_agreement: float | None,
    is_complete: bool,
    notes: Sequence[str] = (),
) -> StudyResult:
    """Return the document of a study.

    Args:
        measurements: of every pair, f16:f16 against itself among them.
        scores: of single tokens, for pairs that were measured in full on the same sample.
        environment: where and how.
        model: its name.
        goal: what is looked for.
        max_kld: a limit on the loss instead of the goal's own.
        cache_bytes: what the cache may take.
        refused: pairs that cannot run, with the reason.
        rank_agreement: with llama-perplexity.
        is_complete: nothing was left out.
        notes: what went otherwise than was asked for.
    """
    ordered = sorted(measurements, key=lambda m: (loss_nats(m), m.predicted_kld_nats or 0, m.pair))
    measured = [m for m in ordered if m.quality is not None]
    choice = pick(ordered, goal, max_kld=max_kld, memory_bytes=cache_bytes)
    return StudyResult(
        model=model,
        goal=goal,
        pick=choice.pair,
        reason=choice.reason,
        sentence=finding(ordered, partial(_equal, scores)),
        picks={g: pair for g in GOALS if (pair := pick(ordered, g).pair) is not None},
        front=tuple(m.pair for m in pareto(ordered)),
        ties=_ties(measured, scores),
        at_floor=_at_floor(measured),
        pairs=tuple(ordered),
        refused=dict(refused),
        rank_agreement=rank_agreement,
        is_complete=is_complete,
        notes=tuple(notes),
        environment=environment,
    )


def _at_floor(measured: Collection[PairMeasurement]) -> tuple[str, ...]:
    floor = next((loss_nats(m) for m in measured if m.pair == str(F16)), None)
    if floor is None:
        return ()
    return tuple(
        m.pair for m in measured if m.pair != str(F16) and loss_nats(m) <= FLOOR_FACTOR * floor
    )


def _ties(
    measured: Sequence[PairMeasurement], scores: Mapping[str, TokenScores]
) -> tuple[tuple[str, ...], ...]:
    """Return runs of pairs, in the order of their losses, each no worse than its run's first."""
    groups: list[list[PairMeasurement]] = []
    for measurement in measured:
        if groups and _equal(scores, groups[-1][0], measurement):
            groups[-1].append(measurement)
        else:
            groups.append([measurement])
    return tuple(tuple(m.pair for m in group) for group in groups if len(group) > 1)


def _equal(scores: Mapping[str, TokenScores], a: PairMeasurement, b: PairMeasurement) -> bool:
    if a.pair in scores and b.pair in scores:
        return is_tie(scores[a.pair], scores[b.pair])
    return overlaps(a, b)


def measurement_of(
    plan: Plan,
    found: Mapping[KVPair, Full],
    *,
    trial_tokens: int,
    predicted_nats: float | None,
    failure: str | None,
) -> PairMeasurement:
    """Return one pair as it is reported.

    Bytes are those of its plan; what only the log of a trial told is scaled to the plan's context:
    the sizes of types that are not known, and the scratch of a device, which grows with it.

    Args:
        plan: of the pair, at the context that bytes are for.
        found: what was measured in full, f16:f16 among it.
        trial_tokens: the context of the trials.
        predicted_nats: the loss from the pair's halves.
        failure: why it could not be measured.
    """
    pair, size = plan.model.kv_cache_type, plan.estimate
    measurement = PairMeasurement(
        pair=str(pair),
        k_bytes=size.k_bytes,
        v_bytes=size.v_bytes,
        is_exact=size.is_exact,
        predicted_kld_nats=predicted_nats,
        failure=failure,
    )
    full = found.get(pair)
    if full is None:
        return measurement
    scale = plan.model.num_ctx * plan.model.num_parallel / trial_tokens
    k_bytes, v_bytes = size.k_bytes, size.v_bytes
    if not size.is_exact and full.facts.kv_bytes is not None:
        k_bytes, v_bytes = (round(told * scale) for told in full.facts.kv_bytes)
    scratch = full.facts.compute_bytes - found.get(F16, full).facts.compute_bytes
    return msgspec.structs.replace(
        measurement,
        k_bytes=k_bytes,
        v_bytes=v_bytes,
        scratch_bytes=max(0, round(scratch * scale)),
        quality=full.quality,
        speeds=full.speeds,
        trajectory=full.trajectory,
        verdict=full.facts.path,
        failure=None,
    )


def environment_of(
    plan: Plan,
    base: Baseline,
    found: Mapping[KVPair, Full],
    *,
    method: Method,
    trial_tokens: int,
    measured_at: datetime,
    wall_s: float,
) -> Environment:
    """Return where and how a study was made; ``plan`` is at the context that bytes are for."""
    model = plan.model
    n_tokens = {full.quality.n_tokens for full in found.values()}
    return Environment(
        model_file=model.model,
        model_stamp=plan.file.stamp,
        model_digest=plan.digest,
        binary=plan.binary.path,
        build=plan.binary.label,
        version=plan.binary.version,
        devices=tuple(device.description for device in plan.binary.devices),
        threads=model.threads,
        cores=os.cpu_count(),
        gpu_layers=model.gpu_layers,
        extra_args=tuple(model.extra_args),
        flash_attention=base.facts.flash_attention,
        unrotated=tuple(sorted({half for full in found.values() for half in full.facts.unrotated})),
        method=method,
        sample_digest=base.sample.digest,
        text_kinds=tuple(dict.fromkeys(passage.kind for passage in base.sample.passages)),
        screen_tokens=base.schedule.screen_tokens,
        full_tokens=max(n_tokens, default=0),
        prompts=len(base.answers),
        num_ctx=model.num_ctx,
        num_parallel=model.num_parallel,
        trial_ctx=trial_tokens,
        measured_at=measured_at.isoformat(timespec="seconds"),
        wall_s=round(wall_s, 1),
    )


def tuned(result: StudyResult) -> Tuned:
    """Return what ``kv_cache_type = "auto"`` reads."""
    return Tuned(
        model=result.model,
        binary=result.environment.build,
        measured_at=result.environment.measured_at,
        picks=result.picks,
        sentence=result.sentence,
    )


def toml_line(result: StudyResult) -> str:
    """Return the line to write into the model's file, or an empty text where no pair will do."""
    return f'kv_cache_type = "{result.pick}"' if result.pick else ""


def comment(result: StudyResult) -> str:
    """Return the line that stands above it: what was measured, when, and with which build."""
    chosen = next(m for m in result.pairs if m.pair == result.pick)
    baseline = next((m for m in result.pairs if m.pair == str(F16)), chosen)
    facts = [f"goal {result.goal}"]
    if chosen.quality is not None:
        facts.append(
            f"loses {chosen.quality.mean_kld_nats:.2g} nats against f16:f16 "
            f"({chosen.quality.n_tokens} tokens), same top token {chosen.quality.same_top:.1%}"
        )
    facts.append(f"{size_bytes(chosen) / max(1, size_bytes(baseline)):.0%} of its bytes")
    speed, was = deep_speed(chosen), deep_speed(baseline)
    if speed and was and speed.depth_tokens == was.depth_tokens:
        ratio = speed.generation_tokens_per_s / was.generation_tokens_per_s
        facts.append(f"{ratio:.0%} of its speed behind {speed.depth_tokens} tokens")
    day = result.environment.measured_at[:10]
    return f"{COMMENT} {day}, {result.environment.build}: {', '.join(facts)}"
