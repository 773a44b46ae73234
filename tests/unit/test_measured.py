"""What is kept of a log, line by line."""

from pathlib import Path

import pytest

from kvsup.llama.logscan import (
    BufferSize,
    Converted,
    Fact,
    GraphSplits,
    KVCacheSize,
    Offloaded,
    PromptBegun,
    Released,
    Rotation,
    SlotContext,
    Timing,
    scan,
)
from kvsup.measures import Speed
from kvsup.runtime.measured import AttentionPath, Measured

GOLDEN = Path(__file__).parent.parent / "golden"
MIB = 1 << 20


def measured_of(*facts: Fact) -> Measured:
    """Return what is kept of ``facts``."""
    measured = Measured()
    for fact in facts:
        measured.note(fact)
    return measured


def read(name: str) -> Measured:
    """Return what is kept of a captured log."""
    lines = (GOLDEN / f"{name}.log").read_text("utf-8").splitlines()
    return measured_of(*(fact for line in lines if (fact := scan(line)) is not None))


@pytest.mark.parametrize("name", ["requests_b10434", "requests_b11434"])
def test_tally_of_a_real_log_tells_what_was_not_read_again(name: str) -> None:
    """Prompts of 6 and 9 tokens, of which 7 lay in the slot (``cached n_tokens``)."""
    tally = read(name).tally

    assert (tally.n_prompt_tokens, tally.n_cached_tokens) == (15, 7)
    assert tally.hit_rate == round(7 / 15, 4)


def test_tally_of_requests_that_broke_off_or_were_never_begun_is_none() -> None:
    """A client that leaves has no timing; a further answer to one prompt has no beginning."""
    broken_off = measured_of(PromptBegun(0, 900), Released(0, 500), PromptBegun(0, 9))
    further = measured_of(Timing(1, is_prompt=True, n_tokens=9, tokens_per_s=1), Released(1, 12))

    assert broken_off.tally.hit_rate is None
    assert further.tally.hit_rate is None


def test_bytes_by_device_of_a_cpu_are_all_in_ram() -> None:
    """Mapped weights are in RAM, too, and are told apart as well."""
    measured = read("load_b11434")

    assert measured.bytes_by_device == {"RAM": measured.total_bytes}
    assert measured.mapped_bytes == round(92.10 * MIB)
    assert measured.vram_bytes == 0
    assert measured.offload_devices == ()


def test_bytes_by_device_of_an_rpc_device_are_under_its_name() -> None:
    """Buffer types name their server's address, ``--list-devices`` does not."""
    measured = read("device_b11434")

    assert measured.bytes_by_device == {
        "RAM": round(28.69 * MIB) + round(0.19 * MIB) + round(2.42 * MIB),
        "RPC0": round(92.10 * MIB) + round(2.55 * MIB) + round(6.91 * MIB),
    }
    assert measured.vram_bytes == measured.bytes_by_device["RPC0"]
    assert measured.offload_devices == ("RPC0",)


@pytest.mark.parametrize(
    ("device", "memory"),
    [
        ("CPU", "RAM"),
        ("CPU_REPACK", "RAM"),
        ("CUDA_Host", "RAM"),
        ("Vulkan_Host", "RAM"),
        ("CUDA0", "CUDA0"),
        ("MTL0_Mapped", "MTL0"),
    ],
)
def test_bytes_by_device_of_a_buffer_type_are_in_its_memory(device: str, memory: str) -> None:
    """Pinned host memory is RAM; a suffix says how a device's memory is used."""
    measured = measured_of(BufferSize(device, "compute", 7))

    assert measured.bytes_by_device == {memory: 7}


@pytest.mark.parametrize(
    ("name", "path"),
    [("load_b11434", ""), ("device_b11434", "fast"), ("attention_on_cpu_b11434", "cpu")],
)
def test_attention_path_of_a_real_log_is_where_it_runs(name: str, path: AttentionPath) -> None:
    """62 splits for 30 layers are attention on the CPU, 2 are none; a CPU alone tells nothing."""
    assert read(name).attention_path(30, has_experts=False) == path


def test_attention_path_of_a_model_with_experts_is_unknown() -> None:
    """Experts in RAM split the graph as well."""
    measured = read("attention_on_cpu_b11434")

    assert measured.attention_path(30, has_experts=True) == ""


