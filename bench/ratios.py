"""What of a run can be compared with a run on another day: ratios, each with its spread.

A time says as much of the machine as of kvsup; a ratio of two that were measured together does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from bench.record import FLOOR, PASSED, TRANSLATED, Run, Streamed
from bench.spread import Spread, ratios, spread

OURS = (PASSED, TRANSLATED)
FEW_STREAMS, MANY_STREAMS = 16, 256
"""Both at the same total rate."""


@dataclass(frozen=True)
class Ratio:
    """One ratio, as it was in one run."""

    name: str
    spread: Spread
    higher_is_better: bool = False


def every_ratio(run: Run) -> dict[str, Ratio]:
    """Return what ``run`` has, by name."""
    return {ratio.name: ratio for ratio in _every(run)}


def costs(run: Run, route: str, n_streams: int) -> list[float]:
    """Return CPU microseconds per token, round by round; empty where they were not measured."""
    found = streamed(run, route, n_streams)
    return [reading.us_per_token for reading in found.readings] if found else []


def streamed(run: Run, route: str, n_streams: int) -> Streamed | None:
    """Return what was measured of a route at a number of streams."""
    there = (s for s in run.streams if (s.route, s.n_streams) == (route, n_streams))
    return next(there, None)


def numbers_of_streams(run: Run) -> list[int]:
    """Return each number of streams of ``run``, the least first."""
    return sorted({s.n_streams for s in run.streams} | {f.n_streams for f in run.first_tokens})


def over(run: Run, route: str, other: str, n_streams: int) -> list[float]:
    """Return the cost of a token on one route over that on another, round by round."""
    return ratios(costs(run, route, n_streams), costs(run, other, n_streams))


def many_over_few(run: Run, route: str) -> list[float]:
    """Return what a token costs at 256 streams over what it costs at 16, round by round."""
    return ratios(costs(run, route, MANY_STREAMS), costs(run, route, FEW_STREAMS))


def _every(run: Run) -> Iterator[Ratio]:
    for n in numbers_of_streams(run):
        for route in OURS:
            yield from _ratio(
                f"CPU per token, {route} over the byte copy, {n} streams",
                over(run, route, FLOOR, n),
            )
        yield from _ratio(
            f"CPU per token, {TRANSLATED} over {PASSED}, {n} streams",
            over(run, TRANSLATED, PASSED, n),
        )
    for route in OURS:
        name = f"CPU per token, {route}, {MANY_STREAMS} streams over {FEW_STREAMS}"
        yield from _ratio(name, many_over_few(run, route))
    for first in run.first_tokens:
        if first.route in OURS:
            yield from _ratio(
                f"first token, {first.route} over straight, {first.n_streams} streams",
                ratios(first.through_ms, first.straight_ms),
            )
    through, by_hand = (run.load_s.get(name, []) for name in ("through kvsup", "by hand"))
    yield from _ratio("cold load, through kvsup over by hand", ratios(through, by_hand))
    for swapped in run.swaps:
        again_s = median(swapped.again_s)
        yield from _ratio(
            f"swap of {swapped.pair}, read again over taken up",
            [again_s / kept_s for kept_s in swapped.kept_s],
            higher_is_better=True,
        )
    for held in run.held:
        first_mb, *_, last_mb = held.resident_mb
        yield from _ratio(f"resident MB, {held.route}, after over before", [last_mb / first_mb])


def _ratio(name: str, found: list[float], *, higher_is_better: bool = False) -> Iterator[Ratio]:
    if found:
        yield Ratio(name, spread(found), higher_is_better)
