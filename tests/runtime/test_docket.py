"""Which request a llama-server died of."""

import gc
import weakref

import anyio
import pytest

from kvsup.errors import Poisoned
from kvsup.restart import Exit, ExitCause
from kvsup.runtime.docket import Case, Docket
from kvsup.runtime.upstream import Upstream

pytestmark = pytest.mark.anyio


def crash(at_s: float = 1.0, cause: ExitCause = ExitCause.CRASHED) -> Exit:
    """Return a death."""
    return Exit(cause, -11, at_s, 1.0)


def die(docket: Docket, *cases: Case, cause: ExitCause = ExitCause.CRASHED, at_s: float) -> int:
    """Let a process end under ``cases``; return how many deaths are not the model's."""
    upstream = Upstream("/nowhere")
    for case in cases:
        docket.starts(case, upstream)
    return len(docket.died(upstream, crash(at_s, cause)))


async def test_a_request_of_which_the_process_died_twice_alone_is_convicted() -> None:
    """Its deaths are not counted against the model, and one like it is refused until a reset."""
    docket = Docket("m")
    case = docket.open("poison")

    assert die(docket, case, at_s=1) == 0
    assert case.verdict is None
    assert die(docket, case, at_s=2) == 2
    assert isinstance(case.verdict, Poisoned)
    assert "twice" in str(case.verdict)
    assert "kvsup reset m" in str(case.verdict)
    docket.close(case)
    with pytest.raises(Poisoned):
        docket.open("poison")
    docket.open("other")
    docket.forget()
    docket.open("poison")


async def test_neighbours_of_a_poison_are_not_convicted() -> None:
    """Three ran when it died; each runs alone, in the order in which they came."""
    docket = Docket("m")
    poison, *innocent = (docket.open(name) for name in ("poison", "a", "b"))
    die(docket, poison, *innocent, at_s=1)

    await docket.turn(poison)
    assert die(docket, poison, at_s=2) == 2
    docket.close(poison)
    for case in innocent:
        await docket.turn(case)
        docket.clear(case)

    assert poison.verdict
    assert not any(case.verdict for case in innocent)


async def test_a_suspect_waits_for_those_that_came_before_it() -> None:
    """Until these have come further than they were, or are gone."""
    docket = Docket("m")
    first, second = docket.open("a"), docket.open("b")
    die(docket, second, first, at_s=1)
    order = []

    async def run(case: Case, name: str) -> None:
        await docket.turn(case)
        order.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, first, "a")
        tasks.start_soon(run, second, "b")
        await anyio.wait_all_tasks_blocked()
        assert order == ["a"]
        docket.clear(first)

    assert order == ["a", "b"]


async def test_nobody_is_blamed_for_what_came_from_outside() -> None:
    """However often."""
    docket = Docket("m")
    case = docket.open("a")

    for cause in (ExitCause.KILLED, ExitCause.FROZEN, ExitCause.STALLED):
        for at_s in range(5):
            die(docket, case, cause=cause, at_s=at_s)

    assert case.deaths == []
    await docket.turn(case)


async def test_company_at_every_death_convicts_at_the_third() -> None:
    """Else it would go on for ever where others always run beside it."""
    docket = Docket("m")
    case = docket.open("a")
    for n in range(3):
        assert case.verdict is None
        neighbour = docket.open(f"n{n}")
        die(docket, case, neighbour, at_s=n)
        docket.close(neighbour)

    assert case.verdict


async def test_a_request_that_had_ended_is_no_suspect() -> None:
    """Only what ran when it died counts."""
    docket, upstream = Docket("m"), Upstream("/nowhere")
    done, gone, runs = docket.open("a"), docket.open("b"), docket.open("c")
    for case in (done, gone, runs):
        docket.starts(case, upstream)
    docket.ends(done, upstream)
    docket.close(gone)

    assert docket.running(upstream) == ["c"]
    docket.died(upstream, crash())

    assert [bool(case.deaths) for case in (done, gone, runs)] == [False, False, True]


async def test_a_closed_case_leaves_nothing_behind() -> None:
    """Not even where its connection broke and the process lives on, or was stopped as asked."""
    docket, upstream = Docket("m"), Upstream("/nowhere")
    case, other = docket.open("a"), docket.open("b")
    docket.starts(case, upstream)
    docket.starts(other, upstream)

    docket.close(case)
    assert docket.running(upstream) == ["b"]

    left = weakref.ref(upstream)
    docket.close(other)
    del upstream
    gc.collect()
    assert left() is None


