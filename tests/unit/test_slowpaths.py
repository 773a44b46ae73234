"""Where attention runs with a pair, by the table of backends and builds."""

from itertools import product
from typing import Any, get_args

import pytest

from kvsup.kvtypes import STOCK_TYPES, KVPair, KVType, parse_kv_pair
from kvsup.slowpaths import (
    Backend,
    Path,
    Verdict,
    backend_of,
    path_of,
    scratch_bytes,
    worst_path,
)

OLD, BETWEEN, NEW = 10434, 11000, 11434
BACKENDS: tuple[Backend, ...] = get_args(Backend)
ALL_PAIRS = [KVPair(KVType(k), KVType(v)) for k, v in product(STOCK_TYPES, repeat=2)]


def _path(pair: str, backend: Backend, build: int | None = NEW, **settings: Any) -> Path:
    heads = {"head_k": 128, "head_v": 128}
    forced = {"flash_attention": "on"}
    return path_of(parse_kv_pair(pair), backend, build=build, **{**heads, **forced, **settings})


@pytest.mark.parametrize(
    ("names", "gpu_layers", "backend"),
    [
        ([], None, "cpu"),
        (["CUDA0", "CUDA1"], None, "cuda"),
        (["CUDA0"], 0, "cpu"),
        (["ROCm0"], 99, "hip"),
        (["MUSA0"], None, "musa"),
        (["MTL0"], None, "metal"),
        (["Metal"], None, "metal"),
        (["BLAS", "MTL0"], None, "metal"),
        (["BLAS"], None, "cpu"),
        (["Vulkan0"], None, "vulkan"),
        (["SYCL0"], None, "sycl"),
        (["GPUOpenCL"], None, "opencl"),
        (["CANN0"], None, "cann"),
        (["WebGPU"], None, "webgpu"),
        (["RPC0"], None, "rpc"),
        (["RPC[127.0.0.1:50052]"], None, "rpc"),
        (["CUDA0", "RPC0"], None, "rpc"),
        (["HTP0"], None, "other"),
    ],
)
def test_backend_of_devices_is_that_which_computes_attention(
    names: list[str], gpu_layers: int | None, backend: Backend
) -> None:
    """Names as ``--list-devices`` prints them; without layers on a device it is the CPU."""
    assert backend_of(names, gpu_layers) == backend


@pytest.mark.parametrize("backend", ["cuda", "hip", "musa"])
@pytest.mark.parametrize(
    ("pair", "old", "new"),
    [
        ("f16:f16", "fast", "fast"),
        ("q8_0:q8_0", "fast", "fast"),
        ("q4_0:q4_0", "fast", "fast"),
        ("q8_0:q5_1", "cpu", "converted"),
        ("q8_0:q4_0", "cpu", "converted"),
        ("q5_1:q5_1", "cpu", "converted"),
        ("f16:q8_0", "cpu", "converted"),
        ("iq4_nl:iq4_nl", "cpu", "cpu"),
        ("f32:f16", "cpu", "fast"),
    ],
)
def test_path_on_cuda_is_on_the_cpu_before_and_converted_after(
    backend: Backend, pair: str, old: Verdict, new: Verdict
) -> None:
    """llama.cpp #28079 is what lies between; where a build is not known to have it, so is this."""
    between = old if old == new else "unknown"

    assert _path(pair, backend, OLD).verdict == old
    assert _path(pair, backend, BETWEEN).verdict == between
    assert _path(pair, backend, None).verdict == between
    assert _path(pair, backend, NEW).verdict == new


def test_path_on_a_cuda_of_unknown_age_names_both_ways() -> None:
    """The text says what holds without and with it; one flag mends both."""
    path = _path("q8_0:q5_1", "cuda", BETWEEN)

    assert "without it, q8_0:q5_1 runs on the CPU" in path.text
    assert "with it, q8_0:q5_1 has no kernel" in path.text
    assert path.mend == "build it with -DGGML_CUDA_FA_ALL_QUANTS=ON"


@pytest.mark.parametrize("build", [OLD, BETWEEN, NEW, None])
def test_path_on_cuda_follows_the_pairs_that_the_log_names(build: int | None) -> None:
    """A log that names compiled pairs is that of a new build, whatever its number."""
    quants = ("q8_0-q8_0", "q8_0-q5_1")

    compiled = _path("q8_0:q5_1", "cuda", build, fa_quants=quants)
    other = _path("q4_0:q4_0", "cuda", build, fa_quants=quants)
    every = _path("q4_1:q5_0", "cuda", build, fa_quants=("all",))

    assert (compiled.verdict, other.verdict, every.verdict) == ("fast", "converted", "fast")
    assert other.mend == 'build it with -DGGML_CUDA_FA_QUANTS="q8_0-q8_0;q8_0-q5_1;q4_0-q4_0"'


@pytest.mark.parametrize("build", [OLD, BETWEEN, NEW])
def test_path_on_cuda_with_heads_of_96_converts_what_is_not_f16(build: int) -> None:
    """Only heads of 64, 128 and 256 have kernels that read quantized types; no build mends it."""
    path = _path("q8_0:q8_0", "cuda", build, head_k=96, head_v=96)

    assert (path.verdict, path.mend) == ("converted", "")
    assert _path("f16:f16", "cuda", build, head_k=96, head_v=96).verdict == "fast"


