"""What happened, kept as records with wall-clock times, and folded into a timeline for a person.

A record holds its event's fields beside the line that describes it. Where an event is of a newer
kvsup, or none that is folded here, that line is what is shown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvsup.eventlines import describe
from kvsup.events import Event
from kvsup.restart import ExitCause, describe_returncode
from kvsup.units import format_span

EPISODE_S = 600.0
"""Deaths of one kind, each within this time of the one before, are told together."""

_REMARKS = frozenset({"SizeDiffers", "TypeLearnt", "KVWarning"})
"""Said again at each load: told once."""

_NEAR = 4
"""Evidence, and what became of requests, is told of a death some steps later."""

_OF_KVSUP = frozenset({"Began", "Ended"})
_CHANGES = {"changed": "its configuration changed", "added": "it was added", "removed": "removed"}


class Record(msgspec.Struct, frozen=True):
    """One event, as one line of JSON."""

    at_s: float
    """Unix time."""
    event: str
    """The name of its type."""
    model: str | None
    """None where it is about kvsup, or about several models."""
    text: str
    """Its line, without the model's name."""
    facts: dict[str, Any] = {}
    """Its other fields."""


class Line(msgspec.Struct, frozen=True):
    """One line of a timeline: what happened, once or several times."""

    at_s: float
    """Unix time of the first."""
    until_s: float
    """Unix time of the last."""
    n_times: int
    text: str
    evidence: str | None = None
    """Path of the newest file that says more."""


def record_of(event: Event, *, at_s: float) -> Record:
    """Return the record of an event that happened at a Unix time."""
    facts = _encodable(msgspec.to_builtins(event))
    model = facts.pop("model", None)
    text = _encodable(describe(event) or repr(event))
    return Record(at_s, type(event).__name__, model, text.removeprefix(f"{model}: "), facts)


