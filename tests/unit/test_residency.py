"""Who may be in memory, and who must go."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.residency import (
    RAM,
    Budget,
    Go,
    Refuse,
    Resident,
    Sizes,
    Wait,
    admit,
    idle_due,
    next_due_s,
    room_bytes,
    together,
)

NO_LIMIT = Budget(None, None)
NOW_S = 10.0


def resident(
    key: str,
    size_bytes: int = 10,
    *,
    leases: int = 0,
    used_s: float = 0.0,
    pinned: bool = False,
    leaving: bool = False,
) -> Resident:
    """Return a resident with the fields that a test names."""
    return Resident(key, {RAM: size_bytes}, leases, used_s, is_pinned=pinned, is_leaving=leaving)


def loaded(key: str, size_bytes: int, load_s: float, *, idle_s: float = 3.0) -> Resident:
    """Return an idle resident whose load took ``load_s``."""
    return replace(resident(key, size_bytes, used_s=NOW_S - idle_s), load_s=load_s)


@pytest.mark.parametrize(
    ("residents", "budget", "verdict"),
    [
        ([], NO_LIMIT, Go()),
        ([], Budget(10, 1), Go()),
        ([resident("a"), resident("b")], NO_LIMIT, Go()),
        ([resident("a")], Budget(None, 1), Go(("a",))),
        ([resident("a")], Budget(19, None), Go(("a",))),
        ([resident("a")], Budget(20, None), Go()),
        ([resident("a", leases=1)], Budget(None, 1), Wait(("a",))),
        ([resident("a", leaving=True)], Budget(None, 1), Wait(("a",))),
        ([resident("a", leaving=True)], Budget(None, 2), Go()),
        ([resident("a", used_s=2.0), resident("b", used_s=1.0)], Budget(None, 2), Go(("b",))),
        ([resident("b", used_s=1.0), resident("a", used_s=1.0)], Budget(None, 2), Go(("a",))),
        ([resident("a", leases=1), resident("b")], Budget(None, 2), Go(("b",))),
        ([resident("a", 2), resident("b", 8, used_s=1.0)], Budget(12, None), Go(("b",))),
        ([resident("a", 4), resident("b", 8, used_s=1.0)], Budget(12, None), Go(("b", "a"))),
        ([resident("a", pinned=True), resident("b")], Budget(None, 2), Go(("b",))),
    ],
)
def test_admit_of_ten_bytes_beside_residents(
    residents: list[Resident], budget: Budget, verdict: Go | Wait
) -> None:
    """Room is made by the idle: as many as needed, first who does least for what it holds."""
    assert admit("new", {RAM: 10}, residents, budget, now_s=NOW_S) == verdict


@pytest.mark.parametrize(
    ("residents", "budget", "says"),
    [
        ([], Budget(9, None), "the memory budget is 9 B"),
        ([resident("a", pinned=True)], Budget(None, 1), "for at most 1 models"),
        ([resident("a", pinned=True)], Budget(19, None), "beside 10 B of pinned models"),
    ],
)
def test_admit_of_what_can_never_fit_is_refused_with_the_numbers(
    residents: list[Resident], budget: Budget, says: str
) -> None:
    """Waiting would not help; the reason says what would."""
    verdict = admit("new", {RAM: 10}, residents, budget, now_s=NOW_S)

    assert isinstance(verdict, Refuse)
    assert says in verdict.reason
    assert "unpin a model" in verdict.reason


def test_admit_of_a_model_alone_tries_although_an_estimated_budget_says_no() -> None:
    """What seemed free is no reason to refuse the only model; what was configured is."""
    budget = Budget(None, None, {RAM: 5}, is_estimated=True)

    assert admit("new", {RAM: 10}, [], budget, now_s=NOW_S) == Go()
    assert admit("new", {RAM: 10}, [resident("a")], budget, now_s=NOW_S) == Go(("a",))


@pytest.mark.parametrize(
    ("residents", "first"),
    [
        # the longer idle of two that cost the same
        ([loaded("a", 4, 8.0, idle_s=2), loaded("b", 4, 8.0, idle_s=3)], "b"),
        # the larger of two that are idle as long and load as long
        ([loaded("a", 4, 8.0), loaded("b", 8, 8.0)], "b"),
        # the one that is back sooner
        ([loaded("a", 4, 2.0), loaded("b", 4, 8.0)], "a"),
        # 8 B x 3 s for 8 s are worth less than 4 B x 3 s for 2 s
        ([loaded("a", 4, 2.0, idle_s=3), loaded("b", 8, 8.0, idle_s=3)], "a"),
        # a load of which nothing is known costs what its size lets expect: then use decides
        ([loaded("a", 4 << 30, 0.0, idle_s=5), loaded("b", 8 << 30, 0.0, idle_s=4)], "a"),
    ],
)
def test_first_victim_is_the_longest_idle_by_bytes_and_cost_of_reloading(
    residents: list[Resident], first: str
) -> None:
    """Memory that does nothing, for each second that its return would take."""
    assert admit("new", {RAM: 1}, residents, Budget(None, 2), now_s=NOW_S) == Go((first,))


@pytest.mark.parametrize(
    ("load_s", "weight", "turn_s", "linger_s"),
    [(0.1, 1.0, 2.0, 0.025), (30.0, 1.0, 30.0, 5.0), (300.0, 1.0, 60.0, 5.0), (4.0, 0.5, 2.0, 1.0)],
)
def test_turn_is_as_long_as_the_load_within_bounds(
    load_s: float, weight: float, turn_s: float, linger_s: float
) -> None:
    """A model that takes 30 s to load stays as long; none stays for ever."""
    one = replace(resident("a"), load_s=load_s, weight=weight)

    assert (one.turn_s, one.linger_s) == (turn_s, linger_s)


any_sizes = st.dictionaries(st.sampled_from([RAM, "CUDA0", "CUDA1"]), st.integers(0, 20))
residents_of_any_kind = st.lists(
    st.builds(
        Resident,
        key=st.sampled_from("abcdefg"),
        sizes=any_sizes,
        leases=st.integers(0, 2),
        last_used_s=st.floats(0, 5),
        is_pinned=st.booleans(),
        is_leaving=st.booleans(),
    ),
    unique_by=lambda r: r.key,
    max_size=6,
)
budgets = st.builds(
    Budget,
    memory_bytes=st.none() | st.integers(0, 60),
    max_loaded=st.none() | st.integers(1, 4),
    limits=st.dictionaries(st.sampled_from([RAM, "CUDA0", "CUDA1"]), st.integers(0, 60)),
)


@given(any_sizes, residents_of_any_kind, budgets)
def test_admit_never_evicts_who_serves_or_is_pinned_and_keeps_within_the_budget(
    sizes: Sizes, residents: list[Resident], budget: Budget
) -> None:
    """The invariant of residency, over every mix of residents and budgets."""
    verdict = admit("new", sizes, residents, budget, now_s=NOW_S)

    match verdict:
        case Go(evict=evict):
            by_key = {r.key: r for r in residents}
            assert all(by_key[key].leases == 0 for key in evict)
            assert not any(by_key[key].is_pinned or by_key[key].is_leaving for key in evict)
            gone = {r.key for r in residents if r.is_leaving} if evict else set()
            staying = [r for r in residents if r.key not in evict and r.key not in gone]
            total = together([sizes, *(r.sizes for r in staying)])
            if budget.memory_bytes is not None:
                assert sum(total.values()) <= budget.memory_bytes
            assert all(total.get(memory, 0) <= limit for memory, limit in budget.limits.items())
            if budget.max_loaded is not None:
                assert len(staying) < budget.max_loaded
        case Wait(blockers=blockers):
            assert blockers
            assert set(blockers) <= {r.key for r in residents}
        case Refuse():
            idle = [replace(r, leases=0) for r in residents if r.is_pinned]
            assert isinstance(admit("new", sizes, idle, budget, now_s=NOW_S), Refuse)


@given(any_sizes, residents_of_any_kind, budgets)
def test_admit_ends_in_go_or_refuse_once_everyone_is_idle_and_evicted_ones_are_gone(
    sizes: Sizes, residents: list[Resident], budget: Budget
) -> None:
    """No one waits for ever: with the victims gone it is admitted at once."""
    here = [replace(r, leases=0, is_leaving=False) for r in residents]
    verdict = admit("new", sizes, here, budget, now_s=NOW_S)

    assert not isinstance(verdict, Wait)
    if isinstance(verdict, Go):
        left = [r for r in here if r.key not in verdict.evict]
        assert admit("new", sizes, left, budget, now_s=NOW_S) == Go()


@given(any_sizes, residents_of_any_kind, budgets)
def test_admit_does_not_depend_on_the_order_of_residents(
    sizes: Sizes, residents: list[Resident], budget: Budget
) -> None:
    """Deterministic: who goes is decided by use and name alone."""
    one = admit("new", sizes, residents, budget, now_s=NOW_S)
    other = admit("new", sizes, residents[::-1], budget, now_s=NOW_S)

    if isinstance(one, Wait):
        assert isinstance(other, Wait)
        assert set(one.blockers) == set(other.blockers)
    else:
        assert one == other


def test_idle_due_names_those_whose_time_is_over_and_who_serve_nobody() -> None:
    """A lease holds it, and so does a stop that is under way."""
    residents = [
        replace(resident("due"), idle_until_s=5.0),
        replace(resident("later"), idle_until_s=5.1),
        replace(resident("serving", leases=1), idle_until_s=1.0),
        replace(resident("leaving", leaving=True), idle_until_s=1.0),
        resident("for ever"),
    ]

    assert idle_due(residents, now_s=5.0) == ("due",)
    assert next_due_s(residents) == 5.0


def test_next_due_of_nobody_is_never() -> None:
    """The fleet then sleeps until there is news."""
    assert math.isinf(next_due_s([]))


def test_admit_evicts_only_from_the_memory_that_is_short() -> None:
    """A model in RAM alone makes no room on a device, however long it was idle."""
    residents = [
        Resident("old in RAM", {RAM: 5}, 0, 0.0),
        Resident("on the device", {RAM: 1, "CUDA0": 8}, 0, 1.0),
    ]
    budget = Budget(None, None, {RAM: 20, "CUDA0": 10})

    assert admit("new", {RAM: 1, "CUDA0": 5}, residents, budget, now_s=NOW_S) == Go(
        ("on the device",)
    )
    assert admit("new", {RAM: 1, "CUDA0": 2}, residents, budget, now_s=NOW_S) == Go()


def test_refusal_says_which_memory_is_short() -> None:
    """The numbers of each memory, since more RAM would not help."""
    budget = Budget(None, None, {RAM: 99, "CUDA0": 10})
    verdict = admit("new", {RAM: 1, "CUDA0": 11}, [], budget, now_s=NOW_S)

    assert isinstance(verdict, Refuse)
    assert "needs 12 B (11 B of CUDA0, 1 B of RAM)" in verdict.reason
    assert "99 B of RAM and 10 B of CUDA0" in verdict.reason


@pytest.mark.parametrize(
    ("memories", "budget", "expected"),
    [
        ([RAM], Budget(None, None, {RAM: 20}), 10),
        (["CUDA0", "CUDA1"], Budget(None, None, {RAM: 20, "CUDA0": 9, "CUDA1": 7}), 12),
        ([RAM], Budget(15, None, {RAM: 20}), 1),
        ([RAM], Budget(15, None), 1),
        ([RAM], Budget(None, None, {RAM: 3}), 0),
    ],
)
def test_room_is_what_residents_leave(memories: list[str], budget: Budget, expected: int) -> None:
    """Of the memories named, and within the limit of all together."""
    residents = [Resident("a", {RAM: 10, "CUDA0": 4}, 0, 0.0)]

    assert room_bytes(memories, residents, budget) == expected
