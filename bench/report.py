"""A run of the bench in Markdown: one block for each part, and all of them as a report."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median

from bench.ratios import costs, many_over_few, numbers_of_streams, over
from bench.record import FLOOR, PASSED, STRAIGHT, TRANSLATED, FirstTokens, Held, Run, Swapped
from bench.spread import quantile
from bench.table import table

NOT_MEASURED = "Not measured in this run."
AIMS = {
    f"CPU per token of {PASSED} within 1.5 times the byte copy": (PASSED, FLOOR, 1.5),
    f"CPU per token of {TRANSLATED} within 2.0 times the byte copy": (TRANSLATED, FLOOR, 2.0),
    f"CPU per token of {TRANSLATED} within 1.35 times {PASSED}": (TRANSLATED, PASSED, 1.35),
}
MANY_AIM = 1.1
FIRST_AIM_MS = 1.0


def summary(run: Run) -> str:
    """Return what each route adds, one line a route: the README's table."""
    numbers = numbers_of_streams(run)
    if not numbers:
        return NOT_MEASURED
    head = (
        "through",
        *(f"first token, {_streams(n)}" for n in numbers),
        *(f"CPU, {_streams(n)}" for n in numbers),
    )
    rows = [(STRAIGHT, *["0"] * len(numbers), *[""] * len(numbers))]
    for route in _routes(run):
        adds = [_added(first_tokens(run, route, n)) for n in numbers]
        rows.append((_titled(route), *adds, *(_cost(costs(run, route, n)) for n in numbers)))
    blank = [""] * (2 * len(numbers) - 1)
    rows += [(p.route, p.absent, *blank) for p in run.peers if p.absent]
    return table(head, rows)


def facts(run: Run) -> str:
    """Return the rest of what the README tells: swaps, lost requests, memory."""
    rows = []
    for swapped in run.swaps:
        what = f"next token of a conversation of {swapped.n_tokens:,} tokens after a swap"
        kept, again = median(swapped.kept_s) * 1e3, median(swapped.again_s)
        seen = f"{kept:.0f} ms; read again: {again:.1f} s, {_times(swapped):.0f} times"
        rows.append((f"{what}, `{swapped.pair}`", seen))
    added_s = _added_load_s(run)
    if added_s:
        rows.append(("added to a cold load", f"{median(added_s) * 1e3:.1f} ms"))
    if run.soak:
        n_asked = run.soak.n_lost + run.soak.n_whole
        what = f"requests lost in {_minutes(run.soak.seconds)}, llama-servers killed or stopped"
        seen = f"{run.soak.n_lost} of {n_asked}, after {run.soak.n_signals} signals"
        rows.append((what, seen))
    rows += [
        (
            f"resident MB before and after {held.n_tokens:,} tokens on {held.route}",
            f"{held.resident_mb[0]:.1f}, {held.resident_mb[-1]:.1f}",
        )
        for held in run.held
    ]
    return table(("", "measured"), rows) if rows else NOT_MEASURED


def machine(run: Run) -> str:
    """Return what it was measured on and beside, as a list."""
    names = dict(run.machine)
    for peer in run.peers:
        names[peer.route] = peer.absent or peer.version
        if peer.fault:
            names[peer.route] += f"; not measured everywhere ({peer.fault})"
    return "\n".join(f"- {name}: {fact}" for name, fact in names.items()) or NOT_MEASURED


def first_token_table(run: Run) -> str:
    """Return the times to the first token, each route beside the source itself."""
    rows = [
        (
            _streams(first.n_streams),
            first.route,
            _two(first.straight_ms),
            _two(first.through_ms),
            _two(first.added_ms),
            str(len(first.added_ms)),
        )
        for first in sorted(run.first_tokens, key=lambda f: f.n_streams)
    ]
    head = ("beside", "route", "straight, ms", "through, ms", "added, ms", "pairs")
    return table(head, rows) if rows else NOT_MEASURED