def _encodable(value: Any) -> Any:
    """Return a value whose texts are UTF-8: a file's name need not be."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _encodable(member) for key, member in value.items()}
    return [_encodable(member) for member in value] if isinstance(value, list | tuple) else value


def about(model: str, records: Iterable[Record]) -> list[Record]:
    """Return the records that concern ``model``, by time; of a reload only what it did to it."""
    found = []
    for record in sorted(records, key=lambda r: r.at_s):
        if record.model == model or (record.model is None and record.event != "Reloaded"):
            found.append(record)
        elif record.event == "Reloaded":
            what = next((w for w in _CHANGES if model in record.facts.get(w, ())), None)
            if what is not None:
                found.append(msgspec.structs.replace(record, text=_CHANGES[what]))
    return found


def death_words(record: Record) -> str:
    """Return what a process died of, in the words by which deaths are counted together."""
    cause = record.facts.get("cause", "")
    if cause not in ExitCause.__members__:
        return record.text
    code = describe_returncode(record.facts.get("returncode"))
    words = ExitCause[cause].value
    return f"{words} ({code.removeprefix('signal ')})" if code else words


@dataclass(slots=True)
class Fates:
    """What became of the requests whose process died."""

    saved: dict[str, int] = field(default_factory=dict)
    """How many of each ``events.Rescue``."""
    n_lost: int = 0
    n_poisoned: int = 0

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Fates":
        """Return what ``records`` tell of them."""
        fates = cls()
        for record in records:
            fates.note(record)
        return fates

    def note(self, record: Record) -> bool:
        """Count a record and return True if it tells of a request."""
        if record.event == "Replayed":
            how = str(record.facts.get("how", "replayed"))
            self.saved[how] = self.saved.get(how, 0) + 1
        elif record.event == "Lost":
            self.n_lost += 1
        elif record.event == "Poisoned":
            self.n_poisoned += 1
        else:
            return False
        return True

    def describe(self) -> str:
        """Return the counts in words; empty where there was no request."""
        counts = dict(self.saved)
        if self.n_poisoned:
            counts["not tried again (a second process died under it)"] = self.n_poisoned
        if not counts and not self.n_lost:
            return ""
        counts["lost"] = self.n_lost
        (what, n), *others = counts.items()
        rest = (f"{n or 'none'} {what}" for what, n in others)
        return ", ".join([f"{n_of(n, 'request')} {what}", *rest])


@dataclass(slots=True)
class _Step:
    """Something that happened, or happened again, before it becomes a line."""

    key: str
    """Equal for what a person would call the same thing again."""
    text: str
    short: str
    """The text without what differs from time to time."""
    at_s: float
    until_s: float
    n: int = 1
    evidence: str | None = None
    fates: Fates = field(default_factory=Fates)
    is_death: bool = False
    """Its consequences, and its repetitions, are told with it."""
    is_of_a_hang: bool = False
    is_given_up: bool = False
    """It is the whole reason for which its model is not started again."""
    is_up: bool = False
    """A process has served after the last death."""

    def line(self) -> Line:
        """Return it as it is told."""
        return Line(self.at_s, self.until_s, self.n, self.words(), self.evidence)

    def words(self) -> str:
        """Return the text, with how often, and what followed."""
        text = self.text
        if self.n > 1:
            text = f"{self.n} times in {format_span(self.until_s - self.at_s)}: {self.short}"
        if not self.is_death:
            return text
        each = " each time" if self.n > 1 else ""
        again = f"started again{each}" if self.is_up else ""
        given_up = "given up" if self.is_given_up else ""
        words = (text, again, self.fates.describe(), given_up)
        return "; ".join(word for word in words if word)


def timeline(records: Sequence[Record]) -> list[Line]:
    """Return ``records`` of one model (``about``), oldest first, folded into lines.

    A start is told with how long it took; a stop with its reason; deaths of one kind together with
    their restarts and with what became of their requests; what alternates, how often it did.
    """
    return [step.line() for step in _folded(_steps(records))]


def _steps(records: Sequence[Record]) -> list[_Step]:
    steps: list[_Step] = []
    said: set[str] = set()
    is_running = False
    for record in records:
        if record.event in _REMARKS and record.text in said:
            continue
        said.add(record.text)
        if _is_taken_in(steps, record):
            continue
        step = _step(record)
        if record.event == "Began" and is_running:
            step.text += "; the one before did not end in order: killed, or the machine went down"
        if record.event in _OF_KVSUP:
            is_running = record.event == "Began"
        steps.append(step)
    return steps


def _is_taken_in(steps: Sequence[_Step], record: Record) -> bool:
    """Take ``record`` into a step before it, if it only goes on with that."""
    last = steps[-1] if steps else None
    death = next((step for step in reversed(steps[-_NEAR:]) if step.is_death), None)
    if last is not None and record.event == "Ready" and last.key == "start":
        last.text += f", {record.text}"
    elif last is not None and record.event == "Stopped" and last.key.startswith("stop "):
        last.text += f", {record.text.replace('stopped', 'gone', 1)}"
    elif (
        last is not None and record.event == "GaveUp" and last.is_death and last.text in record.text
    ):
        last.is_given_up = True
    elif death is not None and record.event == "Evidence":
        death.evidence = record.facts.get("path", death.evidence)
    elif death is not None and death is last and _is_same_episode(death, record):
        pass
    else:
        return death is not None and death.fates.note(record)
    return True


def _is_same_episode(death: _Step, record: Record) -> bool:
    """Take in what follows a death, while nothing else happens: restarts, and more of the kind."""
    if record.at_s - death.until_s > EPISODE_S:
        return False
    if record.event == "Died":
        if death.key != f"death {death_words(record)}":
            return False
        death.n, death.until_s, death.is_up = death.n + 1, record.at_s, False
    elif record.event == "Ready":
        death.is_up = True
    elif record.event == "Hung":  # told once, before the first of the deaths that follow from it
        return death.is_of_a_hang
    return record.event in {"Died", "Ready", "Spawned", "Restarting"}


def _step(record: Record) -> _Step:
    event, at_s = record.event, record.at_s
    text = " ".join(record.text.split("\n"))
    step = _Step(f"{event} {text}", text, text, at_s, at_s)
    if event == "Spawned":
        step.key, step.text = "start", record.text.replace("starting", "started", 1)
        step.short = "started"
    elif event == "Stopping":
        step.text = step.short = stop_words(record)
        step.key = f"stop {step.text}"
    elif event == "Died":
        step.key, step.is_death = f"death {death_words(record)}", True
        step.short = death_words(record)
        step.is_of_a_hang = record.facts.get("cause") in {"HUNG", "FROZEN"}
        if uptime_s := float(record.facts.get("uptime_s", 0.0)):
            step.text = f"after {format_span(uptime_s)} of service {record.text}"
    elif event in _OF_KVSUP:
        step.key, step.short = event, record.text.partition(" (")[0]
    elif event == "Evidence":
        step.evidence = record.facts.get("path")
    return step


def stop_words(record: Record) -> str:
    """Return why a model was stopped, from its ``Stopping``."""
    room_for = record.facts.get("room_for")
    if room_for:
        return f"evicted to make room for {room_for}"
    why = str(record.facts.get("why") or "").strip()
    return f"stopped: {why}" if why else "stopped"


def _folded(steps: Sequence[_Step]) -> list[_Step]:
    """Tell once what alternates (A B A B) or repeats (A A)."""
    folded: list[_Step] = []
    position = 0
    while position < len(steps):
        n = _repeats(steps, position, period=2)
        if n > 1:
            first, second, last = steps[position], steps[position + 1], steps[position + 2 * n - 1]
            text = f"{first.short}, then {second.short}"
            folded.append(_Step("pair", text, text, first.at_s, last.until_s, n))
            position += 2 * n
            continue
        step = steps[position]
        n = _repeats(steps, position, period=1)
        if n > 1:
            step.n, step.until_s = n, steps[position + n - 1].until_s
        folded.append(step)
        position += n
    return folded


def _repeats(steps: Sequence[_Step], start: int, *, period: int) -> int:
    """Return how often the ``period`` steps at ``start`` follow upon each other."""
    pattern = [step.key for step in steps[start : start + period]]
    if len(set(pattern)) < period or any(step.is_death for step in steps[start : start + period]):
        return 1
    n = 1
    while [s.key for s in steps[start + n * period : start + (n + 1) * period]] == pattern:
        n += 1
    return n


def n_of(n: int, thing: str) -> str:
    """Return ``1 request`` or ``2 requests``."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
