"""Draw a study: loss against bytes, speed as colour; into a file, or into the terminal."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kvsup.errors import ConfigError, KvsupError
from kvsup.kvtypes import F16
from kvsup.measures import PairMeasurement
from kvsup.pareto import deep_speed, loss_nats, size_bytes
from kvsup.tuning.report import StudyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")

_MIB = 1 << 20
_LEAST_NATS = 1e-6
_FLOOR_PART = 0.3
"""f16:f16's loss of next to nothing is drawn at this part of the smallest other one."""
_INCHES = (8.0, 5.0)
_DPI = 150
_TERMINAL_CELLS = (100, 28)


def points(result: StudyResult) -> list[PairMeasurement]:
    """Return what is drawn: every pair that was measured, by bytes."""
    return sorted((m for m in result.pairs if m.quality is not None), key=size_bytes)


def check(path: Path) -> None:
    """Refuse what could not be written after minutes of measuring.

    Raises:
        ConfigError: ``path`` is neither PNG nor SVG, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: plots are written as {' or '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib: pip install 'kvsup[plot]'")


def heights(measured: Sequence[PairMeasurement]) -> list[float]:
    """Return the losses as they are drawn: a logarithmic axis has no place for next to none."""
    others = [loss_nats(m) for m in measured if m.pair != str(F16)]
    least = max(_LEAST_NATS, _FLOOR_PART * min(others, default=_LEAST_NATS))
    return [max(loss_nats(m), least) for m in measured]


def save(result: StudyResult, path: Path) -> None:
    """Write the plot as PNG or SVG, as the name of ``path`` ends.

    Raises:
        KvsupError: it cannot be written.
    """
    try:
        drawn(result).savefig(path, dpi=_DPI)
    except OSError as error:
        raise KvsupError(f"{path} cannot be written: {error}") from error


def drawn(result: StudyResult) -> "Figure":
    """Return the plot; matplotlib must be there."""
    # An extra; and without pyplot there is no window.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    measured = points(result)
    across = [size_bytes(m) / _MIB for m in measured]
    up = heights(measured)
    speeds = [_speed(m) for m in measured]
    dots = axes.scatter(across, up, c=speeds, cmap="viridis", s=60, zorder=3)
    on_front = [
        (x, y) for m, x, y in zip(measured, across, up, strict=True) if m.pair in result.front
    ]
    if on_front:
        axes.plot(*zip(*on_front, strict=True), color="0.6", linewidth=1, zorder=2)
    for place, (m, x, y) in enumerate(zip(measured, across, up, strict=True)):
        axes.annotate(
            m.pair,
            (x, y),
            xytext=(5, 5 if place % 2 else -11),  # neighbours' names are kept apart
            textcoords="offset points",
            fontsize=8,
            weight="bold" if m.pair == result.pick else "normal",
        )
    axes.set_yscale("log")
    axes.set_xlabel(f"K and V at {_context(result)}, MiB")
    axes.set_ylabel("mean KL divergence from f16:f16, nats (itself: not to scale)")
    axes.set_title(f"{result.model}: KV cache types ({result.environment.build})")
    axes.grid(visible=True, which="major", color="0.9", zorder=0)
    if any(speeds):
        figure.colorbar(dots, label=f"generation{_depth(measured)}, tokens/s")
    return figure


def show(result: StudyResult) -> str:
    """Return the plot as text for a terminal, without colour; empty where nothing was measured."""
    measured = points(result)
    if not measured:
        return ""
    import plotext  # noqa: PLC0415 - only who looks at a plot in a terminal waits for it

    figure = plotext.figure
    figure.clear()
    figure.plot_size(*_TERMINAL_CELLS)
    figure.title(f"{result.model}: mean KLD (nats) against K and V (MiB, {_context(result)})")
    figure.ruler("y").scale("log")
    spots = {
        m.pair: (size_bytes(m) / _MIB, y) for m, y in zip(measured, heights(measured), strict=True)
    }
    line = [spot for name, spot in spots.items() if name in result.front]
    figure.ruler("x").lim(0, 1.2 * max(x for x, _ in spots.values()))  # room for the last name
    front = figure.signal([x for x, _ in line], [y for _, y in line], marker="braille")
    front.lines()
    figure.draw(front)
    for name, (x, y) in spots.items():
        mark = "*" if name == result.pick else "o"
        figure.draw(figure.text(x, y, f"{mark} {name}"))
    return str(figure.build().string(colorless=True))


def _speed(measurement: PairMeasurement) -> float:
    speed = deep_speed(measurement)
    return speed.generation_tokens_per_s if speed else 0.0


def _depth(measured: list[PairMeasurement]) -> str:
    deepest = max((s.depth_tokens for m in measured for s in m.speeds), default=0)
    return f" behind {deepest} tokens" if deepest else ""


def _context(result: StudyResult) -> str:
    environment = result.environment
    return f"{environment.num_parallel} x {environment.num_ctx} tokens"