def streams_table(run: Run) -> str:
    """Return a row for each route and number of streams; ratios are taken within a round."""
    rows = []
    for s in sorted(run.streams, key=lambda s: s.n_streams):
        taken = over(run, s.route, FLOOR, s.n_streams)
        spent = [reading.us_per_token for reading in s.readings]
        floor = costs(run, FLOOR, s.n_streams)[: len(spent)]
        rows.append(
            (
                f"{s.n_streams} x {s.tokens_per_s:g}/s",
                s.route,
                f"{median(spent):.1f}",
                *_middle(taken),
                f"{min(spent) / min(floor):.2f}" if floor else "",
                f"{median(r.ms_per_request for r in s.readings):.2f}" if s.n_streams > 1 else "",
                f"{median(r.core_share for r in s.readings):.1%}",
                str(len(spent)),
            )
        )
    head = (
        "streams", "route", "CPU µs/token", "ratio", "range", "of the least", "CPU ms/request",
        "of one core", "rounds",
    )  # fmt: skip
    return table(head, rows) if rows else NOT_MEASURED


def translation_table(run: Run) -> str:
    """Return what ``/api`` costs over ``/v1``, and 256 streams over 16."""
    rows = [
        (f"{TRANSLATED} over {PASSED}, {_streams(n)}", *_middle(taken))
        for n in numbers_of_streams(run)
        if (taken := over(run, TRANSLATED, PASSED, n))
    ]
    rows += [
        (f"{_titled(route)}, 256 streams over 16", *_middle(taken))
        for route in _routes(run)
        if (taken := many_over_few(run, route))
    ]
    return table(("CPU per token", "ratio", "range"), rows) if rows else NOT_MEASURED


def aims_table(run: Run) -> str:
    """Return the aims and what this run says of them."""
    numbers = [n for n in numbers_of_streams(run) if n > 1]
    rows = [
        (aim, "; ".join(f"{median(taken):.2f} ({n})" for n, taken in found), _met(found, most))
        for aim, (route, other, most) in AIMS.items()
        if (found := [(n, t) for n in numbers if (t := over(run, route, other, n))])
    ]
    for route in (PASSED, TRANSLATED):
        if many := many_over_few(run, route):
            aim = f"CPU per token of {route} at 256 streams within 1.1 times that at 16"
            rows.append((aim, f"{median(many):.2f}", _met([(256, many)], MANY_AIM)))
        added = [
            (f.n_streams, f.added_ms)
            for f in sorted(run.first_tokens, key=lambda f: f.n_streams)
            if f.route == route
        ]
        if added:
            aim = f"first token through {route} within 1 ms more, at the median"
            said = "; ".join(f"{median(found):.2f} ms ({n})" for n, found in added)
            rows.append((aim, said, _met(added, FIRST_AIM_MS)))
    head = ("aim", "measured (streams)", "met")
    return table(head, rows) if rows else NOT_MEASURED


def load_table(run: Run) -> str:
    """Return the cold load beside one by hand."""
    rows = {**run.load_s, "added by kvsup": _added_load_s(run)}
    head = (f"cold load, {run.load_build}", "median ms", "range ms")
    return table(head, _spans(rows, 1e3, 1)) if run.load_s else NOT_MEASURED


def start_table(run: Run) -> str:
    """Return how long kvsup takes to start, and what it holds."""
    head = ("start", "median", "range")
    return table(head, _spans(run.start, 1, 0)) if run.start else NOT_MEASURED


def swap_table(run: Run) -> str:
    """Return a swap by phase, and its conversation read again."""
    phases = list(dict.fromkeys(phase for s in run.swaps for phase in s.phases_ms))
    rows = [
        (
            s.pair,
            f"{s.n_tokens:,}",
            f"{s.n_bytes / 1e6:.1f}",
            *(f"{median(found):.0f}" if (found := s.phases_ms.get(p)) else "" for p in phases),
            f"{median(s.kept_s):.3f}",
            f"{median(s.again_s):.2f}",
            f"{_times(s):.0f}",
        )
        for s in run.swaps
    ]
    head = (
        "KV pair", "tokens", "MB", *(f"{p}, ms" for p in phases), "taken up, s", "read again, s",
        "ratio",
    )  # fmt: skip
    return table(head, rows) if rows else NOT_MEASURED


