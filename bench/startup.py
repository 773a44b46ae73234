"""How long ``kvsup`` takes to answer ``--help``, to estimate, to listen; what it holds at rest."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.load import MODEL_TOML
from bench.record import Run
from bench.report import start_table
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.paths import cache_dir
from tests.running import RunningKvsup


def run_ms(*arguments: str) -> float:
    """Return the milliseconds that Python takes on ``arguments``."""
    started_s = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - started_s) * 1e3


def at_rest(folder: Path) -> tuple[float, float]:
    """Return the milliseconds until ``kvsup run`` listens, and its resident MB then.

    The binary is asked anew, as it is when it has just been installed.
    """
    server = Path(default_binary(cache_dir()) or "llama-server")
    started_s = time.perf_counter()
    with RunningKvsup(folder, models={"demo": MODEL_TOML}, llama_server=server) as kvsup:
        listening_ms = (time.perf_counter() - started_s) * 1e3
        return listening_ms, psutil.Process(kvsup.process.pid).memory_info().rss / 1e6


def measure(n_rounds: int) -> dict[str, list[float]]:
    """Return so many readings of each, by name."""
    run_ms("-m", "kvsup", "--help")  # compiles what has no .pyc yet
    model = cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    estimating = ("-m", "kvsup", "estimate", str(model), "--pairs", "all", "--json")
    run_ms(*estimating)
    bare, helped, estimated, listening, resident = [], [], [], [], []
    for _ in range(n_rounds):
        bare.append(run_ms("-c", "pass"))
        helped.append(run_ms("-m", "kvsup", "--help"))
        estimated.append(run_ms(*estimating))
        with tempfile.TemporaryDirectory() as folder:
            listening_ms, resident_mb = at_rest(Path(folder) / "kvsup")
        listening.append(listening_ms)
        resident.append(resident_mb)
    return {
        "Python alone, ms": bare,
        "kvsup --help, ms": helped,
        "kvsup estimate of 81 pairs, ms": estimated,
        "kvsup run until it listens, ms": listening,
        "kvsup at rest, MB resident": resident,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    print(start_table(Run(start=measure(parser.parse_args().rounds))))


if __name__ == "__main__":
    main()
