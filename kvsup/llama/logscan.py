"""Read llama-server's log at ``--log-verbosity 4``: measured sizes, slow paths, failures, speeds.

Line forms are those of b10434 and b11434, captured in ``tests/golden/`` or, where they need a GPU,
taken from the source of b11434; sizes have two decimals of MiB. The prefix (time, level, component)
may be present or not.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from kvsup.restart import ExitCause

_MIB = 1 << 20
_KV = re.compile(
    r"llama_kv_cache[a-z_]*: size = *([\d.]+) MiB \( *(\d+) cells, *(\d+) layers, *(\d+)/(\d+) seqs"
    r".*?\), K \((\w+)\): *([\d.]+) MiB, V \((\w+)\): *([\d.]+) MiB"
)
_BUFFER = re.compile(
    r"(\S+) +(?:DSV4 \w+ )?(model|KV|RS|state|compute|output) buffer size = *([\d.]+) MiB"
)
_FLASH = re.compile(r"flash_attn += (\w+)")
_ROTATION = re.compile(  # b11434 says n_, b10434 attn_; both say "_k_" for V, too
    r"(?:n|attn)_rot_([kv]) = (\d+), n_embd_head_k_all = (-?\d+)"
)
_SPLITS = re.compile(
    r"(?:sched_reserve|llama_context): graph.*?\bsplits += (\d+)"
    r"(?: \(with bs=\d+\), (\d+)| / (\d+))?"  # a prompt's and a token's graph where they differ
)
_COMPILED = re.compile(r"\bFA_QUANTS = ([^|]*)")
_CONVERTED = re.compile(r"kernel compiled for K/V types (\w+)-(\w+)")
_MOVED = re.compile(
    r"layer (\d+) is assigned to device (.+?) but Flash Attention is .*?device (\S+)"
)
_REDUCED = re.compile(r"context size reduced from (\d+) to (\d+)")
_FITTED = re.compile(r" - (\S+): +(\d+) layers \( *(\d+) overflowing\)")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers")
_SLOT = re.compile(r"n_ctx_slot = (\d+)")
_PADDED = re.compile(r"padding V cache to (\d+)")
_TIMING = re.compile(
    r"id +(\d+) .*?(prompt )?eval time = .*?/ +(\d+) tokens .*?([\d.]+|inf) tokens per second"
)
_PROMPT = re.compile(r"id +(\d+) .*?new prompt, .*?n_tokens = (\d+)")
_RELEASED = re.compile(r"id +(\d+) .*?stop processing: n_tokens = (\d+)")
_QUOTES = (
    "error parsing grammar: ",
    "JSON schema conversion was incomplete: ",
    "unable to match sampler by name ",
    "got exception: ",
)
"""What a text of a client follows, as seen with b11434."""

_ESCAPED = '{"error":'
"""So begins one without line ends: the answer to its client, as JSON."""

_OWN = re.compile(r"(?:[\d.]+ )?[DEITW] \S")
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
    (" error: out of memory", ExitCause.DOES_NOT_FIT),  # "CUDA" or "ROCm" before it
    ("ErrorOutOfDeviceMemory", ExitCause.DOES_NOT_FIT),
    ("Insufficient Memory", ExitCause.DOES_NOT_FIT),
    ("std::bad_alloc", ExitCause.DOES_NOT_FIT),
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
    """What flash attention came out as.

    ``enabled``, ``disabled``, ``auto`` (still open), or ``unsupported``: it was auto, and is off
    since a device cannot do it.
    """

    value: str


@dataclass(frozen=True, slots=True)
class Rotation:
    """Size of the rotation of one half of the cache told last; 0: that half is not rotated.

    b10434 tells only 1 or 0.
    """

    half: str
    size: int
    head_elements: int
    """Of each layer; 0 or less where they differ between layers."""


@dataclass(frozen=True, slots=True)
class RotationDisabled:
    """``LLAMA_ATTN_ROT_DISABLE`` is set."""


@dataclass(frozen=True, slots=True)
class GraphSplits:
    """In how many parts a graph is run, each on one device."""

    prompt: int
    generation: int


@dataclass(frozen=True, slots=True)
class CompiledPairs:
    """The pairs, as ``k-v``, for which CUDA has vector kernels; before the load (b11434)."""

    pairs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Converted:
    """CUDA converts K and V of these types to f16 on each step (ggml-cuda/fattn.cu, b11434)."""

    type_k: str
    type_v: str


@dataclass(frozen=True, slots=True)
class AttentionMoved:
    """A layer's attention is on another device than its weights, where flash attention was auto."""

    layer: int
    device: str
    attention_device: str


@dataclass(frozen=True, slots=True)
class ContextReduced:
    """``--fit`` made the context smaller."""

    from_tokens: int
    to_tokens: int


@dataclass(frozen=True, slots=True)
class LayersFitted:
    """``--fit`` chose how many layers one device holds, some of them only in part."""

    device: str
    layers: int
    overflowing: int


@dataclass(frozen=True, slots=True)
class FitFailed:
    """``--fit`` found no way to fit; the load goes on all the same."""

    reason: str


