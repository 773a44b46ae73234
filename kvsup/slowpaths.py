"""Where attention runs with a KV pair, by backend and build: fast, converted, or on the CPU.

From the sources of b11434 (``supports_op`` of each backend in ggml/src) and, for CUDA before
llama.cpp #28079, from its threads; none of it was tried on a GPU here, so a probe is worth more. A
line is logged only by CUDA, and only when it converts.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from kvsup.kvtypes import F16, STOCK_TYPES, FlashAttention, KVPair

Backend = Literal[
    "cuda", "hip", "musa", "metal", "vulkan", "sycl", "opencl", "cann", "webgpu", "rpc", "cpu",
    "other",
]  # fmt: skip
Verdict = Literal["fast", "converted", "cpu", "aborts", "unknown"]

CUDA_FAMILY: tuple[Backend, ...] = ("cuda", "hip", "musa")
"""One source, ggml-cuda, for three makers."""

_DEVICES: tuple[tuple[str, Backend], ...] = (  # GGML_*_NAME of ggml/include and ggml/src, b11434
    ("RPC", "rpc"),
    ("CUDA", "cuda"),
    ("ROCm", "hip"),
    ("MUSA", "musa"),
    ("MTL", "metal"),
    ("Metal", "metal"),
    ("Vulkan", "vulkan"),
    ("SYCL", "sycl"),
    ("GPUOpenCL", "opencl"),
    ("CANN", "cann"),
    ("WebGPU", "webgpu"),
)
_ACCELERATORS = ("BLAS", "AMX")
"""Devices that are listed too, but hold no layers."""

_SOURCE_BUILD = 11434
"""The build whose sources are the table; the first known to have llama.cpp #28079."""

_CUDA_OLD_BUILD = 10819
"""The last build known to be without it (#28455)."""

_MOST_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_OLD_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
_FEW_TYPES = ("f32", "f16", "q8_0", "q4_0")
_CUDA_DEFAULT = ("q4_0-q4_0", "q8_0-q8_0", "f16-f16", "bf16-bf16")
_CUDA_HEADS = (40, 64, 72, 80, 96, 112, 128, 256, 512)
_CUDA_UNEQUAL_HEADS = ((192, 128), (320, 256), (576, 512))
_CUDA_VECTOR_HEADS = (64, 128, 256)

_METAL_HEADS = (32, 40, 48, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576)
_SYCL_HEADS = (40, 64, 72, 80, 96, 112, 128, 256, 512)
_SYCL_MIXED = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_OPENCL_HEADS = (40, 64, 80, 96, 112, 128, 192, 256, 512)


@dataclass(frozen=True, slots=True)
class Path:
    """Where the attention of a pair runs."""

    verdict: Verdict
    """``converted``: on the device, but K and V become f16 on each step. ``cpu``: the device cannot
    do it, so that they cross the bus. ``aborts``: the process ends."""
    text: str
    mend: str = ""
    """How to build llama.cpp so that it is fast; empty where no build is."""
    source: str = ""


@dataclass(frozen=True, slots=True)
class _Case:
    """One pair on one backend."""

    k: str
    v: str
    build: int | None
    head_k: int | None
    head_v: int | None
    fa_quants: Collection[str] | None

    @property
    def pair(self) -> str:
        return f"{self.k}:{self.v}"

    def has_heads(self, equal: Collection[int], unequal: Collection[tuple[int, int]] = ()) -> bool:
        """Say whether the heads are among ``equal`` or ``unequal``; heads not given are."""
        if self.head_k is None or self.head_v is None:
            return True
        if self.head_k == self.head_v:
            return self.head_k in equal
        return (self.head_k, self.head_v) in unequal

    def has_types(self, names: Collection[str]) -> bool:
        return self.k in names and self.v in names


def backend_of(device_names: Sequence[str], gpu_layers: int | None) -> Backend:
    """Return the backend that computes attention, by the names of ``--list-devices``.

    A device behind RPC decides where there is one, since it is the one that aborts; else the first.
    Names that no backend of b11434 has are ``other``.
    """
    names = [name for name in device_names if not name.startswith(_ACCELERATORS)]
    if gpu_layers == 0 or not names:
        return "cpu"
    for prefix, backend in _DEVICES:
        if names[0].startswith(prefix) or (
            backend == "rpc" and any(name.startswith(prefix) for name in names)
        ):
            return backend
    return "other"