async def test_a_suspect_that_does_not_want_to_run_holds_nobody_up() -> None:
    """Its client is slow to take what it has; once it wants to, it waits for who runs."""
    docket = Docket("m")
    slow, other = docket.open("a"), docket.open("b")
    die(docket, slow, other, at_s=1)

    with anyio.fail_after(5):
        await docket.turn(other)
    with anyio.move_on_after(0.05) as waited:
        await docket.turn(slow)
    assert waited.cancelled_caught
    docket.clear(other)
    with anyio.fail_after(5):
        await docket.turn(slow)


async def test_an_answer_that_comes_further_between_deaths_convicts_nobody_by_company() -> None:
    """A long stream beside three poisons of other people is none."""
    docket = Docket("m")
    long = docket.open("long")
    for n in range(4):
        poison = docket.open(f"p{n}")
        die(docket, long, poison, at_s=10 * n)
        docket.clear(long)
        assert die(docket, long, poison, at_s=10 * n + 1) == 0
        docket.clear(long)
        assert die(docket, poison, at_s=10 * n + 2) == 3
        assert poison.verdict
        docket.close(poison)

    assert long.verdict is None


async def test_deaths_alone_are_kept_however_far_the_answer_came() -> None:
    """A request of which the process dies twice gets the error."""
    docket = Docket("m")
    case = docket.open("a")
    die(docket, case, at_s=1)
    docket.clear(case)

    assert die(docket, case, at_s=2) == 2
    assert case.verdict


@pytest.mark.parametrize("n_innocent", [1, 2, 4])
@pytest.mark.parametrize("place", ["first", "last"])
async def test_a_poison_among_others_is_convicted_soon_and_nobody_else(
    n_innocent: int, place: str
) -> None:
    """Each innocent comes further whenever it runs; the poison kills whenever it runs."""
    docket = Docket("m")
    names = [f"i{n}" for n in range(n_innocent)]
    names.insert(0 if place == "first" else n_innocent, "poison")
    cases = {name: docket.open(name) for name in names}
    poison = cases["poison"]
    n_deaths, running = 0, list(cases.values())
    while poison.verdict is None:
        n_deaths += 1
        assert n_deaths <= 4
        die(docket, *running, at_s=n_deaths)
        running = []
        while poison not in running and poison.verdict is None:
            for case in [c for c in cases.values() if c not in running]:
                with anyio.move_on_after(0.01):
                    await docket.turn(case)
                    running.append(case)
                    if case is not poison:
                        docket.clear(case)

    assert not any(case.verdict for case in cases.values() if case is not poison)


async def test_a_whole_answer_is_struck_by_no_death() -> None:
    """Only its client still reads; what ran beside it ran alone."""
    docket = Docket("m")
    whole, poison = docket.open("whole", is_whole=lambda: True), docket.open("poison")
    die(docket, whole, poison, at_s=1)
    die(docket, whole, poison, at_s=2)

    assert whole.deaths == []
    assert poison.verdict
    assert docket.struck == [poison]


async def test_a_long_stream_that_comes_further_is_not_convicted_with_the_poison_beside_it() -> (
    None
):
    """The second time the poison waits for it to end, so that a third death has one suspect."""
    docket = Docket("m")
    long, poison = docket.open("long"), docket.open("poison")
    for at_s in (1, 2):
        await docket.turn(long)
        docket.clear(long)
        await docket.turn(poison)
        die(docket, long, poison, at_s=at_s)

    upstream = Upstream("/nowhere")
    await docket.turn(long)
    docket.starts(long, upstream)
    docket.clear(long)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(docket.turn, poison)
        await anyio.wait_all_tasks_blocked()
        assert not docket.has_turn(poison)
        docket.close(long)
    die(docket, poison, at_s=3)

    assert poison.verdict
    assert long.verdict is None


async def test_a_conviction_explains_its_deaths() -> None:
    """They count against nobody else: the next death alone is the first."""
    docket = Docket("m")
    poison, innocent = docket.open("poison"), docket.open("innocent")
    die(docket, poison, innocent, at_s=1)
    die(docket, poison, at_s=2)

    assert innocent.deaths == []
    assert not innocent.is_suspect
    die(docket, innocent, at_s=3)
    assert innocent.verdict is None


async def test_one_convicted_while_it_waits_is_told() -> None:
    """And does not run once more."""
    docket = Docket("m")
    case = docket.open("poison")
    die(docket, case, at_s=1)
    die(docket, case, at_s=2)

    assert not docket.has_turn(case)
    with pytest.raises(Poisoned):
        await docket.turn(case)


async def test_a_death_in_company_is_forgotten_by_who_came_further() -> None:
    """One alone, long after it, is then the first that says anything."""
    docket = Docket("m")
    case, other = docket.open("a"), docket.open("b")
    die(docket, case, other, at_s=1)
    docket.close(other)
    docket.clear(case)
    die(docket, case, at_s=2)

    assert case.verdict is None
    docket.clear(case)
    assert die(docket, case, at_s=3) == 3
