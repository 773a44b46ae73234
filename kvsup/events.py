"""What happened, typed: one feed that log lines and, later, metrics and history read."""

from dataclasses import dataclass

from kvsup.units import format_bytes


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


@dataclass(frozen=True, slots=True)
class Died:
    """It ended unasked."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Restarting:
    """It will be started again."""

    model: str
    delay_s: float


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


@dataclass(frozen=True, slots=True)
class Stopped:
    """Its process is reaped and its memory free."""

    model: str
    took_s: float
    was_killed: bool


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The configuration was read again."""

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


Event = Spawned | Ready | SizeDiffers | Died | Restarting | GaveUp | Stopping | Stopped | Reloaded


def describe(event: Event) -> str:  # noqa: PLR0911 - one return an event
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
        case SizeDiffers():
            return (
                f"{event.model}: KV cache is {format_bytes(event.measured_bytes)}, "
                f"{format_bytes(event.estimated_bytes)} were estimated; the measured size counts"
            )
        case Died():
            return f"{event.model}: {event.reason}"
        case Restarting():
            return f"{event.model}: restarting in {event.delay_s:.1f} s"
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
        case Reloaded():
            lists = {"changed": event.changed, "added": event.added, "removed": event.removed}
            words = [f"{what} {', '.join(names)}" for what, names in lists.items() if names]
            return f"configuration read again: {'; '.join(words) or 'nothing changed'}"


WARNINGS = (SizeDiffers, Died, GaveUp)
"""Events that are logged as warnings."""
