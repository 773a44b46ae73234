"""A poison and those beside it, which come, come further, read slowly and end at any time."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.errors import Poisoned
from kvsup.restart import Exit, ExitCause
from kvsup.runtime.docket import MAX_COMPANY_DEATHS, Case, Docket
from kvsup.runtime.upstream import Upstream

_NAMES = ("kill", "kill", "kill", "further", "further", "come", "come", "slow", "end")
MOVES = st.lists(st.tuples(st.sampled_from(_NAMES), st.integers(0, 3)), min_size=4, max_size=24)
N_BEFORE = st.integers(0, 2)
"""How many came before the poison."""


@dataclass(eq=False)
class Client:
    """A request and what it does: it runs, waits for its turn, or reads slowly."""

    case: Case
    waits: "asyncio.Task[Upstream] | None" = None
    is_slow: bool = False
    comes_late: bool = False
    """It read slowly when the others went on to the process that is up."""
    runs: bool = False


class World:
    """A docket and its clients, on one process after the other; one of them is the poison."""

    def __init__(self, docket: Docket, *, n_before: int, poison_comes_further: bool) -> None:
        self.docket = docket
        self.poison_comes_further = poison_comes_further
        self.clients: list[Client] = []
        self.upstream = Upstream("/nowhere")
        self.is_up = asyncio.Event()
        self.n_deaths = 0
        for _ in range(n_before + 1):
            self.come()
        self.poison = self.clients[-1]

    def come(self) -> None:
        """Let one more client come."""
        self.clients.append(Client(self.docket.open(f"{id(self)}-{len(self.clients)}")))

    async def ready(self) -> Upstream:
        """Return the process once it is up."""
        await self.is_up.wait()
        return self.upstream

    async def run(self, client: Client) -> Upstream:
        """Let a client run once it may."""
        upstream = await self.docket.turn(client.case, self.ready)
        self.docket.starts(client.case, upstream)
        client.runs, client.comes_late = True, False
        return upstream

    async def settle(self) -> None:
        """Let all but the slow ask for their turn, then the process come up and them run."""
        for client in self.clients:
            is_idle = not client.runs and client.waits is None
            if is_idle and client.is_slow:
                client.comes_late = True
            elif is_idle and not client.case.verdict:
                client.waits = asyncio.create_task(self.run(client))
        await pause()
        self.is_up.set()
        await pause()
        for client in self.clients:
            if client.waits is not None and client.waits.done():
                assert client.waits.result() is self.upstream
                client.waits = None

    def further(self, client: Client) -> None:
        """Let its answer come further, if it runs and can."""
        if client.runs and (client is not self.poison or self.poison_comes_further):
            self.docket.clear(client.case)

    def end(self, client: Client) -> None:
        """Let its answer come to its end; that of the poison has none."""
        if client.runs and client is not self.poison:
            self.leave(client)

    def leave(self, client: Client) -> None:
        """Let it go, wherever it is."""
        if client.waits is not None:
            client.waits.cancel()
        self.clients.remove(client)
        self.docket.close(client.case)

    def kill(self) -> None:
        """Let the process die of the poison, if that runs."""
        if not self.poison.runs:
            return
        self.n_deaths += 1
        self.docket.died(self.upstream, Exit(ExitCause.CRASHED, -11, float(self.n_deaths), 1.0))
        self.upstream = Upstream("/nowhere")
        self.is_up.clear()
        for client in self.clients:
            client.runs = client.comes_late = False

    async def move(self, move: str, number: int) -> None:
        """Make one move, of the client that ``number`` picks."""
        client = self.clients[number % len(self.clients)]
        match move:
            case "come" if len(self.clients) < 4:
                self.come()
            case "further":
                self.further(client)
            case "slow" if client is not self.poison:
                client.is_slow = not client.is_slow
            case "end":
                self.end(client)
            case "kill":
                self.kill()
        await self.settle()

    def check(self) -> None:
        """Raise ``AssertionError`` where a rule is broken."""
        assert not any(c.case.verdict for c in self.clients if c is not self.poison)
        on_trial = [c for c in self.clients if c.runs and c.case.is_suspect]
        assert len(on_trial) <= 1
        waiting = [c for c in self.clients if c.waits is not None]
        assert all(c.case.is_suspect for c in waiting)
        if waiting and not on_trial:
            assert all(c.comes_late for c in waiting)
            assert all(len(c.case.fruitless) == MAX_COMPANY_DEATHS - 1 for c in waiting)
            assert any(c.runs and c.case.deaths for c in self.clients)

    async def play(self, moves: list[tuple[str, int]]) -> None:
        """Make ``moves`` until the poison is convicted."""
        await self.settle()
        for move, number in moves:
            await self.move(move, number)
            self.check()
            if self.poison.case.verdict is not None:
                return

    async def leave_all(self) -> None:
        """End everyone but the poison, which then runs alone until it is convicted."""
        for client in [client for client in self.clients if client is not self.poison]:
            self.leave(client)
        await self.settle()
        while self.poison.case.verdict is None:
            assert self.poison.runs
            await self.move("kill", 0)


async def pause() -> None:
    """Let every task go on as far as it can."""
    for _ in range(6):
        await asyncio.sleep(0)


def played(doing: Coroutine[Any, Any, None]) -> None:
    """Run it; one that hangs fails."""
    asyncio.run(asyncio.wait_for(doing, 30))


@settings(max_examples=300, deadline=None)
@given(MOVES, N_BEFORE)
def test_a_poison_is_convicted_by_its_third_death_and_nobody_else(
    moves: list[tuple[str, int]], n_before: int
) -> None:
    """However the others come, run, read slowly and end; who waits, waits for one whose turn it is.

    Or it came late itself.
    """

    async def check() -> None:
        world = World(Docket("m"), n_before=n_before, poison_comes_further=False)
        await world.play(moves)
        if world.poison.case.verdict is None:
            await world.leave_all()
        assert world.n_deaths <= MAX_COMPANY_DEATHS

    played(check())


@settings(max_examples=300, deadline=None)
@given(MOVES, N_BEFORE)
def test_nobody_is_convicted_for_a_poison_that_comes_further_before_it_kills(
    moves: list[tuple[str, int]], n_before: int
) -> None:
    """It is found at its second death alone, at the latest."""

    async def check() -> None:
        world = World(Docket("m"), n_before=n_before, poison_comes_further=True)
        await world.play(moves)
        if world.poison.case.verdict is None:
            n_deaths = world.n_deaths
            await world.leave_all()
            assert world.n_deaths <= n_deaths + 2

    played(check())


@pytest.mark.parametrize("n_before", [0, 1])
@pytest.mark.parametrize("poison_comes_further", [False, True])
def test_no_course_of_a_poison_and_one_beside_it_convicts_the_other(
    *, n_before: int, poison_comes_further: bool
) -> None:
    """Every course of five moves of the two, that begins with a death of both."""
    moves = [("kill", 0), ("further", 0), ("further", 1), ("slow", 1 - n_before)]

    async def check() -> None:
        for course in product(moves, repeat=5):
            world = World(Docket("m"), n_before=n_before, poison_comes_further=poison_comes_further)
            if not n_before:
                world.come()
            await world.play([("kill", 0), *course])
            await world.leave_all()

    played(check())


def test_who_is_convicted_while_its_turn_comes_is_told() -> None:
    """The verdict may come between the turn and the process."""

    async def check() -> None:
        world = World(Docket("m"), n_before=0, poison_comes_further=False)
        await world.leave_all()
        try:
            await world.docket.turn(world.poison.case, world.ready)
        except Poisoned:
            return
        raise AssertionError("it ran again")

    played(check())
