"""Why a model is as it is now: its state, what led to it, and what its owner can do.

Pure: what is kept of its history and what is true now come in, sentences go out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from kvsup.history import (
    Fates,
    Line,
    Record,
    about,
    death_words,
    n_of,
    stop_words,
    timeline,
)
from kvsup.units import format_span

DAY_S = 86400.0

DEFAULT_LINES = 20
"""Of the timeline, where nobody says how many."""

NOT_RUNNING = "kvsup does not run"
"""What stands for the state where no kvsup could be asked."""

_ALIVE = frozenset({"loading", "ready", "draining", "starting"})
_DECIDED = frozenset({"Died", "Stopping", "GaveUp", "Began", "Reloaded", "SteppedDown"})
"""Events after which a model is started for a reason that can be told."""
_ENDS = frozenset({"Died", "Stopping", "GaveUp", "Began", "Spawned"})
"""Events of which the last tells why a model is not loaded."""

_MENDS: Mapping[str, str] = {
    "CANNOT_START": "name a llama-server that can be run; kvsup doctor shows which is found",
    "CANNOT_START_AGAIN": "look whether it is still in its place: kvsup doctor",
    "BAD_ARGUMENT": "correct extra_args in {source}",
    "NO_SUCH_FILE": "correct model in {source}",
    "NOT_A_MODEL": "fetch the model file again, or name another in {source}",
    "PAIR_REFUSED": "choose another kv_cache_type: kvsup check names the nearest that works",
    "DOES_NOT_FIT": "choose a smaller num_ctx, fewer num_parallel or smaller KV types: kvsup"
    " estimate {model} --budget SIZE says what fits; fallback in {source} does so by itself",
    "STALLED": "raise load_timeout in {source} if its disk is slow; kvsup logs {model} shows how"
    " far it came",
    "CRASH_IN_WARMUP": "try another build of llama-server: kvsup setup",
    "CRASHED": "it is a fault of this build of llama-server, or of its driver: try another, and"
    " report it with the evidence",
    "ENDED": "look at what it said last: kvsup logs {model}",
    "KILLED": "look for what sends signals on this machine, such as earlyoom or systemd-oomd: kvsup"
    " did not",
    "KERNEL_OOM": "give it less memory (num_ctx, num_parallel, KV types) or a fallback, or set"
    " memory in kvsup.toml so that fewer models are loaded at once",
    "OUT_OF_MEMORY": "give it less memory (num_ctx, num_parallel, KV types) or a fallback, or find"
    " what else uses its device",
    "HUNG": "look at the evidence; another build or fewer GPU layers may help",
    "FROZEN": "look for what stops processes on this machine (SIGSTOP, a debugger, a freezer)",
    "BUSY_HOST": "raise the limits of open files and processes (ulimit -n, ulimit -u), or free"
    " memory",
    "BUG": "report it with the traceback in the log of kvsup",
}
"""What to do, by the name of the ``restart.ExitCause``."""


class Present(msgspec.Struct, frozen=True):
    """What is true of a model now."""

    state: str
    """A ``lifecycle.State``, or ``NOT_RUNNING``."""
    for_s: float | None = None
    """Seconds in this state, where that is known."""
    in_flight: int = 0
    failure: str | None = None
    source: str = "its file"
    """The file that configures it."""
    is_configured: bool = True


class Answer(msgspec.Struct, frozen=True):
    """Why a model is as it is, and how it came about."""

    model: str
    state: str
    now: str
    """Its state in a sentence."""
    because: str
    """What led to it; empty where nothing is known."""
    mend: str
    """What its owner can do; empty where there is nothing to mend."""
    lately: str
    """What the last day brought, in numbers; empty where it brought nothing."""
    timeline: list[Line]
    """The last lines, oldest first."""
    n_earlier: int
    """Lines that are kept and left out here."""
    evidence: str | None = None
    """The newest file that says more of an end."""


def answer(
    model: str, records: Iterable[Record], present: Present, *, now_s: float, n_lines: int
) -> Answer:
    """Return why ``model`` is as it is.

    Args:
        model: its name.
        records: what is kept of it, and of kvsup itself; others are skipped.
        present: what is true of it now.
        now_s: Unix time.
        n_lines: lines of the timeline that are wanted.
    """
    own = about(model, records)
    lines = timeline(own)
    because, mend = _cause(model, own, present, now_s=now_s)
    return Answer(
        model=model,
        state=present.state,
        now=_now(model, present),
        because=because,
        mend=mend,
        lately=lately(own, now_s=now_s),
        timeline=lines[-n_lines:] if n_lines else [],
        n_earlier=max(0, len(lines) - n_lines),
        evidence=next((line.evidence for line in reversed(lines) if line.evidence), None),
    )


def _now(model: str, present: Present) -> str:
    for_ = "" if present.for_s is None else f" for {format_span(present.for_s)}"
    busy = n_of(present.in_flight, "request") if present.in_flight else "no request"
    words = {
        "ready": f"has been ready{for_}, with {busy} in work",
        "failed": f"has given up, and has not been started{for_}",
        "backoff": f"has waited for its next start{for_}",
        "draining": f"is to be stopped once what is in work has ended: {busy}",
        NOT_RUNNING: "is not loaded: no kvsup runs",
    }
    if not present.is_configured:
        return f"{model} is not configured any more"
    return f"{model} {words.get(present.state, f'has been {present.state}{for_}')}"


def _cause(model: str, own: Sequence[Record], present: Present, *, now_s: float) -> tuple[str, str]:
    """Return what led to the state, and what to do about it."""
    words: Mapping[str, Any] = {"model": model, "source": present.source}
    if present.state == "failed":
        death = _last(own, {"Died"})
        mend = (death and _mend(death, words)) or f"edit {present.source}"
        return present.failure or "", f"{mend}; then run kvsup reset {model}"
    if present.state in _ALIVE:
        return _why_started(own, now_s=now_s, words=words)
    return _why_stopped(model, own, now_s=now_s, words=words)


def _why_started(
    own: Sequence[Record], *, now_s: float, words: Mapping[str, Any]
) -> tuple[str, str]:
    start = max((i for i, record in enumerate(own) if record.event == "Spawned"), default=0)
    before = _last(own[:start], _DECIDED)
    because, mend = "it was asked for, or is to be preloaded", ""
    if before is not None and before.event == "Died":
        fates = Fates.of(own[own.index(before) :]).describe()
        ago = format_span(now_s - before.at_s)
        because = f"the process before it ended {ago} ago: {death_words(before)}"
        because, mend = "; ".join(w for w in (because, fates) if w), _mend(before, words)
    elif before is not None and before.event == "Stopping":
        because = (
            f"{_ago(f'it had been {stop_words(before)}', before, now_s)}, then asked for again"
        )
        mend = _mend_of_stop(before)
    elif before is not None and before.event == "GaveUp":
        because = "it had given up, and was reset or edited"
    elif before is not None and before.event != "Began":
        because = _ago(before.text, before, now_s)
    return because, mend


def _why_stopped(
    model: str, own: Sequence[Record], *, now_s: float, words: Mapping[str, Any]
) -> tuple[str, str]:
    last = _last(own, _ENDS)
    because, mend = f"nobody has asked for it: nothing is kept of {model}", ""
    if last is None:
        pass
    elif last.event == "Stopping":
        because, mend = _ago(f"it was {stop_words(last)}", last, now_s), _mend_of_stop(last)
    elif last.event == "Died":
        because = f"its process ended {format_span(now_s - last.at_s)} ago: {death_words(last)}"
        mend = _mend(last, words)
    elif last.event == "GaveUp":
        because = _ago(f"it was given up: {last.text.removeprefix('given up: ')}", last, now_s)
    elif last.event == "Spawned":
        because = "kvsup ended without stopping it: it was killed, or the machine went down"
    else:
        because = _ago("nobody has asked for it since kvsup started", last, now_s)
    return because, mend


def _mend(death: Record, words: Mapping[str, Any]) -> str:
    return _MENDS.get(death.facts.get("cause", ""), "").format(**words)


def _mend_of_stop(stop: Record) -> str:
    if stop.facts.get("room_for"):
        return (
            "if both should stay, raise memory or max_loaded_models in kvsup.toml, choose smaller"
            " KV types or num_ctx, or pin the one that matters"
        )
    if stop.facts.get("why") == "idle":
        return "if it should stay, raise keep_alive, or set it to -1"
    return ""


def _ago(text: str, record: Record, now_s: float) -> str:
    return f"{text}, {format_span(now_s - record.at_s)} ago"


def _last(records: Sequence[Record], events: "frozenset[str] | set[str]") -> Record | None:
    return next((record for record in reversed(records) if record.event in events), None)


def lately(own: Iterable[Record], *, now_s: float) -> str:
    """Return the last day of one model in numbers; empty where it brought nothing."""
    recent = [r for r in own if r.model is not None and now_s - r.at_s <= DAY_S]
    deaths = Counter(death_words(r) for r in recent if r.event == "Died")
    evictions = Counter(
        room_for for r in recent if r.event == "Stopping" and (room_for := r.facts.get("room_for"))
    )
    n_starts = sum(r.event == "Spawned" for r in recent)
    n_hangs = sum(r.event == "Hung" and bool(r.facts.get("dry_run")) for r in recent)
    parts = [f"started {_times(n_starts)}"] if n_starts else []
    parts += [f"hung and left alone {_times(n_hangs)}"] if n_hangs else []
    parts += [f"{words} {_times(n)}" for words, n in deaths.most_common()]
    parts += [f"evicted {_times(n)} for {other}" for other, n in evictions.most_common()]
    if fates := Fates.of(recent).describe():
        parts.append(fates)
    return ", ".join(parts)


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")
