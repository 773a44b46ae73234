"""Which request a llama-server died of."""

import gc
import weakref

import anyio
import pytest

from kvsup.errors import Poisoned
from kvsup.restart import Exit, ExitCause
from kvsup.runtime.docket import MAX_COMPANY_DEATHS, Case, Docket
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


async def run(docket: Docket, case: Case, upstream: Upstream | None = None) -> None:
    """Wait for the turn of ``case`` and let it run on a process that is up."""
    process = upstream or Upstream("/nowhere")

    async def ready() -> Upstream:
        return process

    docket.starts(case, await docket.turn(case, ready))


async def go_on(
    docket: Docket,
    case: Case,
    upstream: Upstream,
    is_up: anyio.Event,
    comes_further: bool,  # noqa: FBT001 - a task is started with it
) -> None:
    """Let ``case`` wait for a process that is not up yet, and run on it."""

    async def ready() -> Upstream:
        await is_up.wait()
        return upstream

    docket.starts(case, await docket.turn(case, ready))
    if comes_further:
        docket.clear(case)


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

    await run(docket, poison)
    assert die(docket, poison, at_s=2) == 2
    docket.close(poison)
    for case in innocent:
        await run(docket, case)
        docket.clear(case)

    assert poison.verdict
    assert not any(case.verdict for case in innocent)


async def test_a_suspect_waits_for_those_that_came_before_it() -> None:
    """Until these have come further than they were, or are gone."""
    docket = Docket("m")
    first, second = docket.open("a"), docket.open("b")
    die(docket, second, first, at_s=1)
    order = []

    async def note(case: Case, name: str) -> None:
        await run(docket, case)
        order.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(note, first, "a")
        tasks.start_soon(note, second, "b")
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
    await run(docket, case)


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
        await run(docket, other)
    with anyio.move_on_after(0.05) as waited:
        await run(docket, slow)
    assert waited.cancelled_caught
    docket.clear(other)
    with anyio.fail_after(5):
        await run(docket, slow)


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
    n_deaths = 0
    while poison.verdict is None:
        upstream, is_up = Upstream("/nowhere"), anyio.Event()
        async with anyio.create_task_group() as tasks:
            for case in cases.values():
                tasks.start_soon(go_on, docket, case, upstream, is_up, case is not poison)
            await anyio.wait_all_tasks_blocked()
            is_up.set()
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert "poison" in docket.running(upstream)
        n_deaths += 1
        docket.died(upstream, crash(n_deaths))
        assert n_deaths <= MAX_COMPANY_DEATHS

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


async def test_the_one_with_most_deaths_in_a_row_runs_first() -> None:
    """So it is alone, and the long stream that came before it neither convicted nor waited for."""
    docket, upstream = Docket("m"), Upstream("/nowhere")
    long, poison = docket.open("long"), docket.open("poison")
    for at_s in (1, 2):
        await run(docket, long, upstream)
        docket.clear(long)
        await run(docket, poison, upstream)
        docket.died(upstream, crash(at_s))

    is_up = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(go_on, docket, long, upstream, is_up, True)
        tasks.start_soon(go_on, docket, poison, upstream, is_up, False)
        await anyio.wait_all_tasks_blocked()
        is_up.set()
        await anyio.wait_all_tasks_blocked()
        assert docket.running(upstream) == ["poison"]
        docket.died(upstream, crash(3))

    assert docket.running(upstream) == ["long"]
    assert poison.verdict
    assert long.verdict is None


async def test_one_that_comes_late_to_be_tried_apart_waits_for_what_shares_its_deaths() -> None:
    """Its client was slow when the others began; they have come further and may still kill."""
    docket, upstream = Docket("m"), Upstream("/nowhere")
    long, late = docket.open("long"), docket.open("late")
    for at_s in (1, 2):
        docket.clear(long)
        die(docket, long, late, at_s=at_s)
    await run(docket, long, upstream)
    docket.clear(long)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, docket, late, upstream)
        await anyio.wait_all_tasks_blocked()
        assert docket.running(upstream) == ["long"]
        docket.close(long)

    assert docket.running(upstream) == ["late"]


async def test_one_that_left_is_company_until_the_process_says_more() -> None:
    """Of a request that hangs the loop the client leaves first, and who stays is not to blame."""
    docket = Docket("m")
    patient = docket.open("patient")
    for at_s in (1, 2):
        upstream = Upstream("/nowhere")
        leaver = docket.open("leaver")
        docket.starts(patient, upstream)
        docket.starts(leaver, upstream)
        docket.close(leaver)
        docket.died(upstream, crash(at_s, ExitCause.HUNG))
    assert patient.alone == []
    assert patient.verdict is None

    upstream = Upstream("/nowhere")
    leaver = docket.open("leaver")
    docket.clear(patient)
    docket.starts(patient, upstream)
    docket.starts(leaver, upstream)
    docket.close(leaver)
    upstream.n_reads += 1
    docket.died(upstream, crash(3))
    assert len(patient.alone) == 1


async def test_one_whose_answer_was_whole_is_no_company_when_it_goes() -> None:
    """It ended, or its client took the last of it."""
    docket, upstream = Docket("m"), Upstream("/nowhere")
    case, ended = docket.open("a"), docket.open("b")
    whole = docket.open("c", is_whole=lambda: True)
    for each in (case, ended, whole):
        docket.starts(each, upstream)
    docket.ends(ended, upstream)
    docket.close(ended)
    docket.close(whole)
    docket.died(upstream, crash())

    assert len(case.alone) == 1


async def test_a_death_ends_the_turn_of_one_that_it_did_not_strike() -> None:
    """It found nobody at the socket; what explains its deaths lets the others run, too."""
    docket, upstream = Docket("m"), Upstream("/nowhere")
    poison, tried, other = (docket.open(name) for name in ("poison", "tried", "other"))
    die(docket, poison, at_s=0)
    die(docket, tried, poison, at_s=1)
    docket.clear(poison)
    die(docket, other, at_s=2)
    await run(docket, tried, upstream)
    docket.ends(tried, upstream)
    docket.starts(poison, upstream)
    docket.died(upstream, crash(3))

    assert poison.verdict
    assert not tried.is_suspect
    with anyio.fail_after(5):
        await run(docket, other)


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

    with pytest.raises(Poisoned):
        await run(docket, case)


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