def path_of(
    pair: KVPair,
    backend: Backend,
    *,
    build: int | None,
    head_k: int | None = None,
    head_v: int | None = None,
    fa_quants: Collection[str] | None = None,
    flash_attention: FlashAttention = "auto",
) -> Path:
    """Return where the attention of ``pair`` runs.

    Args:
        pair: of the KV cache.
        backend: that holds the layers.
        build: of llama.cpp; None for one that is not known, as that of a fork.
        head_k: elements of a head's key; None where that does not matter.
        head_v: elements of a head's value.
        fa_quants: the pairs that CUDA has vector kernels for, as ``k-v``; None where not told.
        flash_attention: as asked for; where it is open, a pair that the device cannot do switches
            it off, unless V is quantized.
    """
    case = _Case(pair.k.name, pair.v.name, build, head_k, head_v, fa_quants)
    if backend == "cpu":
        return _on_cpu(case)
    if not case.has_types(STOCK_TYPES) or backend == "other":
        return Path("unknown", f"{pair} on {backend} is in no table: measure it with kvsup probe")
    if flash_attention == "off":
        return Path("unknown", f"{pair} without flash attention is in no table: measure it")
    path = _TABLE[backend](case)
    if path.verdict == "cpu" and flash_attention == "auto" and not pair.v.is_quantized:
        text = (
            f"{backend} has no flash attention for {pair}, so that it is switched off at the load: "
            "more memory, and slow at depth"
        )
        return Path("cpu", text, path.mend, path.source)
    return path


def worst_path(paths: Collection[Path]) -> Path | None:
    """Return the path that decides where layers differ, None of none."""
    return max(paths, key=lambda path: _ORDER.index(path.verdict), default=None)


def scratch_bytes(
    pair: KVPair, backend: Backend, *, n_cells: int, k_elements: int, v_elements: int
) -> int:
    """Return the bytes that a CUDA device needs beside the cache for K and V of a layer as f16.

    It is part of the compute buffer, reserved at the load (ggml_cuda_flash_attn_ext_get_alloc_size
    of ggml-cuda/fattn.cu, b11434): prompts are read by kernels that take f16 only.

    Args:
        pair: of the KV cache; a half that is f16 is not copied.
        backend: others than the CUDA family need none of this kind.
        n_cells: of the cache, all streams together.
        k_elements: of a cell's K in the widest layer, all heads together.
        v_elements: of its V; 0 where K serves as V, too.
    """
    if backend not in CUDA_FAMILY:
        return 0
    k = 0 if pair.k == F16.k else k_elements
    v = 0 if pair.v == F16.v else v_elements
    return 2 * n_cells * (k + v)


def _on_cpu(case: _Case) -> Path:
    source = "ggml-cpu/ops.cpp, b11434; measured on it with SmolLM2"
    if case.pair in {"f16:f16", "f32:f32"}:
        return Path("fast", f"{case.pair} has the fast kernels for prompts", "", source)
    text = (
        f"{case.pair} runs on every CPU; prompts are read row by row, some 2 to 8 times slower "
        "than with f16:f16 at depth, and q8_0:q8_0 writes faster: kvsup probe measures it"
    )
    return Path("unknown", text, "", source)


def _on_cuda(case: _Case) -> Path:
    source = "ggml-cuda/fattn.cu, b11434"
    if not case.has_types(_MOST_TYPES) or not case.has_heads(_CUDA_HEADS, _CUDA_UNEQUAL_HEADS):
        return Path("cpu", f"{_named(case)} runs on the CPU, silently", "", source)
    if case.fa_quants is not None or (case.build or 0) >= _SOURCE_BUILD:
        return _on_new_cuda(case, source)
    old, new = _on_old_cuda(case), _on_new_cuda(case, source)
    if old.verdict == new.verdict or (case.build or _SOURCE_BUILD) <= _CUDA_OLD_BUILD:
        return old
    text = (
        f"it is not known whether this build has llama.cpp #28079: without it, {old.text}; "
        f"with it, {new.text}"
    )
    return Path("unknown", text, old.mend, f"{source}; {old.source}")


def _on_new_cuda(case: _Case, source: str) -> Path:
    """Return the path with llama.cpp #28079: what has no kernel is converted."""
    compiled = _CUDA_DEFAULT if case.fa_quants is None else tuple(case.fa_quants)
    kernel = "-".join("f16" if name == "f32" else name for name in (case.k, case.v))
    if case.pair != "f16:f16" and not _has_vector_heads(case):
        return _without_vector_kernel(case, source)
    if kernel == "f16-f16" or kernel in compiled or "all" in compiled:
        return Path("fast", f"a kernel for {case.pair} is compiled in", "", source)
    text = f"{case.pair} has no kernel, so K and V become f16 on each step (one warning in the log)"
    quants = ";".join((*compiled, kernel))
    return Path("converted", text, f'build it with -DGGML_CUDA_FA_QUANTS="{quants}"', source)


def _on_old_cuda(case: _Case) -> Path:
    """Return the path without llama.cpp #28079: what has no kernel is not done at all."""
    source = "llama.cpp #28455, #27109, #24485"
    if case.k != case.v or case.k not in _OLD_TYPES:
        text = f"{case.pair} runs on the CPU, silently, unless all pairs were compiled in"
        return Path("cpu", text, "build it with -DGGML_CUDA_FA_ALL_QUANTS=ON", source)
    if case.pair != "f16:f16" and not _has_vector_heads(case):
        return _without_vector_kernel(case, source)
    return Path("fast", f"a kernel for {case.pair} is compiled in", "", source)


def _has_vector_heads(case: _Case) -> bool:
    return case.head_k is None or case.head_k in _CUDA_VECTOR_HEADS


