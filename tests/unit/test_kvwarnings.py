"""What the owner of a model is told of a load."""

from dataclasses import replace

import pytest

from kvsup import events
from kvsup.config import ModelConfig
from kvsup.gguf import Metadata, Value
from kvsup.kvchoice import Machine
from kvsup.kvtypes import parse_kv_pair
from kvsup.llama.binary import Binary
from kvsup.llama.logscan import (
    AttentionMoved,
    BufferSize,
    CompiledPairs,
    ContextReduced,
    Converted,
    Fact,
    FitFailed,
    FlashAttentionState,
    GraphSplits,
    KVCacheSize,
    LayersFitted,
    Offloaded,
    Released,
    Rotation,
    RotationDisabled,
    SlotContext,
    Timing,
)
from kvsup.measures import Speed, SpeedProbe
from kvsup.modelfile import ModelFile
from kvsup.modelshape import shape_of
from kvsup.plan import Plan, make_plan
from kvsup.runtime.kvwarnings import Findings, attention_path, kv_warnings, size_gap
from kvsup.runtime.measured import Measured

KEYS: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.vocab_size": 49152,
}
ELEMENTS = 30 * 256 * 192
ON_CUDA = (Offloaded(31, 31), BufferSize("CPU_Mapped", "model", 1), BufferSize("CUDA0", "model", 9))


def plan_of(pair: str = "q8_0:q4_0", *, n_parallel: int = 1) -> Plan:
    """Return a plan of a model shaped like SmolLM2, for 256 tokens."""
    metadata = Metadata(3, KEYS, ())
    return make_plan(
        ModelConfig(
            name="m",
            model="/m.gguf",
            num_ctx=256,
            num_parallel=n_parallel,
            kv_cache_type=parse_kv_pair(pair),
        ),
        Binary("/bin/llama-server", "0.6.0", 11434, ("f16",), frozenset(), ()),
        ModelFile(metadata, shape_of(metadata), 135_000_000, 90 << 20, 1, "stamp"),
        inherited={"PATH": "/bin"},
        run_dir="/run/kvsup/0123456789ab",
    )


def cache_of(pair: str, *, k_bits: float, v_bits: float) -> KVCacheSize:
    """Return the cache of ``plan_of`` with so many bits an element."""
    type_k, _, type_v = pair.partition(":")
    k_bytes, v_bytes = round(ELEMENTS * k_bits / 8), round(ELEMENTS * v_bits / 8)
    return KVCacheSize(type_k, type_v, k_bytes, v_bytes, cells=256, layers=30, streams=1)


CACHE = cache_of("q8_0:q4_0", k_bits=8.5, v_bits=4.5)


def measured_of(*facts: Fact) -> Measured:
    """Return what is kept of ``facts``."""
    measured = Measured()
    for fact in facts:
        measured.note(fact)
    return measured


def probe_of(*, tokens_per_s: float, baseline_splits: int | None = None) -> SpeedProbe:
    """Return a probe at 2048 tokens, equally fast as f16:f16."""
    speed = Speed(
        depth_tokens=2048, prompt_tokens_per_s=100.0, generation_tokens_per_s=tokens_per_s
    )
    return SpeedProbe(
        pair="q8_0:q4_0", speed=speed, baseline=speed, baseline_splits=baseline_splits
    )


def probed(plan: Plan) -> Plan:
    """Return the plan with its pair measured at 10 tokens/s, as fast as f16:f16."""
    return plan.on(Machine(("f16",), probes={"q8_0:q4_0": probe_of(tokens_per_s=10.0)}))


def requests(*tokens_per_s: float, depth_tokens: int = 500) -> list[Fact]:
    """Return the facts of finished requests of such speeds."""
    facts: list[Fact] = []
    for speed in tokens_per_s:
        timing = Timing(0, is_prompt=False, n_tokens=100, tokens_per_s=speed)
        facts += [timing, Released(0, depth_tokens + 100)]
    return facts


def test_warnings_of_a_load_as_planned_are_none() -> None:
    """Rotated, on the device, with all of its context."""
    facts = (*ON_CUDA, CACHE, Rotation("k", 64, 64), Rotation("v", 64, 64), GraphSplits(2, 2))

    assert kv_warnings(measured_of(*facts, SlotContext(256)), plan_of()) == ()


