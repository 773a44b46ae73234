"""The log of real builds, line by line."""

from pathlib import Path

import pytest

from kvsup.llama.logscan import (
    BufferSize,
    FlashAttentionState,
    KVCacheSize,
    LoadFailure,
    Rotation,
    scan,
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


def test_scan_of_a_load_finds_the_rotations() -> None:
    """Both halves of a quantized cache are rotated by the head size (b11434)."""
    facts = facts_of("load_b11434.log")

    assert [f for f in facts if isinstance(f, Rotation)] == [Rotation("k", 64), Rotation("v", 64)]


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
    ],
)
def test_scan_of_any_other_line_is_none(line: str) -> None:
    """Most lines tell nothing."""
    assert scan(line) is None


def test_scan_of_a_line_without_prefix_finds_the_same() -> None:
    """With ``--no-log-timestamps`` and without, a line means the same."""
    line = "llama_kv_cache:        CPU KV buffer size =     2.55 MiB"

    assert scan(line) == scan(f"I {line}") == BufferSize("CPU", "KV", round(2.55 * MIB))
