"""What a swap costs a conversation: its next token where its cache was kept, and where it was not.

    python -m bench.swap [--rounds 3] [--tokens 2600]

The demo model reads a long conversation, is unloaded and loaded again, and gets the next turn: once
with what was kept, and once, for comparison, without; the turn is as short in both. Measured is the
time from that turn's request to the first text of its answer, the model being loaded, and before it
the phases of the swap. ``docs/performance.md`` has the result.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import httpx

from bench.record import Run, Swapped
from bench.report import swap_table
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.paths import cache_dir
from tests.running import RunningKvsup, eventually

PAIRS = ("f16:f16", "q8_0:q4_0")
N_KEPT = 5
"""How often a conversation is taken up, for each time that it is read again."""

TURNS = ("Why?", "How?", "When?", "Where?", "Who?", "What?", "Which?")
"""The next turn: one that no kept conversation has. There is one more than are asked until all that
was kept is removed."""

_PHASES = {
    "save": (re.compile(r"saved \d+ tokens .* in (\d+) ms"), 1.0),
    "stop": (re.compile(r"stopped after ([\d.]+) s"), 1e3),
    "spawn and load": (re.compile(r"ready after ([\d.]+) s"), 1e3),
    "restore": (re.compile(r"took up \d+ tokens .* in (\d+) ms"), 1.0),
}
"""What kvsup's log tells of each, and the milliseconds of its unit."""

_STOPPING = "stopping: asked by a client"


def main() -> None:
    """Measure each pair and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2600)
    given = parser.parse_args()
    swaps = measure(n_rounds=given.rounds, n_tokens=given.tokens, pairs=PAIRS)
    print(swap_table(Run(swaps=swaps)))


def measure(*, n_rounds: int, n_tokens: int, pairs: Sequence[str]) -> list[Swapped]:
    """Return what swaps cost a conversation of about so many tokens, for each pair."""
    path = cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    models = {
        pair.replace(":", "-"): f'model = "{path}"\nthreads = 1\nnum_ctx = 4096\n'
        f'kv_cache_type = "{pair}"\n'
        for pair in pairs
    }
    server = Path(default_binary(cache_dir()) or "llama-server")
    with (
        tempfile.TemporaryDirectory() as folder,
        RunningKvsup(Path(folder) / "kvsup", models=models, llama_server=server) as kvsup,
    ):
        return [
            _measured(kvsup, name, pair, n_rounds, n_tokens)
            for name, pair in zip(models, pairs, strict=True)
        ]


def _measured(kvsup: RunningKvsup, name: str, pair: str, n_rounds: int, n_tokens: int) -> Swapped:
    text = " ".join(f"Item {n} is a thing." for n in range(n_tokens // 8))
    said = _ask(kvsup, name, text)[1]
    turns = cycle(TURNS)
    again_s, kept_s = [], []
    phases_ms: dict[str, list[float]] = {phase: [] for phase in (*_PHASES, "first token")}
    for _ in range(n_rounds):
        for _ in range(N_KEPT):
            n_before = len(kvsup.log())
            _swap(kvsup, name)
            kept_s.append(_ask(kvsup, name, text, said, next(turns))[0])
            for phase, took_ms in _phases(kvsup.log()[n_before:], kept_s[-1]).items():
                phases_ms[phase].append(took_ms)
        _swap(kvsup, name)
        kvsup.client.request("DELETE", "/kvsup/kv").raise_for_status()
        again_s.append(_ask(kvsup, name, text, said, next(turns))[0])
    _swap(kvsup, name)
    (kept, *_) = kvsup.client.get("/kvsup/kv", params={"model": name}).json()["conversations"]
    return Swapped(pair, kept["tokens"], kept["bytes"], again_s, kept_s, phases_ms)


def _phases(log: str, first_token_s: float) -> dict[str, float]:
    """Return the milliseconds of each phase of the one swap that ``log`` tells of.

    The stop counts the time of a save before it, which is none where all was saved already.

    Raises:
        RuntimeError: nothing was taken up, so that there is nothing to tell.
    """
    swap = log[log.find(_STOPPING) :]
    took_ms = {
        phase: float(told[-1]) * unit_ms
        for phase, (line, unit_ms) in _PHASES.items()
        if (told := line.findall(swap))
    }
    if not took_ms.keys() >= {"stop", "spawn and load", "restore"}:
        raise RuntimeError(f"the conversation was not taken up: {log}")
    took_ms["stop"] = max(0.0, took_ms["stop"] - took_ms.get("save", 0.0))
    took_ms["first token"] = first_token_s * 1e3 - took_ms["restore"]
    return took_ms


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
