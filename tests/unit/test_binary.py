"""What a binary says of itself."""

from pathlib import Path

import msgspec
import pytest

from kvsup.kvtypes import STOCK_TYPES
from kvsup.llama.binary import Binary, Device, parse_binary

GOLDEN = Path(__file__).parent.parent / "golden"
HELP = "-ctk,  --cache-type-k TYPE   type\n   allowed values: f16, q8_0\n   (default: f16)\n"
VERSION = "version: 0.6.0-dev (build 11434, commit unknown)\nbuilt with GNU 12.2.0\n"


@pytest.mark.parametrize("build", ["b11434", "b10434"])
def test_parse_binary_of_a_real_help_lists_types_and_flags(build: str) -> None:
    """The nine KV types and the flags that argv depends on."""
    text = (GOLDEN / f"help_{build}.txt").read_text("utf-8")

    binary = parse_binary("llama-server", help_text=text, version_text="", devices_text="")

    assert set(binary.kv_types) == set(STOCK_TYPES)
    assert binary.flags >= {"--fit", "--offline", "--no-ui", "--kv-unified", "-ctk", "--metrics"}
    assert "--cache-type-k" in binary.flags


@pytest.mark.parametrize(
    ("path", "version_text", "build", "label"),
    [
        ("/x/llama-server", VERSION, 11434, "b11434"),
        ("/x/llama-server", "version: 10434 (2b1a5e9f)\n", None, "10434"),
        ("/c/b10434-vulkan/llama-server", "version: 1 (build 1, commit x)\n", 10434, "b10434"),
        ("/x/llama-server", "version: 1 (build 1, commit x)\n", None, "1"),
        ("/x/llama-server", "", None, "unknown"),
    ],
)
def test_parse_binary_finds_the_build_number(
    path: str, version_text: str, build: int | None, label: str
) -> None:
    """From ``--version``, or from the folder where a build does not know its own number."""
    binary = parse_binary(path, help_text=HELP, version_text=version_text, devices_text="")

    assert (binary.build, binary.label) == (build, label)


def test_parse_binary_of_a_fork_believes_its_types() -> None:
    """A type that we do not know is one that this binary takes."""
    text = HELP.replace("q8_0", "q8_0, q6_0,\n   turbo3")

    binary = parse_binary("x", help_text=text, version_text="", devices_text="")

    assert binary.kv_types == ("f16", "q8_0", "q6_0", "turbo3")


def test_parse_binary_of_devices_reads_names_and_bytes() -> None:
    """One device a line, sizes in MiB; ``(none)`` is none."""
    text = (
        "Available devices:\n"
        "  CUDA0: NVIDIA H100 80GB HBM3 (PCIe) (81079 MiB, 80000 MiB free)\n"
        "  RPC0: 127.0.0.1:50991 (24105 MiB, 24105 MiB free)\n"
    )

    binary = parse_binary("x", help_text=HELP, version_text="", devices_text=text)
    none = parse_binary("x", help_text=HELP, version_text="", devices_text="  (none)\n")

    assert binary.devices == (
        Device("CUDA0", "NVIDIA H100 80GB HBM3 (PCIe)", 81079 << 20, 80000 << 20),
        Device("RPC0", "127.0.0.1:50991", 24105 << 20, 24105 << 20),
    )
    assert none.devices == ()


@pytest.mark.parametrize("text", ["", "usage: ls [OPTION]", "--cache-type-k TYPE"])
def test_parse_binary_of_another_program_is_refused(text: str) -> None:
    """Whatever lists no KV cache types is no llama-server."""
    with pytest.raises(ValueError, match="no llama-server"):
        parse_binary("/bin/ls", help_text=text, version_text="", devices_text="")


IK_HELP = (
    "  -ctk,  --cache-type-k TYPE      KV cache data type for K (default: f16)\n"
    "  -ctk-first, --cache-type-k-first TYPE,N KV cache data type for the first N layers of K\n"
    "  -ctv-last,  --cache-type-k-last  TYPE,N KV cache data type for the last N layers of K\n"
)
"""As ik_llama.cpp words it, the slip in the third line included (common.cpp, 2026-08)."""


def test_parse_binary_of_ik_llama_knows_the_types_that_its_help_does_not_list() -> None:
    """It is told by its flags for the types of first and last layers."""
    binary = parse_binary("x", help_text=IK_HELP, version_text="", devices_text="")

    assert {"q8_0", "q6_0", "q8_KV"} < set(binary.kv_types)
    assert binary.kv_layer_flags == {
        "-ctk-first",
        "--cache-type-k-first",
        "-ctv-last",
        "--cache-type-k-last",
    }


def test_kv_layer_flags_of_a_real_stock_help_are_none() -> None:
    """Stock llama.cpp has one type for all layers; its draft flags are something else."""
    text = (GOLDEN / "help_b11434.txt").read_text("utf-8")

    binary = parse_binary("x", help_text=text, version_text="", devices_text="")

    assert binary.kv_layer_flags == frozenset()


def test_binary_kept_by_an_older_kvsup_is_still_read() -> None:
    """What flags tell is no field, so nothing is missing in what was kept."""
    binary = parse_binary("x", help_text=IK_HELP, version_text="", devices_text="")

    kept = msgspec.json.encode(binary)

    assert b"kv_layer_flags" not in kept
    assert msgspec.json.decode(kept, type=Binary).kv_layer_flags == binary.kv_layer_flags
