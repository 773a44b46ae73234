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


_SOON_S = 0.05
"""A shorter wait is none to a reader."""

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


def describe(event: Event) -> str:  # noqa: PLR0911, PLR0912 - one return an event
    """Return the event as one line that a person can follow."""
    match event:
        case Spawned():
            return (
                f"{event.model}: starting (pid {event.pid}, {event.binary}, "
                f"KV {event.kv_cache_type}, {event.num_parallel} x {event.num_ctx} tokens)"
            )
        case Ready():
            if event.kv_bytes is None:
                return f"{event.model}: ready after {event.load_s:.2f} s"
            k_bytes, v_bytes = event.kv_bytes
            type_k, _, type_v = event.kv_cache_type.partition(":")
            total = format_bytes(sum(event.kv_bytes))
            return (
                f"{event.model}: ready after {event.load_s:.2f} s, KV {total}"
                f" (K {type_k} {format_bytes(k_bytes)}, V {type_v} {format_bytes(v_bytes)})"
            )
        case SizeDiffers() | KVWarning():
            return f"{event.model}: {event.sentence}"
        case TypeLearnt():
            return (
                f"{event.model}: KV type {event.kv_type} takes "
                f"{event.bits_per_element:.2f} bits an element, as this load told"
            )
        case Died():
            return f"{event.model}: {event.reason}"
        case Hung():
            what = "left alone, watchdog.dry_run is set" if event.dry_run else "it is ended"
            return f"{event.model}: hangs: {event.reason}; {what}"
        case Unkillable():
            return (
                f"{event.model}: pid {event.pid} cannot be killed: it sleeps in the kernel (state"
                " D), held by a driver or a disk; its requests are let go, its memory is not free"
            )
        case Evidence():
            return f"{event.model}: evidence of its end is in {event.path}"
        case Replayed():
            had = f"{event.n_tokens} tokens" if event.n_tokens else "nothing"
            return (
                f"{event.model}: a request was {event.how} {event.took_s:.2f} s after its process"
                f" ended ({event.cause}); sent: {had}"
            )
        case Lost():
            return f"{event.model}: a request was lost: {event.reason}"
        case Poisoned():
            return f"{event.model}: request {event.fingerprint} is not tried again: {event.reason}"
        case Restarting():
            when = f"in {event.delay_s:.1f} s" if event.delay_s >= _SOON_S else "at once"
            return f"{event.model}: restarting {when}"
        case SteppedDown():
            return (
                f"{event.model}: stepped down, fallback {event.step} of {event.n_steps}:"
                f" {'; '.join(event.given_up)}; since {event.why}"
            )
        case GaveUp():
            return (
                f"{event.model}: given up: {event.reason}; edit its file or run "
                f"kvsup reset {event.model}"
            )
        case Stopping():
            return f"{event.model}: stopping: {event.why}"
        case Stopped():
            killed = " (killed)" if event.was_killed else ""
            return f"{event.model}: stopped after {event.took_s:.2f} s{killed}"
        case Probed():
            return (
                f"{event.model}: {event.pair} reads prompts at {event.prompt_ratio:.2f} and writes"
                f" at {event.generation_ratio:.2f} of f16:f16's speed behind"
                f" {event.depth_tokens} tokens"
            )
        case ProbeFailed():
            return f"{event.model}: its KV pair could not be measured: {event.reason}"
        case Reloaded():
            lists = {"changed": event.changed, "added": event.added, "removed": event.removed}
            words = [f"{what} {', '.join(names)}" for what, names in lists.items() if names]
            return f"configuration read again: {'; '.join(words) or 'nothing changed'}"
        case ReloadRefused():
            return f"configuration not taken up, the one before stays in force:\n{event.reason}"
        case ModelFileChanged(damage="deleted"):
            return (
                f"{event.model}: {event.path} was deleted; the llama-server that has it goes on, "
                "none can load it again"
            )
        case ModelFileChanged():
            return (
                f"{event.model}: {event.path} was written to while a llama-server has it mapped, "
                "which may answer nonsense or die; it stops once it is idle. Write new weights "
                "beside it and rename them over it"
            )
        case Began():
            return f"kvsup {event.version} started (pid {event.pid})"
        case Ended():
            return f"kvsup ended (pid {event.pid})"


WARNINGS = (
    SizeDiffers, KVWarning, Hung, Died, Unkillable, Lost, Poisoned, SteppedDown, GaveUp,
    ReloadRefused, ModelFileChanged,
)  # fmt: skip
"""Events that are logged as warnings."""
