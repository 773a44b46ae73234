"""The log of real builds, line by line."""

from pathlib import Path

import pytest

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
    LoadFailure,
    Offloaded,
    PromptBegun,
    Released,
    Rotation,
    RotationDisabled,
    SlotContext,
    Timing,
    VPadded,
    is_own,
    scan,
    without_quote,
)
from kvsup.restart import ExitCause

GOLDEN = Path(__file__).parent.parent / "golden"
MIB = 1 << 20
TRUNCATED = (
    "error loading model: tensor 'token_embd.weight' data is not within the file bounds, model is"
    " corrupted or incomplete"
)


def facts_of(name: str) -> list[object]:
    """Return every fact of a captured log."""
    lines = (GOLDEN / name).read_text("utf-8").splitlines()
    return [fact for line in lines if (fact := scan(line)) is not None]


@pytest.mark.parametrize(("build", "compute_mib"), [("b11434", 7.48), ("b10434", 6.35)])
def test_scan_of_a_load_finds_every_buffer_and_the_cache(build: str, compute_mib: float) -> None:
    """SmolLM2 at q8_0:q5_1 and 256 cells, on both builds."""
    facts = facts_of(f"load_{build}.log")

    assert [f for f in facts if isinstance(f, KVCacheSize)] == [
        KVCacheSize(
            type_k="q8_0",
            type_v="q5_1",
            k_bytes=round(1.49 * MIB),
            v_bytes=round(1.05 * MIB),
            cells=256,
            layers=30,
            streams=1,
        )
    ]
    assert [(f.device, f.kind, f.size_bytes) for f in facts if isinstance(f, BufferSize)] == [
        ("CPU_Mapped", "model", round(92.10 * MIB)),
        ("CPU", "output", round(0.19 * MIB)),
        ("CPU", "KV", round(2.55 * MIB)),
        ("CPU", "compute", round(compute_mib * MIB)),
    ]
    assert FlashAttentionState("enabled") in facts
    assert not any(isinstance(f, LoadFailure) for f in facts)


@pytest.mark.parametrize(("build", "size"), [("b11434", 64), ("b10434", 1)])
def test_scan_of_a_load_finds_the_rotations(build: str, size: int) -> None:
    """Both halves of a quantized cache are rotated; b11434 tells the size, b10434 only that."""
    facts = facts_of(f"load_{build}.log")

    assert [f for f in facts if isinstance(f, Rotation)] == [
        Rotation("k", size, 64),
        Rotation("v", size, 64),
    ]


@pytest.mark.parametrize("build", ["b11434", "b10434"])
def test_scan_of_a_load_with_heads_of_96_finds_no_rotation(build: str) -> None:
    """Only heads of whole 64s are rotated; the head size tells why it is not."""
    facts = facts_of(f"unrotated_{build}.log")

    assert [f for f in facts if isinstance(f, Rotation)] == [
        Rotation("k", 0, 96),
        Rotation("v", 0, 96),
    ]


@pytest.mark.parametrize("build", ["b11434", "b10434"])
def test_scan_of_a_load_on_a_cpu_finds_one_graph_and_the_slot(build: str) -> None:
    """Without a device the graph is in one part; the slot's context comes last."""
    facts = facts_of(f"load_{build}.log")

    assert [f for f in facts if isinstance(f, GraphSplits)] == [GraphSplits(1, 1)]
    assert facts[-1] == SlotContext(256)
    assert Offloaded(31, 31) in facts  # told of machines without any device, too


@pytest.mark.parametrize(
    ("name", "splits", "cache_device"), [("device", 2, "RPC0"), ("attention_on_cpu", 62, "CPU")]
)
def test_scan_of_a_load_on_a_device_finds_its_buffers_and_splits(
    name: str, splits: int, cache_device: str
) -> None:
    """SmolLM2's 30 layers on an RPC device, with the KV cache there and in RAM."""
    facts = facts_of(f"{name}_b11434.log")

    caches = [f.device for f in facts if isinstance(f, BufferSize) and f.kind == "KV"]
    assert GraphSplits(splits, splits) in facts
    assert [device.partition("[")[0] for device in caches] == [cache_device]


