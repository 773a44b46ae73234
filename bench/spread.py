"""The statistics of the bench: medians, percentiles, how far readings lie apart."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which ``part`` of ``values`` lie, interpolated."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return reading over reading, round by round; a round that one of them lacks is left out."""
    return [a / b for a, b in zip(over, under, strict=False)]


@dataclass(frozen=True)
class Spread:
    """The middle of some readings and how far they lie apart."""

    median: float
    low: float
    """The lower quartile."""
    high: float
    n: int

    @property
    def width(self) -> float:
        """Return how far the quartiles lie apart, as a part of the median."""
        return (self.high - self.low) / self.median


def spread(values: Sequence[float]) -> Spread:
    """Return the median of ``values`` and their quartiles."""
    return Spread(
        statistics.median(values), quantile(values, 0.25), quantile(values, 0.75), len(values)
    )
