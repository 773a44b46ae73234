"""What it saves that the next model's file is read while it waits for its place.

    python -m bench.readahead [--rounds 5] [MODEL.gguf]

One model at a time. The first streams; the second is asked for meanwhile, its file out of the page
cache. Measured is the time from the end of the first answer to the first byte of the second: once
as it is, and once, for comparison, with the file thrown out of the cache until then.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx

from bench.table import print_table
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.paths import cache_dir
from tests.running import RunningKvsup

_TOML = 'model = "{path}"\nthreads = 1\nnum_ctx = 512\nkeep_alive = "1h"\nwarm_swap = false\n'
_DROP_EVERY_S = 0.005


def drop(path: Path) -> None:
    """Throw a file out of the page cache; what a process has mapped stays."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def swap_s(kvsup: RunningKvsup, file: Path, *, is_kept_cold: bool) -> float:
    """Return the seconds from the end of the first model's answer to the second's first byte."""
    _ask(kvsup, "first", 1)
    drop(file)
    has_begun, is_over = threading.Event(), threading.Event()
    ended_s: list[float] = []

    def hold() -> None:
        _ask(kvsup, "first", 300, has_begun)
        ended_s.append(time.monotonic())
        is_over.set()

    def keep_cold() -> None:
        while not is_over.wait(_DROP_EVERY_S):
            drop(file)

    threads = [threading.Thread(target=hold)]
    if is_kept_cold:
        threads.append(threading.Thread(target=keep_cold))
    for thread in threads:
        thread.start()
    has_begun.wait()
    first_byte_s = _ask(kvsup, "second", 1)
    for thread in threads:
        thread.join()
    return first_byte_s - ended_s[0]


def _ask(
    kvsup: RunningKvsup, model: str, n_tokens: int, has_begun: threading.Event | None = None
) -> float:
    """Return the time of the first byte of an answer, which is read to its end."""
    options = {"num_predict": n_tokens}
    body = {"model": model, "prompt": "Once", "raw": True, "options": options}
    with httpx.stream("POST", f"{kvsup.url}/api/generate", json=body, timeout=600) as answer:
        lines = answer.iter_lines()
        next(lines)
        first_byte_s = time.monotonic()
        if has_begun is not None:
            has_begun.set()
        for _ in lines:
            pass
    return first_byte_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "model", nargs="?", default=cache_dir() / "models" / "gemma-3-270m-q4_k_m.gguf"
    )
    given = parser.parse_args()
    first = cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    found: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "second.gguf"
        shutil.copy(given.model, file)
        os.sync()
        models = {"first": _TOML.format(path=first), "second": _TOML.format(path=file)}
        server = Path(default_binary(cache_dir()) or "llama-server")
        host = "max_loaded_models = 1\n"
        with RunningKvsup(
            Path(folder) / "kvsup", models=models, llama_server=server, host=host
        ) as kvsup:
            for _ in range(given.rounds):
                for is_kept_cold, times in found.items():
                    times.append(swap_s(kvsup, file, is_kept_cold=is_kept_cold))
        size_mb = file.stat().st_size / 1e6
    print_table(
        (f"swap to a file of {size_mb:.0f} MB, cold", "median ms", "range ms"),
        (
            (
                "not read ahead" if is_kept_cold else "read ahead",
                f"{statistics.median(times) * 1e3:.0f}",
                f"{min(times) * 1e3:.0f} to {max(times) * 1e3:.0f}",
            )
            for is_kept_cold, times in found.items()
        ),
    )


if __name__ == "__main__":
    main()