@pytest.mark.parametrize(
    ("build", "speeds"),
    [
        ("b11434", [(212.92, 162.23), (154.1, 167.92)]),
        ("b10434", [(211.13, 168.11), (163.79, 161.56)]),
    ],
)
def test_scan_of_requests_finds_their_speeds_and_depths(
    build: str, speeds: list[tuple[float, float]]
) -> None:
    """Of each request its prompt, what was read and generated, and what its slot then holds."""
    (prompt, generation), (prompt_2, generation_2) = speeds

    assert facts_of(f"requests_{build}.log") == [
        PromptBegun(0, 6),
        Timing(0, is_prompt=True, n_tokens=6, tokens_per_s=prompt),
        Timing(0, is_prompt=False, n_tokens=12, tokens_per_s=generation),
        Released(0, 17),
        PromptBegun(0, 9),
        Timing(0, is_prompt=True, n_tokens=2, tokens_per_s=prompt_2),
        Timing(0, is_prompt=False, n_tokens=5, tokens_per_s=generation_2),
        Released(0, 13),
    ]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        (
            (
                "sched_reserve: graph (pp bs=512, tg bs=1): nodes = 1299 / 1299, splits = 63 / 62, "
                "input objects = 4 / 4, input tensors = 11 / 9"
            ),
            GraphSplits(63, 62),
        ),
        ("sched_reserve: graph splits = 63 (with bs=512), 62 (with bs=1)", GraphSplits(63, 62)),
        ("alloc_compute_meta: graph splits = 5, nodes = 40", None),
        (
            (
                "system_info: n_threads = 8 / 16 | CUDA : ARCHS = 890 | USE_GRAPHS = 1 | "
                "FA_QUANTS = q4_0-q4_0,q8_0-q8_0,f16-f16,bf16-bf16 | CPU : SSE3 = 1 | "
            ),
            CompiledPairs(("q4_0-q4_0", "q8_0-q8_0", "f16-f16", "bf16-bf16")),
        ),
        (
            "system_info: n_threads = 8 / 16 | CUDA : ARCHS = 890 | FA_ALL_QUANTS = 1 | ",
            None,
        ),
        (
            (
                "ggml_cuda_flash_attn_ext_vec: no FlashAttention vector kernel compiled for K/V "
                "types q8_0-q4_0, converting K and V to f16 instead (slow). "
                'Add "q8_0-q4_0" to GGML_CUDA_FA_QUANTS to compile it.'
            ),
            Converted("q8_0", "q4_0"),
        ),
        (
            (
                "resolve_fused_ops: layer 3 is assigned to device CUDA0 but Flash Attention is "
                "assigned to device CPU (usually due to missing support)"
            ),
            AttentionMoved(3, "CUDA0", "CPU"),
        ),
        (
            (
                "resolve_fused_ops: layer 3 is assigned to device CUDA0 but fused Gated Delta Net "
                "is assigned to device CPU (usually due to missing support)"
            ),
            None,
        ),
        (
            "resolve_fused_ops: Flash Attention not supported, set to disabled",
            FlashAttentionState("unsupported"),
        ),
        ("resolve_fused_ops: Flash Attention enabled", FlashAttentionState("enabled")),
        (
            (
                "common_params_fit_impl: context size reduced from 8192 to 512 -> need 176 MiB "
                "less memory in total"
            ),
            ContextReduced(8192, 512),
        ),
        (
            (
                "0.00.069.570 W common_fit_params: failed to fit params to free device memory: was "
                "unable to fit model into system memory by reducing context, abort"
            ),
            FitFailed("was unable to fit model into system memory by reducing context, abort"),
        ),
        (
            (
                "common_params_fit_impl:   - CUDA0: 20 layers ( 1 overflowing),  22016 MiB used,   "
                "1100 MiB free"
            ),
            LayersFitted("CUDA0", 20, 1),
        ),
        (
            "W llama_kv_cache: attention rotation force disabled (LLAMA_ATTN_ROT_DISABLE)",
            RotationDisabled(),
        ),
        (
            (
                "llama_kv_cache: the V embeddings have different sizes across layers and FA is not "
                "enabled - padding V cache to 1024"
            ),
            VPadded(1024),
        ),
    ],
)
def test_scan_of_a_line_of_the_source_finds_its_fact(line: str, fact: Fact | None) -> None:
    """Lines that need a GPU or scarce memory, as the formats of b11434 and b10434 print them."""
    assert scan(line) == fact


