"""What single settings cost a cold load: ``--fit``, the warm-up, how often ``/health`` is asked.

    python -m bench.loadflags [--rounds 15] [--llama-server PATH]

The same llama-server by hand as in ``bench.load``, the file in the page cache, turn by turn: the
command line of kvsup with one setting changed. From the spawn to the first byte of an answer.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.load import MODEL_TOML, by_hand
from bench.table import print_table
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.configdir import read_configuration
from kvsup.runtime.paths import cache_dir

QUICK_S, SLOW_S = 0.002, 0.015
"""How often ``/health`` is asked: as close as it gets, and as kvsup does without events."""

SETTINGS: dict[str, tuple[dict[str, str], tuple[str, ...], float]] = {
    "as kvsup has it": ({}, (), QUICK_S),
    "--fit on": ({"--fit": "on"}, (), QUICK_S),
    "--no-warmup": ({}, ("--no-warmup",), QUICK_S),
    "/health every 15 ms": ({}, (), SLOW_S),
}
"""What is changed: values of flags, flags added, and the interval."""


def changed(argv: Sequence[str], values: Mapping[str, str], added: Sequence[str]) -> list[str]:
    """Return ``argv`` with other values of its flags, and with more flags."""
    argv = [*argv, *added]
    for flag, value in values.items():
        argv[argv.index(flag) + 1] = value
    return argv


def milliseconds(seconds: float) -> str:
    """Return a duration for a table."""
    return f"{seconds * 1e3:.1f}"


def span_ms(seconds: Sequence[float]) -> str:
    """Return the least and the greatest, for a table."""
    return f"{milliseconds(min(seconds))} to {milliseconds(max(seconds))}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--llama-server", default=default_binary(cache_dir()))
    given = parser.parse_args()
    ready: dict[str, list[float]] = {name: [] for name in SETTINGS}
    first: dict[str, list[float]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kvsup.toml").write_text(
            f'llama_server = "{given.llama_server}"\nstate_dir = "{folder}/state"\n'
        )
        (folder / "demo.toml").write_text(MODEL_TOML)
        (plan,) = read_configuration(folder, {}).plans
        for number in range(given.rounds + 1):
            for setting, (values, added, poll_s) in SETTINGS.items():
                times = by_hand(plan, argv=changed(plan.argv, values, added), poll_s=poll_s)
                if number:  # the first round fills the page cache
                    ready[setting].append(times[0])
                    first[setting].append(times[1])
    base = first["as kvsup has it"]
    print_table(
        (f"cold load, {plan.binary.label}", "ready, ms", "first byte, ms", "more, ms", "range"),
        (
            (
                setting,
                milliseconds(statistics.median(ready[setting])),
                milliseconds(statistics.median(times)),
                milliseconds(statistics.median(more)),
                span_ms(more),
            )
            for setting, times in first.items()
            for more in [[b - a for a, b in zip(base, times, strict=True)]]
        ),
    )


if __name__ == "__main__":
    main()
