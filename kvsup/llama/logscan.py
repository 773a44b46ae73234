"""Read llama-server's log at ``--log-verbosity 4``: buffer sizes as it measured them, and failures.

Line forms are those of b10434 and b11434, captured in ``tests/golden/``; sizes have two decimals of
MiB. The prefix (time, level, component) may be present or not.
"""

import re
from dataclasses import dataclass

from kvsup.restart import ExitCause

_MIB = 1 << 20
_KV = re.compile(
    r"llama_kv_cache[a-z_]*: size = *([\d.]+) MiB \( *(\d+) cells, *(\d+) layers, *(\d+)/(\d+) seqs"
    r".*?\), K \((\w+)\): *([\d.]+) MiB, V \((\w+)\): *([\d.]+) MiB"
)
_RECURRENT = re.compile(r"llama_memory_recurrent: size = *([\d.]+) MiB")
_BUFFER = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size = *([\d.]+) MiB")
_FLASH = re.compile(r"flash_attn += (\w+)")
_ROTATION = re.compile(r"(?:n|attn)_rot_([kv]) = (\d+)")  # b11434 says n_, b10434 attn_
_MESSAGE = re.compile(r"^(?:[\d.]+ )?[EW] (?:\w+ +)?(?:[\w()]+: +)?(.*)")

_CAUSES: tuple[tuple[str, ExitCause], ...] = (
    ("error: invalid argument", ExitCause.BAD_ARGUMENT),
    ("error while handling argument", ExitCause.BAD_ARGUMENT),
    ("error while handling environment variable", ExitCause.BAD_ARGUMENT),
    ("failed to open GGUF file", ExitCause.NO_SUCH_FILE),
    ("invalid magic characters", ExitCause.NOT_A_MODEL),
    ("not within the file bounds", ExitCause.NOT_A_MODEL),
    ("unknown model architecture", ExitCause.NOT_A_MODEL),
    ("quantized V cache requires flash_attn", ExitCause.PAIR_REFUSED),
    ("does not divide n_embd_head", ExitCause.PAIR_REFUSED),
    ("does not support different K", ExitCause.PAIR_REFUSED),
    ("failed to allocate buffer", ExitCause.DOES_NOT_FIT),
    ("insufficient memory", ExitCause.DOES_NOT_FIT),
    ("cudaMalloc failed: out of memory", ExitCause.DOES_NOT_FIT),
    ("failed to load model", ExitCause.NOT_A_MODEL),
)


ROUNDING_BYTES = (1 << 20) // 200 + 1
"""How far a size in the log may be from the true one: it is told in MiB with two decimals."""


@dataclass(frozen=True, slots=True)
class KVCacheSize:
    """One cache as llama-server allocated it; ``cells`` are per stream."""

    type_k: str
    type_v: str
    k_bytes: int
    v_bytes: int
    cells: int
    layers: int
    streams: int


@dataclass(frozen=True, slots=True)
class BufferSize:
    """One buffer on one device: its weights, KV cache, recurrent state, compute or output."""

    device: str
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FlashAttentionState:
    """What flash attention came out as: ``enabled``, ``disabled`` or ``auto`` (still open)."""

    value: str


@dataclass(frozen=True, slots=True)
class Rotation:
    """Size of the rotation of one half of the cache; 0: that half is not rotated.

    b10434 tells only 1 or 0.
    """

    half: str
    size: int


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A line that tells why a load fails."""

    cause: ExitCause
    message: str


Fact = KVCacheSize | BufferSize | FlashAttentionState | Rotation | LoadFailure


def scan(line: str) -> Fact | None:
    """Return what ``line`` tells, or None."""
    if "size" in line and (fact := _size(line)):
        return fact
    if match := _FLASH.search(line):
        return FlashAttentionState(match[1])
    if match := _ROTATION.search(line):
        return Rotation(match[1], int(match[2]))
    for text, cause in _CAUSES:
        if text in line:
            message = _MESSAGE.match(line)
            return LoadFailure(cause, (message[1] if message else line).strip())
    return None


def _size(line: str) -> KVCacheSize | BufferSize | None:
    if match := _KV.search(line):
        _, cells, layers, _, streams, type_k, k_mib, type_v, v_mib = match.groups()
        return KVCacheSize(
            type_k=type_k,
            type_v=type_v,
            k_bytes=round(float(k_mib) * _MIB),
            v_bytes=round(float(v_mib) * _MIB),
            cells=int(cells),
            layers=int(layers),
            streams=int(streams),
        )
    if match := _RECURRENT.search(line):
        return BufferSize("", "recurrent", round(float(match[1]) * _MIB))
    if match := _BUFFER.search(line):
        return BufferSize(match[1], match[2], round(float(match[3]) * _MIB))
    return None