def _without_vector_kernel(case: _Case, source: str) -> Path:
    text = f"{_named(case)}: K and V become f16 on each step, as such heads have no other kernel"
    return Path("converted", text, "", source)


def _on_metal(case: _Case) -> Path:
    source = "ggml-metal/ggml-metal-device.m, b11434"
    if case.k != case.v or case.k not in _MOST_TYPES:
        return Path("cpu", f"{case.pair} runs on the CPU, silently: Metal needs K = V", "", source)
    head_k, head_v = case.head_k or _METAL_HEADS[0], case.head_v or case.head_k or _METAL_HEADS[0]
    if head_k not in _METAL_HEADS or head_k < head_v:
        return Path("cpu", f"{_named(case)} runs on the CPU, silently", "", source)
    return Path("fast", f"Metal has a kernel for {case.pair}", "", source)


def _on_vulkan(case: _Case) -> Path:
    source = "ggml-vulkan/ggml-vulkan.cpp, b11434"
    is_mixed_bf16 = (case.k == "bf16") != (case.v == "bf16")
    if is_mixed_bf16 or any((head or 0) % 8 for head in (case.head_k, case.head_v)):
        return Path("cpu", f"{_named(case)} runs on the CPU, silently", "", source)
    return Path("fast", f"Vulkan has a kernel for {case.pair}", "", source)


def _on_sycl(case: _Case) -> Path:
    source = "ggml-sycl/fattn.cpp and common.hpp, b11434"
    if case.k == "iq4_nl" or not case.has_heads(_SYCL_HEADS, ((576, 512),)):
        return Path("cpu", f"{_named(case)} runs on the CPU, silently", "", source)
    if case.v == "iq4_nl":
        return Path("aborts", f"SYCL takes {case.pair} and has no kernel for it", "", source)
    if case.k == case.v and case.k in _OLD_TYPES:
        return Path("fast", f"SYCL has a kernel for {case.pair}", "", source)
    if not case.has_types(_SYCL_MIXED):
        return Path("unknown", f"SYCL has kernels for parts of {case.pair} only", "", source)
    if (case.build or 0) >= _SOURCE_BUILD:
        return Path("fast", f"SYCL has a kernel for {case.pair}", "", source)
    text = f"{case.pair} runs on the CPU, silently, unless all pairs were compiled in"
    mend = "build it with GGML_SYCL_FA_ALL_QUANTS defined"
    return Path("unknown", text, mend, source)


def _on_opencl(case: _Case) -> Path:
    source = "ggml-opencl/ggml-opencl.cpp, b11434"
    if not case.has_types(_FEW_TYPES) or not case.has_heads(_OPENCL_HEADS, ((192, 128),)):
        return Path("cpu", f"{_named(case)} runs on the CPU, silently", "", source)
    if case.k == case.v:
        text = f"OpenCL has a kernel for {case.pair}, save on an Adreno of the A7X generation"
        return Path("fast", text, "", source)
    return Path("converted", f"K and V as {case.pair} become f32 on each step", "", source)


def _on_cann(case: _Case) -> Path:
    source = "ggml-cann/ggml-cann.cpp, b11434"
    if case.pair == "f16:f16" and case.head_k == case.head_v:
        return Path("fast", "CANN has a kernel for f16:f16", "", source)
    return Path("cpu", f"{_named(case)} runs on the CPU, silently: CANN has f16:f16", "", source)


def _on_webgpu(case: _Case) -> Path:
    source = "ggml-webgpu/ggml-webgpu.cpp, b11434"
    if case.has_types(_FEW_TYPES):
        return Path("fast", f"WebGPU has a kernel for {case.pair}", "", source)
    return Path("cpu", f"{case.pair} runs on the CPU, silently", "", source)


def _on_rpc(case: _Case) -> Path:
    source = "ggml-rpc/ggml-rpc.cpp, b11434; llama.cpp #27905"
    if case.k == case.v and case.k in _OLD_TYPES:
        return Path("fast", f"every worker of RPC has a kernel for {case.pair}", "", source)
    text = (
        f"RPC takes {case.pair} unasked, and a worker whose device has no kernel for it aborts, "
        "and llama-server with it; workers on a CPU run every pair"
    )
    return Path("aborts", text, "", source)


def _named(case: _Case) -> str:
    """Return the pair with its heads, where these are known."""
    if case.head_k is None or case.head_v is None:
        return case.pair
    heads = f"{case.head_k}" if case.head_k == case.head_v else f"{case.head_k}:{case.head_v}"
    return f"{case.pair} with heads of {heads}"


_ORDER: tuple[Verdict, ...] = ("fast", "converted", "unknown", "cpu", "aborts")
_TABLE: dict[Backend, Callable[[_Case], Path]] = {
    **dict.fromkeys(CUDA_FAMILY, _on_cuda),
    "metal": _on_metal,
    "vulkan": _on_vulkan,
    "sycl": _on_sycl,
    "opencl": _on_opencl,
    "cann": _on_cann,
    "webgpu": _on_webgpu,
    "rpc": _on_rpc,
}
