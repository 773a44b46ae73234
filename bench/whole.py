"""All parts in one run, within its time: a report on the terminal, every reading in JSON, a plot.

    bench/run [--minutes 10] [--peer NAME=PATH] [--json FILE] [--plot FILE] [--check]

The parts of a fixed length come first; rounds of streams fill what is left. Peers that are not on
``PATH`` are named with ``--peer``: ``router`` (llama-server's), ``llama-swap``, ``ollama``.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import check, load, machine, memory, soak, startup, swap
from bench.peers import PEER_HELP, given_peers
from bench.plot import drawn
from bench.record import Run, Soaked, read, write
from bench.report import whole
from bench.through import every_route
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.paths import cache_dir

MINUTES = 10.0
SPARE_S = 20.0
"""Of the whole time, for what comes after the last round."""

N_STARTS, N_LOADS, N_SWAPS = 5, 8, 1
SWAP_TOKENS = 2600
SWAP_PAIRS = swap.PAIRS[:1]
"""Only one here: a conversation is read again for minutes where K and V are quantized."""

SOAK_S = 30.0
N_SOAK_TOPICS = 1
HELD_TOKENS = 250_000
HELD_ROUTES = ("/v1/chat/completions", "/api/chat")
N_PAIRS, N_PAIR_ROUNDS = 100, 2
MOST_ROUNDS = 15
WINDOW_S = 1.0


def measured(*, until_s: float, peers: dict[str, Path]) -> Run:
    """Return a run of all parts; the last one ends at ``until_s`` of ``time.monotonic``."""
    run = Run(machine=machine.facts())
    server = Path(default_binary(cache_dir()) or "llama-server")
    with _part(run, "start"):
        run.start = startup.measure(N_STARTS)
    with _part(run, "load"):
        run.load_s, run.load_build = load.measure(server, N_LOADS)
    with _part(run, "memory"):
        run.held = memory.measure(HELD_TOKENS, HELD_ROUTES)
    with _part(run, "swap"):
        run.swaps = swap.measure(n_rounds=N_SWAPS, n_tokens=SWAP_TOKENS, pairs=SWAP_PAIRS)
    with _part(run, "soak"):
        counts = soak.run(seconds=SOAK_S, n_topics=N_SOAK_TOPICS)
        print("\n".join(counts.faults), file=sys.stderr)
        run.soak = Soaked(
            seconds=SOAK_S,
            n_signals=sum(counts.n_kills.values()),
            n_whole=counts.n_same + counts.n_other,
            n_lost=counts.n_lost + counts.n_hung + counts.n_truncated,
            longest_s=counts.longest_s,
        )
    with (
        _part(run, "routes"),
        tempfile.TemporaryDirectory() as folder,
        every_route(Path(folder), peers) as bench,
    ):
        run.first_tokens = bench.first_tokens(n_pairs=N_PAIRS, n_rounds=N_PAIR_ROUNDS)
        run.streams = bench.streams(
            run.first_tokens, n_rounds=MOST_ROUNDS, window_s=WINDOW_S, until_s=until_s
        )
        run.peers = bench.peers
    return run


@contextmanager
def _part(run: Run, name: str) -> Iterator[None]:
    """Note how long the block took, and if it failed: the other parts are measured all the same."""
    print(f"{name} …", file=sys.stderr, flush=True)
    began_s = time.monotonic()
    try:
        yield
    except Exception as error:  # noqa: BLE001 - told in the report, and by the exit code
        traceback.print_exc()
        run.failed[name] = (str(error) or repr(error)).splitlines()[0][:300]
    run.took_s[name] = time.monotonic() - began_s


def main() -> None:
    """Measure, keep, draw, print."""
    began_s = time.monotonic()
    parser = argparse.ArgumentParser(prog="bench/run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it")
    parser.add_argument("--peer", action="append", default=[], help=PEER_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every reading there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it there, as SVG")
    parser.add_argument(
        "--check", action="store_true", help="compare with bench/baseline.json; 1 if worse"
    )
    given = parser.parse_args()
    try:
        peers = given_peers(given.peer)
    except ValueError as error:
        parser.error(str(error))
    run = measured(until_s=began_s + 60 * given.minutes - SPARE_S, peers=peers)
    print(whole(run))
    if given.json:
        write(run, given.json)
    if given.plot:
        given.plot.write_text(drawn(run), "utf-8")
    code = int(bool(run.failed))
    if given.check:
        print()
        code = check.report(read(check.BASELINE), run)
    sys.exit(code)


if __name__ == "__main__":
    main()
