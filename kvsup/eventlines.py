"""What happened, in words: one line for each event."""

from kvsup.events import (
    Began,
    Died,
    Ended,
    Event,
    Evidence,
    GaveUp,
    Hung,
    KVDropped,
    KVRestored,
    KVSaved,
    KVWarning,
    Lost,
    ModelFileChanged,
    Poisoned,
    Probed,
    ProbeFailed,
    Ready,
    Reloaded,
    ReloadRefused,
    Replayed,
    Restarting,
    SizeDiffers,
    Spawned,
    SteppedDown,
    Stopped,
    Stopping,
    TypeLearnt,
    Unkillable,
)
from kvsup.units import format_bytes

_SOON_S = 0.05
"""A shorter wait is none to a reader."""


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
        case KVSaved():
            return (
                f"{event.model}: saved {event.n_tokens} tokens of a conversation"
                f" ({format_bytes(event.size_bytes)}) in {event.took_s * 1000:.0f} ms"
            )
        case KVRestored():
            return (
                f"{event.model}: took up {event.n_tokens} tokens of a conversation"
                f" in {event.took_s * 1000:.0f} ms"
            )
        case KVDropped():
            return (
                f"{event.model}: removed a saved conversation of {event.n_tokens} tokens:"
                f" {event.reason}"
            )
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
