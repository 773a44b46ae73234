"""Kill llama-servers under mixed requests and count what a client of kvsup sees of it.

    python -m bench.soak [--minutes 30] [--clients 4] [--every 2]

Two models, requests on every API, streamed and whole; every two seconds the llama-server of one
gets SIGKILL or SIGSTOP. Each request was asked in peace before. Counted are the answers that are
the same, those that are another text, and those that were lost, hung or truncated; sampled
are the memory, the open files and the threads of kvsup. It ends with 1 if any was lost, hung or
truncated. ``docs/reliability.md`` has the result.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import httpx
import msgspec
import psutil

from bench.soaked import TOPICS, Job, LostError, TruncatedError, jobs
from bench.table import print_table
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.paths import cache_dir
from tests.running import RunningKvsup

PAIRS = {"a": "f16:f16", "b": "q8_0:q4_0"}
HUNG_S = 120.0
"""Silence after which a client gives up."""

SAMPLE_S = 5.0
WATCHDOG = '[watchdog]\ninterval = "0.5s"\nstall = "2s"\n'


@dataclass
class Counts:
    """What became of the requests, and of kvsup."""

    seconds: float = 0.0
    n_kills: dict[str, int] = field(default_factory=dict)
    n_same: int = 0
    n_other: int = 0
    n_lost: int = 0
    n_hung: int = 0
    n_truncated: int = 0
    faults: list[str] = field(default_factory=list)
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    """MB resident, open files and threads of kvsup."""
    longest_s: float = 0.0

    @property
    def is_flawless(self) -> bool:
        """Say whether every client got its whole answer."""
        return not (self.n_lost or self.n_hung or self.n_truncated)


async def soak(
    kvsup: RunningKvsup,
    *,
    seconds: float,
    n_clients: int,
    every_s: float,
    seed: int,
    n_topics: int = len(TOPICS),
) -> Counts:
    """Ask and kill for ``seconds``; return what was seen."""
    counts = Counts(seconds=seconds)
    wanted: dict[Job, str] = {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=kvsup.url, timeout=HUNG_S, limits=limits, trust_env=False
    ) as client:
        every_job = jobs(tuple(PAIRS), TOPICS[:n_topics])
        for job in every_job:
            wanted[job] = await job.ask(client)
        end_s = time.monotonic() + seconds
        draw = random.Random(seed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_kill, client, counts, end_s, every_s, draw)
            tasks.start_soon(_sample, kvsup, counts, end_s)
            for number in range(n_clients):
                order = random.Random(seed + number).sample(every_job, len(every_job))
                tasks.start_soon(_ask, client, order, wanted, counts, end_s)
    return counts


async def _ask(
    client: httpx.AsyncClient,
    order: list[Job],
    wanted: dict[Job, str],
    counts: Counts,
    end_s: float,
) -> None:
    while True:
        for job in order:
            if time.monotonic() >= end_s:
                return
            began_s = time.monotonic()
            try:
                text = await job.ask(client)
            except LostError as error:
                counts.n_lost += 1
                counts.faults.append(f"lost: {job.model} {job.name}: {error}")
            except TruncatedError as error:
                counts.n_truncated += 1
                counts.faults.append(f"truncated: {job.model} {job.name}: {error}")
            except httpx.TimeoutException:
                counts.n_hung += 1
                counts.faults.append(f"hung: {job.model} {job.name}")
            else:
                is_same = text == wanted[job]
                counts.n_same += is_same
                counts.n_other += not is_same
            counts.longest_s = max(counts.longest_s, time.monotonic() - began_s)


async def _kill(
    client: httpx.AsyncClient,
    counts: Counts,
    end_s: float,
    every_s: float,
    draw: random.Random,
) -> None:
    while time.monotonic() < end_s:
        await anyio.sleep(every_s)
        answer = (await client.get("/kvsup/models")).json()["models"]
        pids = [model["pid"] for model in answer if model["pid"]]
        if not pids:
            continue
        number = draw.choice((signal.SIGKILL, signal.SIGSTOP))
        try:
            psutil.Process(draw.choice(pids)).send_signal(number)
            counts.n_kills[number.name] = counts.n_kills.get(number.name, 0) + 1
        except psutil.NoSuchProcess:
            pass


async def _sample(kvsup: RunningKvsup, counts: Counts, end_s: float) -> None:
    process = psutil.Process(kvsup.process.pid)
    while time.monotonic() < end_s:
        counts.samples.append(
            (process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())
        )
        await anyio.sleep(SAMPLE_S)


def model_toml(pair: str) -> str:
    """Return the file of one model of the soak."""
    return (
        'model = "kvsup:SmolLM2-135M-Instruct.Q4_1.gguf"\nthreads = 1\nnum_ctx = 512\n'
        f'kv_cache_type = "{pair}"\n{WATCHDOG}'
    )


def run(
    *,
    seconds: float,
    n_clients: int = 4,
    every_s: float = 2.0,
    seed: int = 1,
    n_topics: int = len(TOPICS),
) -> Counts:
    """Soak a kvsup of its own; return what was seen, its log's last lines if something was.

    Fewer topics are fewer requests to be asked in peace before.
    """
    server = Path(default_binary(cache_dir()) or "llama-server")
    models = {name: model_toml(pair) for name, pair in PAIRS.items()}
    with (
        tempfile.TemporaryDirectory() as folder,
        RunningKvsup(Path(folder) / "kvsup", models=models, llama_server=server) as kvsup,
    ):
        counts = anyio.run(
            partial(
                soak,
                kvsup,
                seconds=seconds,
                n_clients=n_clients,
                every_s=every_s,
                seed=seed,
                n_topics=n_topics,
            )
        )
        if not counts.is_flawless:
            counts.faults.append(kvsup.log()[-4000:])
    return counts


def main() -> None:
    """Soak and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all counts there")
    asked = parser.parse_args()
    counts = run(
        seconds=60 * asked.minutes,
        n_clients=asked.clients,
        every_s=asked.every,
        seed=asked.seed,
    )
    if asked.json:
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(counts)))
    middle = len(counts.samples) // 2
    first, last = counts.samples[middle], counts.samples[-1]
    rows = [
        ("signals sent", ", ".join(f"{n} {name}" for name, n in sorted(counts.n_kills.items()))),
        ("whole answers, the calm text", str(counts.n_same)),
        ("whole answers, another text", str(counts.n_other)),
        ("lost", str(counts.n_lost)),
        ("hung", str(counts.n_hung)),
        ("truncated in silence", str(counts.n_truncated)),
        ("longest answer, s", f"{counts.longest_s:.1f}"),
        ("resident MB, half way and at the end", f"{first[0]:.1f}, {last[0]:.1f}"),
        ("open files, half way and at the end", f"{first[1]}, {last[1]}"),
        ("threads, half way and at the end", f"{first[2]}, {last[2]}"),
    ]
    print_table((f"{asked.minutes:g} minutes", "seen"), rows)
    print("\n".join(counts.faults), file=sys.stderr)
    sys.exit(not counts.is_flawless)


if __name__ == "__main__":
    main()