@pytest.mark.parametrize(
    ("head_k", "head_v", "verdict"),
    [(576, 512, "fast"), (192, 128, "fast"), (48, 48, "cpu"), (128, 64, "cpu")],
)
def test_path_on_cuda_depends_on_the_heads(head_k: int, head_v: int, verdict: Verdict) -> None:
    """Heads that no kernel has been written for are the CPU's, also with f16."""
    assert _path("f16:f16", "cuda", head_k=head_k, head_v=head_v).verdict == verdict


@pytest.mark.parametrize(
    ("backend", "fast", "slow"),
    [
        ("metal", ("q8_0:q8_0", "q5_1:q5_1"), {"q8_0:q5_1": "cpu", "iq4_nl:iq4_nl": "cpu"}),
        ("vulkan", ("q8_0:q4_0", "iq4_nl:f16", "bf16:bf16"), {"bf16:f16": "cpu"}),
        ("sycl", ("q8_0:q5_1", "bf16:bf16"), {"iq4_nl:f16": "cpu", "f16:iq4_nl": "aborts"}),
        ("opencl", ("q8_0:q8_0",), {"q8_0:q4_0": "converted", "q5_1:q5_1": "cpu"}),
        ("cann", ("f16:f16",), {"q8_0:q8_0": "cpu", "bf16:bf16": "cpu"}),
        ("webgpu", ("q8_0:q4_0", "f16:f32"), {"q5_1:q5_1": "cpu", "bf16:bf16": "cpu"}),
        ("rpc", ("q8_0:q8_0", "f16:f16"), {"q8_0:q5_1": "aborts", "q5_1:q5_1": "aborts"}),
    ],
)
def test_path_on_a_backend_is_that_of_its_table(
    backend: Backend, fast: tuple[str, ...], slow: dict[str, Verdict]
) -> None:
    """What each backend says it supports, b11434."""
    assert [_path(pair, backend).verdict for pair in fast] == ["fast"] * len(fast)
    assert {pair: _path(pair, backend).verdict for pair in slow} == slow


def test_path_on_metal_needs_keys_at_least_as_wide_as_values() -> None:
    """Heads are taken from a list, and a value must not be wider."""
    assert _path("f16:f16", "metal", head_k=576, head_v=512).verdict == "fast"
    assert _path("f16:f16", "metal", head_k=64, head_v=128).verdict == "cpu"
    assert _path("f16:f16", "metal", head_k=36, head_v=36).verdict == "cpu"


def test_path_on_an_older_sycl_is_unknown_for_mixed_pairs() -> None:
    """All pairs are compiled in by a line of the source that may not be there."""
    path = _path("q8_0:q5_1", "sycl", OLD)

    assert path.verdict == "unknown"
    assert "GGML_SYCL_FA_ALL_QUANTS" in path.mend


@pytest.mark.parametrize("pair", ALL_PAIRS, ids=str)
def test_path_on_a_cpu_is_never_slow_by_table(pair: KVPair) -> None:
    """Every pair runs there; how fast only a measurement says, but for f16:f16 and f32:f32."""
    path = path_of(pair, "cpu", build=NEW)

    is_fast = str(pair) in {"f16:f16", "f32:f32"}
    assert path.verdict == ("fast" if is_fast else "unknown")
    assert ("measure" in path.text) == (not is_fast)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "cpu"])
def test_path_of_a_type_of_a_fork_is_unknown(backend: Backend) -> None:
    """No table knows what a fork's kernels can do."""
    assert _path("turbo3:q8_0", backend).verdict == "unknown"


@pytest.mark.parametrize("flash_attention", ["auto", "on"])
def test_path_of_plain_values_loses_flash_attention_where_it_is_open(flash_attention: str) -> None:
    """Slow either way: on the CPU where it is asked for, else given up, with one warning."""
    path = _path("q8_0:f16", "metal", flash_attention=flash_attention)

    assert path.verdict == "cpu"
    assert ("switched off" in path.text) == (flash_attention == "auto")


def test_path_of_quantized_values_keeps_flash_attention_where_it_is_open() -> None:
    """They need it, so it is forced on without a probe, and runs on the CPU."""
    assert _path("q8_0:q4_0", "metal", flash_attention="auto").verdict == "cpu"


def test_path_without_flash_attention_is_unknown() -> None:
    """The table is that of flash attention."""
    assert _path("q8_0:f16", "cuda", flash_attention="off").verdict == "unknown"


def test_worst_path_is_that_which_decides() -> None:
    """One layer on the CPU is enough to be slow."""
    paths = [_path(pair, "cuda") for pair in ("f16:f16", "iq4_nl:iq4_nl", "q8_0:q4_0")]

    assert worst_path(paths) is paths[1]
    assert worst_path([]) is None


@pytest.mark.parametrize(
    ("pair", "backend", "size_bytes"),
    [
        ("f16:f16", "cuda", 0),
        ("q8_0:q8_0", "cuda", 2 * 4096 * 2048),
        ("q8_0:f16", "hip", 2 * 4096 * 1024),
        ("bf16:bf16", "musa", 2 * 4096 * 2048),
        ("q8_0:q8_0", "vulkan", 0),
        ("q8_0:q8_0", "cpu", 0),
    ],
)
def test_scratch_is_one_layer_of_each_half_that_is_not_f16(
    pair: str, backend: Backend, size_bytes: int
) -> None:
    """Only CUDA's kernels for prompts take f16 and nothing else."""
    scratch = scratch_bytes(
        parse_kv_pair(pair), backend, n_cells=4096, k_elements=1024, v_elements=1024
    )

    assert scratch == size_bytes