@pytest.mark.parametrize(
    ("facts", "warning"),
    [
        (
            [CACHE, Rotation("k", 0, 96), Rotation("v", 0, 96)],
            (
                "K (q8_0) and V (q4_0) are not rotated, so more is lost: heads of 96 elements are "
                "no multiple of 64; kvsup tune measures how much"
            ),
        ),
        (
            [CACHE, Rotation("k", 64, 192), Rotation("v", 0, 96)],
            (
                "V (q4_0) is not rotated, so more is lost: heads of 96 elements are no multiple "
                "of 64; kvsup tune measures how much"
            ),
        ),
        (
            [CACHE, Rotation("k", 0, 0)],
            (
                "K (q8_0) is not rotated, so more is lost: the heads of its layers differ; kvsup "
                "tune measures how much"
            ),
        ),
        (
            [CACHE, RotationDisabled(), Rotation("k", 0, 64)],
            "K (q8_0) is not rotated, so more is lost: unset LLAMA_ATTN_ROT_DISABLE",
        ),
        (
            [CompiledPairs(("q8_0-q8_0", "f16-f16")), *ON_CUDA, Converted("q8_0", "q4_0")],
            (
                "q8_0:q4_0 is converted to f16 on each step, which is slow: this llama-server has "
                "no kernel for it; use one of q8_0:q8_0, f16:f16, or build it with q8_0-q4_0 in "
                "GGML_CUDA_FA_QUANTS"
            ),
        ),
        (
            [*ON_CUDA, GraphSplits(62, 62)],
            (
                "attention runs on the CPU while the layers are on CUDA0 (62 graph splits), which "
                "is slow; kvsup check names the nearest pair that is fast there"
            ),
        ),
        (
            [*ON_CUDA, AttentionMoved(0, "CUDA0", "CPU"), FlashAttentionState("unsupported")],
            (
                "flash attention is off: CUDA0 cannot do it with q8_0:q4_0, so more memory is "
                "needed and long contexts are slow; kvsup check names a pair that works"
            ),
        ),
        (
            [ContextReduced(8192, 512), SlotContext(128)],
            (
                "llama-server reduced the context from 8192 to 512 tokens so that it fits; lower "
                "num_ctx or use a smaller pair"
            ),
        ),
        ([SlotContext(128)], "a request has 128 tokens, not the 256 of num_ctx"),
        (
            [LayersFitted("CUDA0", 20, 0), Offloaded(20, 31)],
            (
                "only 20 of 31 layers fit on the device, the rest runs on the CPU; lower num_ctx "
                "or use a smaller pair"
            ),
        ),
        (
            [LayersFitted("CUDA0", 31, 4), Offloaded(31, 31)],
            (
                "parts of 4 layers did not fit on the device and run on the CPU; lower num_ctx or "
                "use a smaller pair"
            ),
        ),
        (
            [FitFailed("n_gpu_layers already set by user to 99, abort")],
            (
                "llama-server found no way to fit it into free memory: n_gpu_layers already set by "
                "user to 99, abort"
            ),
        ),
    ],
)
def test_warning_of_a_finding_says_what_is_wrong_and_what_to_do(
    facts: list[Fact], warning: str
) -> None:
    """One sentence each."""
    assert kv_warnings(measured_of(*facts), plan_of()) == (warning,)


def test_warnings_of_fewer_layers_that_were_asked_for_are_none() -> None:
    """``gpu_layers`` says so; only what ``--fit`` lowers is silent."""
    assert kv_warnings(measured_of(Offloaded(20, 31), SlotContext(256)), plan_of()) == ()


def test_warning_known_beforehand_is_told_of_what_runs() -> None:
    """The table's word stands until the log says where attention runs."""
    plan = replace(plan_of(), slow_kv="q8_0:q4_0 is slow on this CPU")

    unseen = kv_warnings(measured_of(SlotContext(256)), plan)
    seen = kv_warnings(measured_of(*ON_CUDA, GraphSplits(62, 62)), plan)

    assert unseen == ("q8_0:q4_0 is slow on this CPU",)
    assert len(seen) == 1
    assert "62 graph splits" in seen[0]


def test_attention_path_with_more_splits_than_the_probe_of_f16_is_the_cpu() -> None:
    """A few layers whose attention is elsewhere are seen only beside f16:f16."""
    measured = measured_of(*ON_CUDA, GraphSplits(12, 12))
    probe = probe_of(tokens_per_s=10.0, baseline_splits=2)

    assert attention_path(measured, plan_of()) == "fast"
    assert attention_path(measured, plan_of(), probe) == "cpu"


def test_warning_of_a_falling_speed_comes_after_three_slow_requests() -> None:
    """Even the best of three is under half of what was measured deeper."""
    slow = requests(4.0, 4.5, 3.0)

    assert kv_warnings(measured_of(*slow), probed(plan_of())) == (
        "it generates less than half of the 10.0 tokens/s that were measured at 2048 tokens",
    )


