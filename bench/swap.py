"""What a swap costs a conversation: its next token where its cache was kept, and where it was not.

    python -m bench.swap [--rounds 3] [--tokens 2600]

The demo model reads a long conversation, is unloaded and loaded again, and gets the next turn: once
with what was kept, and once, for comparison, without. Measured is the time from that turn's request
to the first text of its answer, the model being loaded. ``docs/performance.md`` has the result.
"""

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from bench.table import print_table
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.paths import cache_dir
from tests.running import RunningKvsup, eventually

PAIRS = ("f16:f16", "q8_0:q4_0")
_TOOK = re.compile(r"(saved|took up) \d+ tokens .* in (\d+) ms")


def main() -> None:
    """Measure each pair and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2600)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        models = {
            pair.replace(":", "-"): f'model = "{path}"\nthreads = 1\nnum_ctx = 4096\n'
            f'kv_cache_type = "{pair}"\n'
            for pair in PAIRS
        }
        server = Path(default_binary(cache_dir()) or "llama-server")
        with RunningKvsup(Path(folder) / "kvsup", models=models, llama_server=server) as kvsup:
            for name, pair in zip(models, PAIRS, strict=True):
                rows.append((pair, *_measured(kvsup, name, arguments.rounds, arguments.tokens)))
    print_table(
        (
            "KV pair",
            "tokens",
            "read again, s",
            "taken up, s",
            "ratio",
            "save, ms",
            "load, ms",
            "MB",
        ),
        rows,
    )


def _measured(kvsup: RunningKvsup, name: str, n_rounds: int, n_tokens: int) -> tuple[str, ...]:
    text = " ".join(f"Item {n} is a thing." for n in range(n_tokens // 8))
    said = _ask(kvsup, name, text)[1]
    kept_s, cold_s = [], []
    for _ in range(n_rounds):
        _swap(kvsup, name)
        kept_s.append(_ask(kvsup, name, text, said, "Why?")[0])
        _swap(kvsup, name)
        kvsup.client.request("DELETE", "/kvsup/kv").raise_for_status()
        cold_s.append(_ask(kvsup, name, text, said, "Why?")[0])
    ratio = statistics.median(c / k for c, k in zip(cold_s, kept_s, strict=True))
    took = {what: float(ms) for what, ms in _TOOK.findall(kvsup.log())}
    _swap(kvsup, name)
    (kept, *_) = kvsup.client.get("/kvsup/kv", params={"model": name}).json()["conversations"]
    return (
        str(kept["tokens"]),
        f"{statistics.median(cold_s):.2f}",
        f"{statistics.median(kept_s):.3f}",
        f"{ratio:.0f}",
        f"{took['saved']:.0f}",
        f"{took['took up']:.0f}",
        f"{kept['bytes'] / 1e6:.1f}",
    )


def _swap(kvsup: RunningKvsup, name: str) -> None:
    """Unload the model and load it again, without a prompt."""
    body = {"model": name, "keep_alive": 0}
    kvsup.client.post("/api/generate", json=body).raise_for_status()
    eventually(lambda: kvsup.models()[name]["state"] == "stopped")
    kvsup.client.post("/api/generate", json={"model": name}).raise_for_status()


def _ask(kvsup: RunningKvsup, name: str, *turns: str) -> tuple[float, str]:
    """Return the seconds to the first byte of an answer, and its text."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    body = {"model": name, "messages": messages, "max_tokens": 16, "temperature": 0}
    started_s = time.perf_counter()
    with httpx.stream(
        "POST", f"{kvsup.url}/v1/chat/completions", json=body | {"stream": True}, timeout=600
    ) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if '"content":"' in line)
        took_s = time.perf_counter() - started_s
        pieces = re.findall(r'"content":"((?:[^"\\]|\\.)*)"', "\n".join([first, *lines]))
    return took_s, "".join(pieces)


if __name__ == "__main__":
    main()