def soak_table(run: Run) -> str:
    """Return what became of requests whose llama-servers were killed."""
    if not run.soak:
        return NOT_MEASURED
    soak = run.soak
    rows = [
        ("SIGKILL and SIGSTOP sent", str(soak.n_signals)),
        ("whole answers", str(soak.n_whole)),
        ("lost, hung or truncated", str(soak.n_lost)),
        ("longest answer, s", f"{soak.longest_s:.1f}"),
    ]
    return table((f"soak of {_minutes(soak.seconds)}", "seen"), rows)


def memory_table(run: Run) -> str:
    """Return kvsup's memory while many tokens pass."""
    if not run.held:
        return NOT_MEASURED
    n_tokens, n_parts = run.held[0].n_tokens, len(run.held[0].resident_mb) - 2
    parts = [f"{n_tokens * part // n_parts:,}" for part in range(1, n_parts + 1)]
    return table(("MB resident", "before", *parts, "after"), map(_held_row, run.held))


BLOCKS: Mapping[str, Callable[[Run], str]] = {
    "machine": machine,
    "summary": summary,
    "facts": facts,
    "aims": aims_table,
    "first-token": first_token_table,
    "streams": streams_table,
    "over": translation_table,
    "swap": swap_table,
    "load": load_table,
    "start": start_table,
    "soak": soak_table,
    "memory": memory_table,
}
"""By the name that a marker in a document has."""


def whole(run: Run) -> str:
    """Return every block, one below the other, and how long it all took."""
    minutes = sum(run.took_s.values()) / 60
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.took_s.items())
    blocks = "\n\n".join(block(run) for block in BLOCKS.values())
    failures = "".join(f"\n\nFAILED: {part}: {why}" for part, why in run.failed.items())
    return f"{blocks}\n\nIt took {minutes:.1f} minutes: {parts}.{failures}"


def first_tokens(run: Run, route: str, n_streams: int) -> FirstTokens | None:
    """Return what was timed of a route beside so many streams."""
    there = (f for f in run.first_tokens if (f.route, f.n_streams) == (route, n_streams))
    return next(there, None)


def _routes(run: Run) -> list[str]:
    """Return every route of a run, in the order in which they were measured."""
    return list(dict.fromkeys([f.route for f in run.first_tokens] + [s.route for s in run.streams]))


def _titled(route: str) -> str:
    return f"{route}, the floor" if route == FLOOR else route


def _streams(n: int) -> str:
    return "1 stream" if n == 1 else f"{n} streams"


def _two(values: list[float]) -> str:
    """Return the median and the 99th percentile."""
    return f"{median(values):.2f} / {quantile(values, 0.99):.2f}"


def _added(first: FirstTokens | None) -> str:
    return f"{_two(first.added_ms)} ms" if first else ""


def _cost(spent: list[float]) -> str:
    return f"{median(spent):.1f} µs" if spent else ""


def _middle(taken: list[float]) -> tuple[str, str]:
    if not taken:
        return "", ""
    return f"{median(taken):.2f}", f"{min(taken):.2f} to {max(taken):.2f}"


def _met(found: Iterable[tuple[int, list[float]]], most: float) -> str:
    return "yes" if all(median(values) <= most for _, values in found) else "no"


def _times(swapped: Swapped) -> float:
    return median(swapped.again_s) / median(swapped.kept_s)


def _added_load_s(run: Run) -> list[float]:
    both = (run.load_s.get(name, []) for name in ("by hand", "through kvsup"))
    return [ours - by_hand for by_hand, ours in zip(*both, strict=True)]


def _spans(
    rows: Mapping[str, list[float]], factor: float, digits: int
) -> Iterator[tuple[str, str, str]]:
    for name, found in rows.items():
        low, middle, high = (
            f"{value * factor:.{digits}f}" for value in (min(found), median(found), max(found))
        )
        yield name, middle, f"{low} to {high}"


def _held_row(held: Held) -> tuple[str, ...]:
    return (held.route, *(f"{mb:.1f}" for mb in held.resident_mb))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
