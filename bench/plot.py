"""A run of the bench as a picture: what each route adds, over the number of streams. Plain SVG."""

import math
from collections.abc import Callable, Iterator, Mapping
from html import escape
from statistics import median

from bench.ratios import costs, numbers_of_streams
from bench.record import FLOOR, PASSED, TRANSLATED, Run
from bench.report import first_tokens

WIDTH, HEIGHT = 920, 380
PANEL_WIDTH, PANEL_HEIGHT = 330, 260
TOP, LEFTS = 50, (60, 500)
COLOURS = ("#2563eb", "#dc2626", "#d97706", "#7c3aed", "#0891b2", "#be185d")
FLOOR_COLOUR, INK, GRID = "#9ca3af", "#1f2937", "#e5e7eb"
_FONT = 'font-family="sans-serif" font-size="12"'

Lines = Mapping[str, Mapping[int, float]]
"""A value at each number of streams, by route."""


def drawn(run: Run) -> str:
    """Return the SVG."""
    numbers = numbers_of_streams(run)
    routes = list(dict.fromkeys([s.route for s in run.streams]))
    colours = _colours(routes)
    spent = {r: {n: median(c) for n in numbers if (c := costs(run, r, n))} for r in routes}
    added = {
        r: {n: median(f.added_ms) for n in numbers if (f := first_tokens(run, r, n))}
        for r in routes
    }
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {_FONT} fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_panel(LEFTS[0], "CPU per token, µs", spent, numbers, colours),
        *_panel(LEFTS[1], "added to the first token, ms, median", added, numbers, colours),
        *_legend(routes, colours),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _colours(routes: list[str]) -> dict[str, str]:
    """Return a colour for each route; kvsup's are the same in every picture."""
    others = [route for route in routes if route not in {FLOOR, PASSED, TRANSLATED}]
    named = [PASSED, TRANSLATED, *others]
    return {FLOOR: FLOOR_COLOUR} | {
        route: COLOURS[place % len(COLOURS)] for place, route in enumerate(named)
    }


def _panel(
    left: float, title: str, lines: Lines, numbers: list[int], colours: Mapping[str, str]
) -> Iterator[str]:
    """Yield one diagram: a line a route on logarithmic axes."""
    values = [value for line in lines.values() for value in line.values() if value > 0]
    yield f'<text x="{left}" y="{TOP - 18}" font-weight="bold">{escape(title)}</text>'
    if not values:
        yield f'<text x="{left}" y="{TOP + 20}">not measured</text>'
        return
    ticks = _ticks(min(values), max(values))
    down = _scale(ticks[-1], ticks[0], TOP, TOP + PANEL_HEIGHT)
    across = _scale(numbers[0], numbers[-1], left + 20, left + PANEL_WIDTH - 20)
    for tick in ticks:
        yield f'<path d="M{left} {down(tick):.1f}H{left + PANEL_WIDTH}" stroke="{GRID}"/>'
        yield f'<text x="{left - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for n in numbers:
        place = f'x="{across(n):.1f}" y="{TOP + PANEL_HEIGHT + 18}" text-anchor="middle"'
        yield f"<text {place}>{n}</text>"
    middle = f'x="{left + PANEL_WIDTH / 2}" y="{TOP + PANEL_HEIGHT + 36}" text-anchor="middle"'
    yield f"<text {middle}>streams</text>"
    for route, line in lines.items():
        spots = [(across(n), down(value)) for n, value in line.items() if value > 0]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        yield f'<path d="M{path}" fill="none" stroke="{colours[route]}" stroke-width="2"/>'
        for x, y in spots:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colours[route]}"/>'


def _scale(least: float, most: float, first: float, last: float) -> Callable[[float], float]:
    """Return where a value lies between two places, by its logarithm."""
    width = math.log(most / least) or 1.0

    def place(value: float) -> float:
        return first + (last - first) * math.log(value / least) / width

    return place


def _ticks(least: float, most: float) -> list[float]:
    """Return round numbers, 1, 2 or 5 with noughts, from below ``least`` to above ``most``."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    steps = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    first = max((step for step in steps if step <= least), default=steps[0])
    last = min((step for step in steps if step >= most), default=steps[-1])
    return [step for step in steps if first <= step <= max(last, 2 * first)]


def _legend(routes: list[str], colours: Mapping[str, str]) -> Iterator[str]:
    x = float(LEFTS[0])
    for route in routes:
        name = route.replace("`", "")
        place = f'x="{x:.0f}" y="{HEIGHT - 18}" width="12" height="12"'
        yield f'<rect {place} fill="{colours[route]}"/>'
        yield f'<text x="{x + 17:.0f}" y="{HEIGHT - 8}">{escape(name)}</text>'
        x += 40 + 7 * len(name)
