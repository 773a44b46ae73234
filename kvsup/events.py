"""What happened, typed: one feed that log lines, history and, later, metrics read."""

from dataclasses import dataclass
from typing import Literal

from kvsup.units import format_bytes

Rescue = Literal["replayed", "resumed", "continued"]
"""How a request outlived its process: run anew before its client had a byte; run anew with what the
client had dropped; or gone on from what the client had."""

Damage = Literal["written", "deleted"]
"""What happened to a file that a llama-server has mapped; one that was replaced is left to it."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A llama-server was started."""

    model: str
    pid: int
    binary: str
    kv_cache_type: str
    num_ctx: int
    num_parallel: int


@dataclass(frozen=True, slots=True)
class Ready:
    """It serves."""

    model: str
    load_s: float
    kv_bytes: tuple[int, int] | None
    """Measured bytes of K and V, where the log told them."""
    kv_cache_type: str


@dataclass(frozen=True, slots=True)
class SizeDiffers:
    """The log's KV bytes are not those that were estimated."""

    model: str
    estimated_bytes: int
    measured_bytes: int

    @property
    def sentence(self) -> str:
        """Return what differs, with both numbers."""
        return (
            f"KV cache is {format_bytes(self.measured_bytes)}, "
            f"{format_bytes(self.estimated_bytes)} were estimated; the measured size counts"
        )


@dataclass(frozen=True, slots=True)
class TypeLearnt:
    """The log told the size of a KV type that kvsup does not know."""

    model: str
    kv_type: str
    bits_per_element: float


@dataclass(frozen=True, slots=True)
class KVWarning:
    """It serves, but something about its KV cache is slow, lossy or not as asked."""

    model: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Died:
    """It ended unasked."""

    model: str
    reason: str
    cause: str = ""
    """Name of its ``restart.ExitCause``, by which deaths are counted together."""
    returncode: int | None = None
    """Negative for a signal; None where no process came up."""
    uptime_s: float = 0.0
    """Seconds that it had been ready."""


@dataclass(frozen=True, slots=True)
class Hung:
    """It lives but does nothing; it is ended, unless ``dry_run``."""

    model: str
    reason: str
    dry_run: bool = False
    probes: tuple[str, ...] = ()
    """The last looks at it, oldest first, one line each."""


@dataclass(frozen=True, slots=True)
class Unkillable:
    """SIGKILL does not end it, so its memory is not free and nothing can take its place."""

    model: str
    pid: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was known when it ended is kept in a file."""

    model: str
    path: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """A request went on in another process; its client saw a pause."""

    model: str
    how: Rescue
    n_tokens: int
    """What the client had of the answer when its process ended."""
    took_s: float
    """From that end until the answer went on."""
    cause: str
    """What the process ended of, in words."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A request did not outlive its process; its client was told."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A request under which the process died twice is not tried again; its client was told."""

    model: str
    fingerprint: str
    reason: str


@dataclass(frozen=True, slots=True)
class KVSaved:
    """A conversation's KV cache was written to a file."""

    model: str
    n_tokens: int
    size_bytes: int
    took_s: float


@dataclass(frozen=True, slots=True)
class KVRestored:
    """A conversation's KV cache was taken up from a file: its tokens are not read again."""

    model: str
    n_tokens: int
    took_s: float


@dataclass(frozen=True, slots=True)
class KVDropped:
    """A saved conversation was removed, unasked."""

    model: str
    n_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Restarting:
    """It will be started again."""

    model: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class SteppedDown:
    """Its memory was not there, so it is loaded smaller, as its ``fallback`` says."""

    model: str
    step: int
    n_steps: int
    given_up: tuple[str, ...]
    """What it has not now, e.g. ``num_ctx 4096, not 32768``."""
    why: str


@dataclass(frozen=True, slots=True)
class GaveUp:
    """It will not be started again by itself."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """It was asked to stop."""

    model: str
    why: str
    room_for: str | None = None
    """The model that needs its memory, where that is the reason."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Its process is reaped and its memory free."""

    model: str
    took_s: float
    was_killed: bool


@dataclass(frozen=True, slots=True)
class Probed:
    """A pair was measured beside f16:f16."""

    model: str
    pair: str
    depth_tokens: int
    prompt_ratio: float
    """Its speed as a part of f16:f16's."""
    generation_ratio: float


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A pair could not be measured."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The configuration was read again."""

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Began:
    """This kvsup has begun to serve."""

    pid: int
    version: str


@dataclass(frozen=True, slots=True)
class Ended:
    """This kvsup ends in order; one that is killed does not say it."""

    pid: int


@dataclass(frozen=True, slots=True)
class ReloadRefused:
    """The configuration folder is wrong; what is in force stays."""

    reason: str
    """Every problem, one a line."""


@dataclass(frozen=True, slots=True)
class ModelFileChanged:
    """A file of weights is no longer what a llama-server has mapped."""

    model: str
    path: str
    damage: Damage


Event = (
    Spawned
    | Ready
    | SizeDiffers
    | TypeLearnt
    | KVWarning
    | Hung
    | Died
    | Unkillable
    | Evidence
    | Replayed
    | Lost
    | Poisoned
    | KVSaved
    | KVRestored
    | KVDropped
    | Restarting
    | SteppedDown
    | GaveUp
    | Stopping
    | Stopped
    | Probed
    | ProbeFailed
    | Reloaded
    | Began
    | Ended
    | ReloadRefused
    | ModelFileChanged
)

WARNINGS = (
    SizeDiffers, KVWarning, Hung, Died, Unkillable, Lost, Poisoned, SteppedDown, GaveUp,
    ReloadRefused, ModelFileChanged,
)  # fmt: skip
"""Events that are logged as warnings."""