@pytest.mark.parametrize(
    ("facts", "n_parallel"),
    [
        (requests(4.0, 4.5), 1),
        (requests(4.0, 6.0, 3.0), 1),
        (requests(4.0, 4.5, 3.0, depth_tokens=4000), 1),
        (requests(4.0, 4.5, 3.0), 4),
    ],
    ids=["too few", "one is fast", "deeper than the probe", "slots share the speed"],
)
def test_warning_of_a_falling_speed_waits_for_certainty(facts: list[Fact], n_parallel: int) -> None:
    """What has another explanation is not told."""
    plan = probed(plan_of(n_parallel=n_parallel))

    assert kv_warnings(measured_of(*facts), plan) == ()


def test_size_gap_of_a_cache_as_estimated_is_none() -> None:
    """To the rounding of the log."""
    rounded = replace(CACHE, k_bytes=CACHE.k_bytes + 5000)

    assert size_gap(measured_of(CACHE, SlotContext(256)), plan_of()) is None
    assert size_gap(measured_of(rounded, SlotContext(256)), plan_of()) is None


def test_size_gap_of_a_cache_three_percent_larger_has_both_numbers() -> None:
    """Estimated first, then measured."""
    larger = replace(CACHE, k_bytes=CACHE.k_bytes * 105 // 100)
    estimated = CACHE.k_bytes + CACHE.v_bytes

    gap = size_gap(measured_of(larger), plan_of())

    assert gap == (estimated, larger.k_bytes + larger.v_bytes)


def test_size_gap_of_caches_that_nobody_expected_is_all_of_them() -> None:
    """Where the log has more caches than the estimate, only their sums can be compared."""
    estimated = CACHE.k_bytes + CACHE.v_bytes

    gap = size_gap(measured_of(CACHE, CACHE, SlotContext(256)), plan_of())

    assert gap == (estimated, 2 * estimated)


@pytest.mark.parametrize("facts", [[], [SlotContext(256)]])
def test_size_gap_of_a_log_without_caches_is_none(facts: list[Fact]) -> None:
    """A build that tells no sizes is not wrong by all of them."""
    assert size_gap(measured_of(*facts), plan_of()) is None


def test_findings_are_told_once_and_stay_to_be_read() -> None:
    """Events at the start, sentences in listings; what comes later is told when it comes."""
    told: list[events.Event] = []
    measured = measured_of(replace(CACHE, k_bytes=2 * CACHE.k_bytes), Rotation("k", 0, 96))
    findings = Findings(plan_of(), measured, emit=told.append)

    findings.tell()
    findings.tell()
    measured.note(Converted("q8_0", "q4_0"))
    findings.tell()

    assert [type(event) for event in told] == [
        events.SizeDiffers,
        events.KVWarning,
        events.KVWarning,
    ]
    assert [getattr(event, "sentence", "") for event in told] == list(findings.sentences)


def test_findings_of_an_unknown_type_are_its_size_and_no_warning() -> None:
    """A fork's type counts as f16 before the load; its log tells what it takes."""
    told: list[events.Event] = []
    plan = plan_of("q8_0:turbo3")
    measured = measured_of(cache_of("q8_0:turbo3", k_bits=8.5, v_bits=3.25), SlotContext(256))
    findings = Findings(plan, measured, emit=told.append)

    findings.tell()

    assert told == [events.TypeLearnt("m", "turbo3", 3.25)]
    assert findings.sentences == ()


def test_findings_of_a_type_that_was_learnt_before_are_silent() -> None:
    """Its size is in the plan by now, and is compared as that of any other type."""
    told: list[events.Event] = []
    plan = replace(plan_of("q8_0:turbo3"), learnt={"turbo3": 3.25 / 8})
    measured = measured_of(cache_of("q8_0:turbo3", k_bits=8.5, v_bits=16.0), SlotContext(256))

    Findings(plan, measured, emit=told.append).tell()

    assert told == []


def test_kv_bytes_of_findings_are_to_the_byte_where_the_log_agrees() -> None:
    """The log is rounded; the estimate is exact unless the log says otherwise."""
    rounded = replace(CACHE, k_bytes=CACHE.k_bytes + 3000, v_bytes=CACHE.v_bytes - 3000)
    other = replace(CACHE, k_bytes=CACHE.k_bytes + 90_000)

    exact = Findings(plan_of(), measured_of(rounded), emit=print).kv_bytes
    as_told = Findings(plan_of(), measured_of(other), emit=print).kv_bytes

    assert exact == (CACHE.k_bytes, CACHE.v_bytes)
    assert as_told == (other.k_bytes, other.v_bytes)
    assert Findings(plan_of(), Measured(), emit=print).kv_bytes is None
