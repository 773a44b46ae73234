"""What each route adds to a stream, alone: first tokens and CPU, of kvsup and the peers.

python -m bench.tokens [--rounds 15] [--without-peers] [--json FILE]
"""

import argparse
import tempfile
from pathlib import Path

from bench.peers import PEER_HELP, given_peers
from bench.record import Run, write
from bench.report import aims_table, first_token_table, machine, streams_table, translation_table
from bench.through import every_route


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--window", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--pairs", type=int, default=200, help="first tokens of each route")
    parser.add_argument("--peer", action="append", default=[], help=PEER_HELP)
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every reading there")
    given = parser.parse_args()
    run = Run()
    with (
        tempfile.TemporaryDirectory() as folder,
        every_route(
            Path(folder), given_peers(given.peer), with_peers=not given.without_peers
        ) as bench,
    ):
        run.first_tokens = bench.first_tokens(n_pairs=given.pairs // 2, n_rounds=2)
        run.streams = bench.streams(
            run.first_tokens, n_rounds=given.rounds, window_s=given.window, until_s=float("inf")
        )
        run.peers = bench.peers
    if given.json:
        write(run, given.json)
    blocks = (machine, first_token_table, streams_table, translation_table, aims_table)
    print("\n\n".join(block(run) for block in blocks))


if __name__ == "__main__":
    main()
