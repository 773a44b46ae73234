"""CPU per streamed token of kvsup, against a byte copy with the same upstream in the same run."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import psutil

from bench.stream_client import Load, Reading
from bench.table import print_table
from kvsup.runtime.configdir import read_configuration
from kvsup.runtime.paths import cache_dir
from tests.running import RunningKvsup

PACES = {1: 200.0, 16: 200.0, 64: 50.0}
"""Tokens per second of each stream, by the number of streams: 3,200 at most in all, so that neither
a proxy nor the source comes near the limit of its core."""

ROUTES = {"byte copy": "/v1/chat/completions", "/v1": "/v1/chat/completions", "/api": "/api/chat"}
DEMO_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"

MODEL_TOML = """\
model = "{model}"
llama_server = "{source}"
num_ctx = {num_ctx}
num_parallel = {n_streams}
keep_alive = -1
preload = true
env = {{ TOKENS_PER_S = "{tokens_per_s}" }}
"""

Readings = dict[tuple[int, str], list[Reading]]


@contextmanager
def supervised(
    folder: Path, paces: dict[int, float], *, num_ctx: int = 2048
) -> Iterator[RunningKvsup]:
    """Yield a kvsup that supervises one token source for each number of streams."""
    source = folder / "llama-server"
    script = Path(__file__).with_name("token_source.py")
    source.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    source.chmod(0o755)
    model = cache_dir() / "models" / DEMO_MODEL
    models = {
        f"streams{n}": MODEL_TOML.format(
            model=model, source=source, num_ctx=num_ctx, n_streams=n, tokens_per_s=tokens_per_s
        )
        for n, tokens_per_s in paces.items()
    }
    with RunningKvsup(
        folder, models=models, llama_server=source, host='memory = "64GiB"'
    ) as running:
        yield running


@contextmanager
def byte_copy(socket: str) -> Iterator[tuple[int, int]]:
    """Yield port and pid of a byte copy to ``socket``."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.bytecopy", socket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
        assert process.stdin is not None
        process.stdin.close()


def measure(load: Load) -> Reading:
    """Return what ``load`` costs, by a client in a process of its own."""
    argument = msgspec.json.encode(load).decode()
    done = subprocess.run(
        [sys.executable, "-m", "bench.stream_client", argument],
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    return msgspec.json.decode(done.stdout, type=Reading)


def run(*, n_rounds: int, window_s: float) -> tuple[Readings, float]:
    """Return the readings of every route at every number of streams, and kvsup's MB afterwards."""
    readings: Readings = {(n, route): [] for n in PACES for route in ROUTES}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        kvsup = stack.enter_context(supervised(Path(folder), PACES))
        servers = {}
        for plan in read_configuration(kvsup.configs, {}).plans:
            servers[plan.name, "byte copy"] = stack.enter_context(byte_copy(plan.socket))
            at_kvsup = int(kvsup.url.rsplit(":", 1)[1]), kvsup.process.pid
            servers |= {(plan.name, "/v1"): at_kvsup, (plan.name, "/api"): at_kvsup}
        for number in range(n_rounds + 1):
            for (n, route), found in readings.items():
                name, pace = f"streams{n}", PACES[n]
                port, pid = servers[name, route]
                reading = measure(Load(port, ROUTES[route], name, n, pace, window_s, pid))
                if number:  # the first round warms up
                    found.append(reading)
                    print(f"{n} {route}: {reading}", file=sys.stderr)
        resident_mb = psutil.Process(kvsup.process.pid).memory_info().rss / 1e6
    return readings, resident_mb


def rows(readings: Readings) -> Iterator[tuple[str, ...]]:
    """Yield a row for each route and number of streams; ratios are taken within a round."""
    for (n, route), found in readings.items():
        costs = [reading.us_per_token for reading in found]
        floors = [reading.us_per_token for reading in readings[n, "byte copy"]]
        ratios = [cost / floor for cost, floor in zip(costs, floors, strict=True)]
        yield (
            f"{n} x {PACES[n]:.0f}/s",
            route,
            f"{statistics.median(costs):.1f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{min(costs) / min(floors):.2f}",
            f"{statistics.median(r.ms_per_request for r in found):.2f}" if n > 1 else "",
            f"{statistics.median(r.core_share for r in found):.1%}",
        )


def translation_rows(readings: Readings) -> Iterator[tuple[str, ...]]:
    """Yield what ``/api`` costs over ``/v1``, for each number of streams."""
    for n, pace in PACES.items():
        passed = [reading.us_per_token for reading in readings[n, "/v1"]]
        translated = [reading.us_per_token for reading in readings[n, "/api"]]
        ratios = [cost / floor for cost, floor in zip(translated, passed, strict=True)]
        yield (
            f"{n} x {pace:.0f}/s",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{min(translated) / min(passed):.2f}",
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--window", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every reading there")
    given = parser.parse_args()
    readings, resident_mb = run(n_rounds=given.rounds, window_s=given.window)
    if given.json:
        plain = [[n, r, msgspec.to_builtins(found)] for (n, r), found in readings.items()]
        given.json.write_text(json.dumps(plain))
    head = (
        "streams", "route", "CPU µs/token", "ratio", "range", "of the least", "CPU ms/request",
        "of one core",
    )  # fmt: skip
    print_table(head, rows(readings))
    print()
    print_table(
        ("/api over /v1", "ratio", "range", "of the least"),
        translation_rows(readings),
    )
    print(f"\nkvsup after all this: {resident_mb:.0f} MB resident")


if __name__ == "__main__":
    main()
