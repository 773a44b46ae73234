"""Whether kvsup got worse since a stored run: ratios are compared, not times.

    bench/check RUN.json [BASE.json]

Ends with 1 and says which ratio got worse. ``BASE.json`` is ``bench/baseline.json`` by default.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.ratios import Ratio, every_ratio
from bench.record import Run, read
from bench.table import print_table

BASELINE = Path(__file__).with_name("baseline.json")
LEAST_TOLERANCE = 0.10
"""Part of a ratio that is never called worse: two calm runs differ as much."""

UNKNOWN_TOLERANCE = 0.30
"""The same for a ratio of so few readings that their spread says nothing."""

FEW = 4


def tolerance(before: Ratio, now: Ratio) -> float:
    """Return by which part of ``before`` the median may be worse.

    That is how far the quartiles of both runs lie apart, together, and at least a tenth.
    """
    widths = before.spread.width + now.spread.width
    least = UNKNOWN_TOLERANCE if min(before.spread.n, now.spread.n) < FEW else LEAST_TOLERANCE
    return max(least, widths)


def worsening(before: Ratio, now: Ratio) -> float:
    """Return by which part of ``before`` the median got worse; negative if it got better."""
    then, today = before.spread.median, now.spread.median
    return then / today - 1 if now.higher_is_better else today / then - 1


def is_worse(before: Ratio, now: Ratio) -> bool:
    """Say whether ``now`` is worse by more than both spreads explain."""
    return worsening(before, now) > tolerance(before, now)


def compared(base: Run, run: Run) -> Iterator[tuple[Ratio, Ratio]]:
    """Yield what both runs have, the stored one first."""
    then, today = every_ratio(base), every_ratio(run)
    for name in then:
        if name in today:
            yield then[name], today[name]


def worse(base: Run, run: Run) -> list[str]:
    """Return a sentence for each ratio that got worse, and for what was lost or failed."""
    found = [
        f"{now.name}: {before.spread.median:.2f} before, {now.spread.median:.2f} now, worse by"
        f" {worsening(before, now):.0%}; {tolerance(before, now):.0%} would pass"
        for before, now in compared(base, run)
        if is_worse(before, now)
    ]
    found += [f"{part}: {why}" for part, why in run.failed.items()]
    if run.soak and run.soak.n_lost:
        found.append(f"soak: {run.soak.n_lost} requests were lost")
    return found


def main() -> None:
    """Print all ratios side by side, and what got worse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("base", type=Path, nargs="?", default=BASELINE)
    given = parser.parse_args()
    sys.exit(report(read(given.base), read(given.run)))


def report(base: Run, run: Run) -> int:
    """Print the comparison; return the exit code, 2 if there is nothing to compare."""
    pairs = list(compared(base, run))
    if not pairs:
        print("The two runs have no ratio in common.")
        return 2
    rows = (
        (
            before.name,
            f"{before.spread.median:.2f}",
            f"{now.spread.median:.2f}",
            f"{worsening(before, now):+.0%}",
            f"{tolerance(before, now):.0%}",
        )
        for before, now in pairs
    )
    print_table(("ratio", "stored", "now", "worse by", "may be"), rows)
    found = worse(base, run)
    print("\n" + ("\n".join(found) or "No ratio got worse."))
    return int(bool(found))


if __name__ == "__main__":
    main()
