"""A finished study, as tests of its report and its plot need one."""

from collections.abc import Mapping

from kvsup.measures import PairMeasurement, Quality, Speed, TokenScores, Trajectory
from kvsup.tuning.report import Environment, StudyResult, concluded

ENVIRONMENT = Environment(
    model_file="/demo.gguf",
    model_stamp="stamp",
    model_digest="digest",
    binary="/bin/llama-server",
    build="b11434",
    version="0.6.0",
    devices=(),
    threads=1,
    cores=2,
    gpu_layers=None,
    extra_args=("--no-repack",),
    flash_attention="enabled",
    unrotated=(),
    method="server",
    sample_digest="sample",
    text_kinds=("prose", "code"),
    screen_tokens=256,
    full_tokens=1000,
    prompts=30,
    num_ctx=4096,
    num_parallel=1,
    trial_ctx=4096,
    measured_at="2026-11-24T18:00:00+00:00",
    wall_s=300.0,
)


def measured(pair: str, n_bytes: int, kld: float, tokens_per_s: float) -> PairMeasurement:
    """Return a pair that was measured in full."""
    return PairMeasurement(
        pair=pair,
        k_bytes=n_bytes // 2,
        v_bytes=n_bytes - n_bytes // 2,
        quality=Quality(
            n_tokens=1000,
            mean_kld_nats=kld,
            low_kld_nats=0.9 * kld,
            high_kld_nats=1.1 * kld,
            p999_kld_nats=10 * kld,
            max_kld_nats=20 * kld,
            same_top=0.95,
            perplexity_ratio=1.01,
        ),
        speeds=(
            Speed(depth_tokens=0, prompt_tokens_per_s=500, generation_tokens_per_s=150),
            Speed(depth_tokens=2048, prompt_tokens_per_s=300, generation_tokens_per_s=tokens_per_s),
        ),
        trajectory=Trajectory(first_difference=(3, None), lengths=(24, 24)),
    )


def result_of(
    *more: PairMeasurement,
    cache_bytes: int | None = None,
    is_complete: bool = True,
    notes: tuple[str, ...] = (),
    scores: Mapping[str, TokenScores] | None = None,
) -> StudyResult:
    """Return a study of five pairs, and of ``more``."""
    return concluded(
        [
            measured("f16:f16", 900 << 20, 0.0, 100),
            measured("q8_0:q8_0", 478 << 20, 0.0041, 90),
            measured("q8_0:q4_0", 366 << 20, 0.0109, 85),
            measured("q4_0:q8_0", 366 << 20, 0.0652, 110),
            measured("q4_0:q4_0", 253 << 20, 0.0742, 95),
            *more,
        ],
        scores or {},
        ENVIRONMENT,
        model="demo",
        goal="balanced",
        max_kld=None,
        cache_bytes=cache_bytes,
        refused={},
        rank_agreement=None,
        is_complete=is_complete,
        notes=notes,
    )