@dataclass(frozen=True, slots=True)
class Offloaded:
    """How many layers are on devices; all of them where there is no device (b11434)."""

    layers: int
    all_layers: int


@dataclass(frozen=True, slots=True)
class SlotContext:
    """Tokens that one slot holds; the first line after everything is allocated."""

    n_tokens: int


@dataclass(frozen=True, slots=True)
class VPadded:
    """Without flash attention every V row is as wide as the widest layer's."""

    elements: int


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast one slot read a prompt's new tokens, or generated."""

    slot: int
    is_prompt: bool
    n_tokens: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class PromptBegun:
    """A slot has begun with a prompt of so many tokens, those in its cache among them."""

    slot: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Released:
    """A slot has ended its request, with so many tokens in its cache."""

    slot: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A line that tells why a load fails."""

    cause: ExitCause
    message: str


Fact = (
    KVCacheSize
    | BufferSize
    | FlashAttentionState
    | Rotation
    | RotationDisabled
    | GraphSplits
    | CompiledPairs
    | Converted
    | AttentionMoved
    | ContextReduced
    | LayersFitted
    | FitFailed
    | Offloaded
    | SlotContext
    | VPadded
    | Timing
    | PromptBegun
    | Released
    | LoadFailure
)


def scan(line: str) -> Fact | None:
    """Return what ``line`` tells, or None; quick, since every line of a llama-server comes here.

    Whatever stands in it: a client's text may be there (``without_quote``).
    """
    for mark, read in _READERS:
        if mark in line:
            with suppress(ValueError, OverflowError):  # a number of no sense
                if (fact := read(line)) is not None:
                    return fact
    for text, cause in _CAUSES:
        if text in line:
            return LoadFailure(cause, _message(line))
    return None


def without_quote(line: str) -> tuple[str, bool]:
    """Return a line without the client's text in it, and whether that text has more lines.

    A grammar that cannot be parsed, for example, is printed whole, its line ends, too.
    """
    for mark in _QUOTES:
        before, found, text = line.partition(mark)
        if found:
            return before + mark.rstrip(), not text.startswith(_ESCAPED)
    return line, False


def is_own(line: str) -> bool:
    """Say whether a line has the beginning that llama-server gives to its own."""
    return _OWN.match(line) is not None


def _kv_size(line: str) -> KVCacheSize | None:
    match = _KV.search(line)
    if match is None:
        return None
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


def _buffer_size(line: str) -> BufferSize | None:
    match = _BUFFER.search(line)
    return match and BufferSize(match[1], match[2], round(float(match[3]) * _MIB))


def _rotation(line: str) -> Rotation | None:
    match = _ROTATION.search(line)
    return match and Rotation(match[1], int(match[2]), int(match[3]))


def _splits(line: str) -> GraphSplits | None:
    match = _SPLITS.search(line)
    return match and GraphSplits(int(match[1]), int(match[2] or match[3] or match[1]))


def _compiled(line: str) -> CompiledPairs | None:
    match = _COMPILED.search(line)
    return match and CompiledPairs(tuple(re.findall(r"[\w-]+", match[1])))


def _timing(line: str) -> Timing | None:
    match = _TIMING.search(line)
    return match and Timing(int(match[1]), bool(match[2]), int(match[3]), float(match[4]))


def _reader(pattern: re.Pattern[str], make: Callable[..., Fact]) -> Callable[[str], Fact | None]:
    """Return a reader that makes a fact of a pattern's groups, whole numbers as such."""

    def read(line: str) -> Fact | None:
        match = pattern.search(line)
        return match and make(*(int(g) if g.isdecimal() else g for g in match.groups()))

    return read


def _message(line: str) -> str:
    match = _MESSAGE.match(line)
    return (match[1] if match else line).strip()


_READERS: tuple[tuple[str, Callable[[str], Fact | None]], ...] = (
    ("llama_kv_cache", _kv_size),
    (" buffer size = ", _buffer_size),
    ("flash_attn ", _reader(_FLASH, FlashAttentionState)),
    ("Flash Attention not supported", lambda _: FlashAttentionState("unsupported")),
    ("Flash Attention enabled", lambda _: FlashAttentionState("enabled")),
    ("_rot_", _rotation),
    ("attention rotation force disabled", lambda _: RotationDisabled()),
    (" splits ", _splits),
    ("FA_QUANTS = ", _compiled),
    ("no FlashAttention vector kernel", _reader(_CONVERTED, Converted)),
    ("but Flash Attention is", _reader(_MOVED, AttentionMoved)),
    ("context size reduced", _reader(_REDUCED, ContextReduced)),
    (" overflowing)", _reader(_FITTED, LayersFitted)),
    ("failed to fit params", lambda line: FitFailed(_message(line).rpartition(": ")[2])),
    ("offloaded ", _reader(_OFFLOADED, Offloaded)),
    ("initializing, n_slots = ", _reader(_SLOT, SlotContext)),
    ("padding V cache to", _reader(_PADDED, VPadded)),
    ("eval time = ", _timing),
    ("new prompt, ", _reader(_PROMPT, PromptBegun)),
    ("stop processing: n_tokens", _reader(_RELEASED, Released)),
)
"""What stands in every line of a kind, and how such a line is read."""
