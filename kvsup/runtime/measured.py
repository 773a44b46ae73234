"""What a llama-server's own log told about its memory in the load that is under way or done."""

from dataclasses import dataclass, field

from kvsup.llama.logscan import (
    BufferSize,
    Fact,
    FlashAttentionState,
    KVCacheSize,
    LoadFailure,
    Rotation,
)

_HOST_DEVICES = ("CPU", "CPU_Mapped", "CPU_REPACK", "AMX", "Host")


@dataclass(slots=True)
class Measured:
    """Gathered line by line; sizes are final once the instance is ready."""

    caches: list[KVCacheSize] = field(default_factory=list)
    buffers: list[BufferSize] = field(default_factory=list)
    flash_attention: str = ""
    failure: LoadFailure | None = None

    def note(self, fact: Fact) -> None:
        """Keep one fact; of several failures the first says most."""
        match fact:
            case KVCacheSize():
                self.caches.append(fact)
            case BufferSize():
                self.buffers.append(fact)
            case FlashAttentionState():
                self.flash_attention = fact.value
            case LoadFailure():
                self.failure = self.failure or fact
            case Rotation():
                pass  # the KV issue compares it with the type

    @property
    def kv_bytes(self) -> tuple[int, int] | None:
        """Bytes of K and of V over all caches, or None if none was logged."""
        if not self.caches:
            return None
        return sum(c.k_bytes for c in self.caches), sum(c.v_bytes for c in self.caches)

    @property
    def total_bytes(self) -> int:
        """Weights, KV, state, compute and output buffers of all devices; 0: unknown."""
        return sum(buffer.size_bytes for buffer in self.buffers)

    @property
    def vram_bytes(self) -> int:
        """The part of ``total_bytes`` that is not in the host's memory."""
        return sum(
            b.size_bytes
            for b in self.buffers
            if b.device and not b.device.startswith(_HOST_DEVICES) and "_Host" not in b.device
        )

    @property
    def mapped_bytes(self) -> int:
        """The part of ``total_bytes`` that is the mapped model file, which is page cache."""
        return sum(b.size_bytes for b in self.buffers if b.device.endswith("_Mapped"))
