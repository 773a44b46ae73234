"""What each route adds to a stream: time to its first token, CPU for each token."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TypeVar

import msgspec

from bench.clients import ClientError, ask
from bench.first_token_client import Probing
from bench.peers import peer_routes
from bench.record import FLOOR, PASSED, TRANSLATED, FirstTokens, Peer, Reading, Streamed
from bench.routes import Route, own_routes
from bench.stream_client import Load

PACES = {1: 200.0, 16: 200.0, 64: 50.0, 256: 12.5}
"""Tokens per second of each stream, by the number of streams: 3,200 at most in all, so that neither
a proxy nor the source comes near the limit of its core."""

OWN = (FLOOR, PASSED, TRANSLATED)
N_PEER_ROUNDS = 2
"""A peer is measured in the first rounds only: some take half a minute for each."""

PROBING_S = 3.0
"""For the pairs of one route beside so many streams in one round; a slow route gives fewer."""

SETTLE_S = 0.3
"""After streams were left in the middle."""

T = TypeVar("T")


class Bench:
    """The routes under measurement, and what of the peers turned out not to be measurable."""

    def __init__(
        self, routes: dict[int, list[Route]], peers: list[Peer], paces: Mapping[int, float]
    ) -> None:
        self._routes = routes
        self._paces = paces
        self._peers = peers
        self._faults: dict[str, str] = {}
        self._given_up: set[Route] = set()

    @property
    def peers(self) -> list[Peer]:
        """Return each peer, with the reason if some of it could not be measured."""
        return [
            msgspec.structs.replace(peer, fault=self._faults.get(peer.route, ""))
            for peer in self._peers
        ]

    def first_tokens(self, *, n_pairs: int, n_rounds: int) -> list[FirstTokens]:
        """Time ``n_pairs`` first tokens of every route in each of so many rounds; peers in one."""
        found: dict[tuple[int, str], FirstTokens] = {}
        for number in range(n_rounds):
            for n, route in self._there(with_peers=not number):
                at = route.port, route.path, route.model, n, route.straight
                pairs = self._asked(
                    n,
                    route,
                    "first_token_client",
                    Probing(*at, n_pairs=n_pairs, limit_s=PROBING_S),
                    tuple[list[float], list[float]],
                )
                if pairs is not None:
                    key = n, route.name
                    known = found.setdefault(key, FirstTokens(route.name, n, [], []))
                    known.straight_ms.extend(pairs[0])
                    known.through_ms.extend(pairs[1])
                    _say(f"{n} {route.name}: {median(pairs[0]):.2f}, {median(pairs[1]):.2f} ms")
                time.sleep(SETTLE_S)
        return list(found.values())

    def streams(
        self, first_tokens: list[FirstTokens], *, n_rounds: int, window_s: float, until_s: float
    ) -> list[Streamed]:
        """Measure every route in so many rounds, or those that end before ``until_s``, but one.

        ``until_s`` is a time of ``time.monotonic``; ``first_tokens`` tells how long streams take to
        open.
        """
        found: dict[tuple[int, str], Streamed] = {}
        opening_s = {(f.n_streams, f.route): _opening_s(f) for f in first_tokens}
        own_s = peers_s = 0.0
        for number in range(n_rounds):
            with_peers = are_peers_in(number, until_s - time.monotonic(), own_s, peers_s)
            if with_peers is None:
                break
            own_s, peers_s = 0.0, 0.0 if with_peers else peers_s
            for n, route in self._there(with_peers=with_peers):
                began_s = time.monotonic()
                pace = self._paces[n]
                at = route.port, route.path, route.model, n, pace, window_s, route.pid
                load = Load(*at, opening_s=opening_s.get((n, route.name), 0.0))
                reading = self._asked(n, route, "stream_client", load, Reading)
                if reading is not None:
                    key = n, route.name
                    found.setdefault(key, Streamed(route.name, n, pace, []))
                    found[key].readings.append(reading)
                    _say(f"{n} {route.name}: {reading.us_per_token:.1f} µs/token")
                if route.name in OWN:
                    own_s += time.monotonic() - began_s
                else:
                    peers_s += time.monotonic() - began_s
        return list(found.values())

    def _there(self, *, with_peers: bool) -> Iterator[tuple[int, Route]]:
        for n, there in self._routes.items():
            for route in there:
                if route.name in OWN or (with_peers and route not in self._given_up):
                    yield n, route

    def _asked(
        self, n_streams: int, route: Route, module: str, argument: msgspec.Struct, kind: type[T]
    ) -> T | None:
        """Return what a client found, if need be at the second try, or None for a peer.

        A peer that failed is not measured again beside so many streams.

        Raises:
            ClientError: a route of our own failed twice.
        """
        try:
            return ask(module, argument, kind)
        except ClientError as error:
            _say(f"{n_streams} {route.name}: {error}")
            if route.name in OWN:
                return ask(module, argument, kind)
            self._faults[route.name] = f"{n_streams} streams: {error}"[:200]
            self._given_up.add(route)
            return None


def are_peers_in(number: int, left_s: float, own_s: float, peers_s: float) -> bool | None:
    """Say whether the next round has the peers in it, or None if there is no time for any.

    ``own_s`` and ``peers_s`` are what the last round took of each. The first round is always whole.
    """
    if number == 0:
        return True
    if own_s > left_s:
        return None
    return number < N_PEER_ROUNDS and own_s + peers_s <= left_s


def _opening_s(first: FirstTokens) -> float:
    """Return how long so many streams take to open: twice the time of each alone, one by one."""
    return 2 * first.n_streams * median(first.through_ms) / 1e3


@contextmanager
def every_route(
    folder: Path,
    given: Mapping[str, Path],
    *,
    with_peers: bool = True,
    paces: Mapping[int, float] = PACES,
) -> Iterator[Bench]:
    """Yield kvsup's routes, the byte copy and those of the peers."""
    with ExitStack() as stack:
        routes = stack.enter_context(own_routes(folder / "kvsup", paces))
        if not with_peers:
            yield Bench(routes, [], paces)
            return
        others, peers = stack.enter_context(peer_routes(folder / "peers", paces, given))
        yield Bench({n: [*routes[n], *others[n]] for n in paces}, peers, paces)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
