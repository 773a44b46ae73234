"""What a llama-server's own log told of its memory, its graph and its speed."""

import re
from dataclasses import dataclass, field
from typing import Literal

from kvsup.kvtypes import KVType
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
)
from kvsup.measures import Speed
from kvsup.memory import Estimate
from kvsup.residency import RAM
from kvsup.runtime.tally import Tally

AttentionPath = Literal["", "fast", "converted", "cpu"]
"""Where a device's attention runs: there, there after a conversion to f16, on the CPU; "": unknown.

Without a device it is unknown, too: on the CPU is then where it belongs.
"""

MIN_GENERATED_TOKENS = 16
"""Fewer tell nothing of a speed."""

_KEPT_SPEEDS = 8
_HOST_DEVICES = ("CPU", "CPU_Mapped", "CPU_REPACK", "AMX", "Host")
_DEVICE_NAME = re.compile(r"[A-Za-z]+\d*")
"""Of a buffer type such as ``RPC0[127.0.0.1:50052]`` or ``MTL0_Mapped``, the device's name."""


@dataclass(slots=True)
class Measured:
    """Gathered line by line; sizes are final once the instance is ready."""

    caches: list[KVCacheSize] = field(default_factory=list)
    buffers: list[BufferSize] = field(default_factory=list)
    flash_attention: str = ""
    failure: LoadFailure | None = None
    unrotated: dict[str, Rotation] = field(default_factory=dict)
    """By half, ``k`` or ``v``: of a quantized one that is not rotated."""
    is_rotation_disabled: bool = False
    splits: GraphSplits | None = None
    compiled_pairs: tuple[str, ...] | None = None
    converted: Converted | None = None
    moved: AttentionMoved | None = None
    reduced: ContextReduced | None = None
    fitted: list[LayersFitted] = field(default_factory=list)
    fit_failed: FitFailed | None = None
    offloaded: Offloaded | None = None
    slot_tokens: int | None = None
    """Of the last line of a load; None until then."""
    v_row_elements: int | None = None
    """Of every V row where all are padded to the widest."""
    speeds: list[Speed] = field(default_factory=list)
    """Of the last requests that generated enough to tell, oldest first."""
    load_s: float = 0.0
    """From the start of the process until it served; 0 until then."""
    n_load_facts: int = 0
    """Grows with everything that is told of the load, not of requests."""
    tally: Tally = field(default_factory=Tally)
    """Counts every prompt that was answered to its end."""
    _timings: dict[tuple[int, bool], Timing] = field(default_factory=dict)
    _prompt_tokens: dict[int, int] = field(default_factory=dict)
    """By slot: of the prompt that it works on."""

    def note(self, fact: Fact) -> None:  # noqa: PLR0912 - one case a fact
        """Keep one fact; of several failures the first says most."""
        if isinstance(fact, Timing | PromptBegun | Released):
            self._note_request(fact)
            return
        self.n_load_facts += 1
        match fact:
            case KVCacheSize():
                self.caches.append(fact)
            case BufferSize():
                self._note_buffer(fact)
            case FlashAttentionState():
                self.flash_attention = fact.value
            case LoadFailure():
                self.failure = self.failure or fact
            case Rotation():
                self._note_rotation(fact)
            case RotationDisabled():
                self.is_rotation_disabled = True
            case GraphSplits():
                self.splits = self.splits or fact  # a draft model's graph comes later
            case CompiledPairs():
                self.compiled_pairs = fact.pairs
            case Converted():
                self.converted = fact
            case AttentionMoved():
                self.moved = self.moved or fact
            case ContextReduced():
                self.reduced = fact
            case LayersFitted():
                self.fitted.append(fact)
            case FitFailed():
                self.fit_failed = fact
            case Offloaded():
                self.offloaded = self.offloaded or fact
            case SlotContext():
                self.slot_tokens = fact.n_tokens
            case VPadded():
                self.v_row_elements = fact.elements

    @property
    def kv_bytes(self) -> tuple[int, int] | None:
        """Bytes of K and of V over all caches, or None if none was logged."""
        if not self.caches:
            return None
        return sum(c.k_bytes for c in self.caches), sum(c.v_bytes for c in self.caches)

    def kv_bytes_of(self, estimate: Estimate) -> tuple[int, int] | None:
        """Bytes of K and of V without those of a draft model, whose caches are logged last."""
        if estimate.draft is None or not self.caches:
            return self.kv_bytes
        own = self.caches[: len(estimate.caches)]
        return sum(c.k_bytes for c in own), sum(c.v_bytes for c in own)

    @property
    def total_bytes(self) -> int:
        """Weights, KV, state, compute and output buffers of all devices; 0: unknown."""
        return sum(buffer.size_bytes for buffer in self.buffers)

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """``total_bytes`` by memory: ``RAM``, with the mapped model file, and each device's."""
        sizes: dict[str, int] = {}
        for buffer in self.buffers:
            memory = _memory_of(buffer)
            sizes[memory] = sizes.get(memory, 0) + buffer.size_bytes
        return sizes

    @property
    def vram_bytes(self) -> int:
        """The part of ``total_bytes`` that is not in the host's memory."""
        return self.total_bytes - self.bytes_by_device.get(RAM, 0)

    @property
    def mapped_bytes(self) -> int:
        """The part of ``total_bytes`` that is the mapped model file, which is page cache."""
        return sum(b.size_bytes for b in self.buffers if b.device.endswith("_Mapped"))

    @property
    def offload_devices(self) -> tuple[str, ...]:
        """Devices that hold weights, beside the host."""
        weights = (b for b in self.buffers if b.kind == "model" and b.size_bytes)
        names = dict.fromkeys(_memory_of(buffer) for buffer in weights)
        return tuple(name for name in names if name != RAM)

    def attention_path(self, n_attention_layers: int, *, has_experts: bool) -> AttentionPath:
        """Return where attention runs, as far as the log tells.

        With all layers on one device the graph of one token has 2 splits, with the attention of
        each layer elsewhere ``2 * n_attention_layers + 2`` (b11434: 62 for 30 layers). Experts that
        are kept in RAM split it as well, so nothing can be said of a model that has any.
        """
        if self.converted is not None:
            return "converted"
        if not self.offload_devices or self.splits is None:
            return ""
        if has_experts or not self._is_wholly_offloaded:
            return ""
        usual = 1 + len(self.offload_devices)
        return "cpu" if self.splits.generation > usual + n_attention_layers else "fast"

    @property
    def _is_wholly_offloaded(self) -> bool:
        return self.offloaded is not None and self.offloaded.layers == self.offloaded.all_layers

    def _note_buffer(self, buffer: BufferSize) -> None:
        """Keep a buffer; once serving, another graph takes the place of the one before."""
        if self.slot_tokens is not None and buffer.kind == "compute":
            for place, old in enumerate(self.buffers):
                if (old.kind, old.device) == (buffer.kind, buffer.device):
                    self.buffers[place] = buffer
                    return
        self.buffers.append(buffer)

    def _note_rotation(self, rotation: Rotation) -> None:
        """Keep that a half of the cache told last is not rotated although it could need it."""
        if rotation.size or not self.caches:
            return
        cache = self.caches[-1]
        name, size_bytes = (
            (cache.type_k, cache.k_bytes) if rotation.half == "k" else (cache.type_v, cache.v_bytes)
        )
        kv_type = KVType(name)
        if size_bytes and kv_type.block_elements is not None and kv_type.is_quantized:
            self.unrotated.setdefault(rotation.half, rotation)

    def _note_request(self, fact: Timing | PromptBegun | Released) -> None:
        match fact:
            case Timing():
                self._timings[fact.slot, fact.is_prompt] = fact
            case PromptBegun():
                self._prompt_tokens[fact.slot] = fact.n_tokens
            case Released():
                generation = self._timings.pop((fact.slot, False), None)
                prompt = self._timings.pop((fact.slot, True), None)
                n_prompt_tokens = self._prompt_tokens.pop(fact.slot, 0)
                self._note_speed(fact, generation, prompt)
                if prompt is not None and prompt.n_tokens <= n_prompt_tokens:
                    self.tally.n_prompt_tokens += n_prompt_tokens
                    self.tally.n_cached_tokens += n_prompt_tokens - prompt.n_tokens

    def _note_speed(self, end: Released, generation: Timing | None, prompt: Timing | None) -> None:
        if generation is None or generation.n_tokens < MIN_GENERATED_TOKENS:
            return
        speed = Speed(
            depth_tokens=max(0, end.n_tokens - generation.n_tokens),
            prompt_tokens_per_s=prompt.tokens_per_s if prompt else 0.0,
            generation_tokens_per_s=generation.tokens_per_s,
        )
        self.speeds = [*self.speeds, speed][-_KEPT_SPEEDS:]


def _memory_of(buffer: BufferSize) -> str:
    """Return ``RAM`` or the device in whose memory a buffer lies."""
    is_host = buffer.device.startswith(_HOST_DEVICES) or "_Host" in buffer.device
    name = _DEVICE_NAME.match(buffer.device)
    return RAM if is_host or name is None else name[0]
