"""An instance at one moment, for listings."""

from dataclasses import dataclass

from kvsup.lifecycle import State


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is shown of an instance."""

    name: str
    state: State
    since_s: float
    leases: int
    busy_slots: int
    pid: int | None
    n_deaths: int
    failure: str | None
    size_bytes: int
    vram_bytes: int
    kv_bytes: tuple[int, int] | None
    given_up: tuple[str, ...]
    """What it has not, on its step of the fallback."""
    kv_warnings: tuple[str, ...]
    """What its owner should know of its KV cache, while it serves."""
    idle_until_s: float