@pytest.mark.parametrize(
    ("name", "cause", "message"),
    [
        ("bad_flag", ExitCause.BAD_ARGUMENT, "error: invalid argument: --nope"),
        ("bad_value", ExitCause.BAD_ARGUMENT, 'error while handling argument "-c": stoi'),
        (
            "no_such_file",
            ExitCause.NO_SUCH_FILE,
            "failed to open GGUF file 'model.gguf' (No such file or directory)",
        ),
        ("not_gguf", ExitCause.NOT_A_MODEL, "invalid magic characters: 'hell', expected 'GGUF'"),
        (
            "truncated",
            ExitCause.NOT_A_MODEL,
            TRUNCATED,
        ),
        (
            "pair_refused",
            ExitCause.PAIR_REFUSED,
            "quantized V cache requires flash_attn to be enabled",
        ),
        (
            "no_memory",
            ExitCause.DOES_NOT_FIT,
            "insufficient memory (attempted to allocate 439453.12 MB)",
        ),
    ],
)
def test_scan_of_a_failed_load_finds_the_cause_first(
    name: str, cause: ExitCause, message: str
) -> None:
    """The first failure of the log says most; its message is that of the line, unprefixed."""
    failures = [f for f in facts_of(f"load_failure_{name}.log") if isinstance(f, LoadFailure)]

    assert failures[0] == LoadFailure(cause, message)


def test_scan_of_a_socket_that_is_taken_is_no_permanent_cause() -> None:
    """The next start unlinks it."""
    assert facts_of("load_failure_socket_taken.log") == []


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\x00\ufffd",
        "size = MiB",
        "I slot print_timing: id  0 | task 3 | n_decoded = 10",
        "0.00.002.081 W srv  llama_server: security: no API key is set",
        "CPU KV buffer size = 1.2.3 MiB",
        f"CPU KV buffer size = {'9' * 400} MiB",
        "id  0 | prompt eval time = 1 ms / 3 tokens ( 1.2.3 tokens per second",
        f"offloaded {'1' * 5000}/30 layers",
        f"flash_attn = {'1' * 5000}",
    ],
)
def test_scan_of_any_other_line_is_none(line: str) -> None:
    """Most lines tell nothing."""
    assert scan(line) is None


def test_scan_of_a_line_without_prefix_finds_the_same() -> None:
    """With ``--no-log-timestamps`` and without, a line means the same."""
    line = "llama_kv_cache:        CPU KV buffer size =     2.55 MiB"

    assert scan(line) == scan(f"I {line}") == BufferSize("CPU", "KV", round(2.55 * MIB))


def test_scan_of_deepseek4s_state_is_a_buffer() -> None:
    """Its compressors keep a state of their own (llama-kv-cache-dsv4.cpp, b11434)."""
    line = "llama_kv_cache_dsv4:        CPU DSV4 csa state buffer size =     0.02 MiB"

    assert scan(line) == BufferSize("CPU", "state", round(0.02 * MIB))


@pytest.mark.parametrize(
    ("line", "own", "has_more_lines"),
    [
        ("parse: error parsing grammar: no ::= at x", "parse: error parsing grammar:", True),
        (
            "WARNING: JSON schema conversion was incomplete: pattern ^(?<!x",
            "WARNING: JSON schema conversion was incomplete:",
            True,
        ),
        (
            "0.03.065.150 W common_sampler_types_from_names: unable to match sampler by name 'x",
            "0.03.065.150 W common_sampler_types_from_names: unable to match sampler by name",
            True,
        ),
        (
            '0.01.9 W srv    operator(): got exception: {"error":{"code":400,"message":"x\\ny"}}',
            "0.01.9 W srv    operator(): got exception:",
            False,
        ),
        (
            "W slot update_slots: id  0 | task 3 | got exception: no parse of x",
            "W slot update_slots: id  0 | task 3 | got exception:",
            True,
        ),
        ("I slot launch_slot_: id  0 | task 3", "I slot launch_slot_: id  0 | task 3", False),
    ],
)
def test_what_a_line_quotes_of_a_client_is_left_out(
    *, line: str, own: str, has_more_lines: bool
) -> None:
    """Such texts are printed with their line ends, but for those in JSON."""
    assert without_quote(line) == (own, has_more_lines)


def test_line_of_its_own_is_known_by_its_beginning() -> None:
    """With a time or without."""
    assert is_own("I slot launch_slot_: id  0 | task 3 | processing task")
    assert is_own("0.00.320.193 W srv          stop: cancel task, id_task = 2")
    assert not is_own("root ::= nonsense")
    assert not is_own("")
