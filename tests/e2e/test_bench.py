"""The bench measures what it says: kvsup and a real router with the tokens of one source."""

import sys
from pathlib import Path

import pytest

from bench.peers import LLAMA_SWAP, ROUTER, peer_routes
from bench.record import FLOOR, PASSED, TRANSLATED
from bench.through import every_route

PACES = {1: 200.0, 3: 200.0}
ROUTES = [FLOOR, PASSED, TRANSLATED, ROUTER]


@pytest.mark.timeout(120)
def test_bench_measures_every_route_with_the_same_tokens(
    tmp_path: Path, llama_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its pairs and its window, at the pace of the source; who is not there is named."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))

    with every_route(tmp_path, {"router": llama_server}, paces=PACES) as bench:
        first_tokens = bench.first_tokens(n_pairs=3, n_rounds=1)
        streams = bench.streams(first_tokens, n_rounds=1, window_s=0.2, until_s=0.0)

    every = [(n, route) for n in PACES for route in ROUTES]
    assert [(first.n_streams, first.route) for first in first_tokens] == every
    assert all(len(first.added_ms) == 3 for first in first_tokens)
    assert all(ms > 0 for first in first_tokens for ms in first.straight_ms + first.through_ms)
    assert [(streamed.n_streams, streamed.route) for streamed in streams] == every
    assert all(reading.us_per_token > 0 for s in streams for reading in s.readings)
    absent = {peer.route: peer.absent for peer in bench.peers}
    assert absent[ROUTER] == ""
    assert absent[LLAMA_SWAP] == "not found on this machine"


def test_peer_that_does_not_start_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes nobody else's measurement with it."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 3\n")
    broken.chmod(0o755)
    given = {"router": broken, "llama-swap": broken, "ollama": broken}

    with peer_routes(tmp_path / "peers", PACES, given) as (routes, peers):
        assert routes == {1: [], 3: []}
        assert {peer.absent for peer in peers} == {"cannot be measured: no such flag"}