def test_attention_path_with_layers_in_ram_is_unknown() -> None:
    """What is not offloaded splits the graph, too."""
    facts = (Offloaded(20, 31), BufferSize("CUDA0", "model", 1), GraphSplits(300, 62))

    assert measured_of(*facts).attention_path(30, has_experts=False) == ""


def test_attention_path_on_several_devices_has_a_split_each() -> None:
    """Layers spread over four devices make five parts."""
    weights = (BufferSize(f"CUDA{i}", "model", 1) for i in range(4))
    measured = measured_of(Offloaded(31, 31), *weights, GraphSplits(5, 5))

    assert measured.attention_path(30, has_experts=False) == "fast"


def test_attention_path_after_the_warning_of_cuda_is_converted() -> None:
    """It says so itself, whatever the splits."""
    facts = (Offloaded(31, 31), BufferSize("CUDA0", "model", 1), GraphSplits(2, 2))

    measured = measured_of(*facts, Converted("q8_0", "q4_0"))

    assert measured.attention_path(30, has_experts=False) == "converted"


@pytest.mark.parametrize("build", ["b11434", "b10434"])
def test_unrotated_halves_of_quantized_types_are_kept(build: str) -> None:
    """Heads of 96 at q8_0:q4_0."""
    measured = read(f"unrotated_{build}")

    assert measured.unrotated == {"k": Rotation("k", 0, 96), "v": Rotation("v", 0, 96)}
    assert read(f"load_{build}").unrotated == {}


@pytest.mark.parametrize(("type_v", "v_bytes"), [("f16", 9), ("q8_0", 0), ("turbo3", 9)])
def test_unrotated_half_that_needs_no_rotation_is_not_kept(type_v: str, v_bytes: int) -> None:
    """f16 is never rotated, a missing V neither, and a fork's own type is its own business."""
    cache = KVCacheSize("q8_0", type_v, 9, v_bytes, cells=256, layers=1, streams=1)

    assert measured_of(cache, Rotation("v", 0, 64)).unrotated == {}


def test_compute_buffer_of_a_later_graph_replaces_the_one_before() -> None:
    """A graph that is reserved anew, for an adapter, takes no more memory."""
    loaded = (BufferSize("CPU", "KV", 5), BufferSize("CPU", "compute", 3), SlotContext(256))

    measured = measured_of(*loaded, BufferSize("CPU", "compute", 4))

    assert measured.total_bytes == 9


def test_recurrent_state_is_counted_once() -> None:
    """A hybrid model's log tells it by buffer and as a whole."""
    lines = (
        "llama_memory_recurrent:        CPU RS buffer size =     0.52 MiB",
        (
            "llama_memory_recurrent: size =    0.52 MiB (     1 cells,   2 layers,  1 seqs  "
            "0 rs_seq), R (f32):    0.02 MiB, S (f32):    0.50 MiB, P (f32):    0.00 MiB"
        ),
    )

    measured = measured_of(*(fact for line in lines if (fact := scan(line)) is not None))

    assert measured.total_bytes == round(0.52 * MIB)


def test_compute_buffers_within_a_load_add_up() -> None:
    """A draft model's context has one of its own."""
    measured = measured_of(BufferSize("CPU", "compute", 3), BufferSize("CPU", "compute", 4))

    assert measured.total_bytes == 7


def test_speed_of_a_request_is_that_behind_its_prompt() -> None:
    """Depth is what its slot held before it generated; requests at the same time are told apart."""
    measured = measured_of(
        Timing(0, is_prompt=True, n_tokens=900, tokens_per_s=110.0),
        Timing(1, is_prompt=False, n_tokens=50, tokens_per_s=9.0),
        Timing(0, is_prompt=False, n_tokens=100, tokens_per_s=14.0),
        Released(0, 1000),
    )

    assert measured.speeds == [
        Speed(depth_tokens=900, prompt_tokens_per_s=110.0, generation_tokens_per_s=14.0)
    ]
    assert measured.n_load_facts == 0


def test_speed_of_a_short_answer_is_not_kept() -> None:
    """A few tokens tell nothing of a speed; both golden requests generated 12 at most."""
    assert read("requests_b11434").speeds == []


def test_speeds_are_the_last_eight() -> None:
    """What runs for weeks keeps no more."""
    facts: list[Fact] = []
    for depth in range(20):
        facts += [Timing(0, False, 16, 1.0), Released(0, 16 + depth)]

    assert [speed.depth_tokens for speed in measured_of(*facts).speeds] == list(range(12, 20))
