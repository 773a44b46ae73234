"""Every way in which two models with room for one can be asked for, to a depth."""

from dataclasses import replace

import pytest

from kvsup.residency import RAM, Budget, Resident
from kvsup.scheduling import STARVING_S
from tests.schedules import EVENTS, Model, World

DEPTH = 6
AB = {"a": Model({RAM: 6}, load_s=4.0), "b": Model({RAM: 6}, load_s=4.0)}
START = World(AB, Budget(10, None))


def situation(world: World) -> object:
    """Return what of a state decides how it goes on: times only by which side of a bound they are.

    Two states in the same situation are let run out once.
    """

    def of(one: Resident) -> object:
        is_over = world.now_s >= one.turn_since_s + one.turn_s
        has_lingered = world.now_s >= one.last_used_s + one.linger_s
        return one.key, one.leases, one.is_leaving, one.key in world.ready, is_over, has_lingered

    queue = [(t.key, world.now_s >= t.arrived_s + STARVING_S) for t in world.waiting]
    return tuple(queue), tuple(sorted(map(of, world.loaded), key=str)), world.failed


@pytest.mark.parametrize("seconds", [0.1, 3.0, 50.0])
def test_every_interleaving_of_two_models_with_room_for_one_keeps_its_promises(
    seconds: float,
) -> None:
    """Never over the budget, never a leased victim; from each state everyone is served.

    If one of the two never becomes ready from there, the other is served all the same.
    ``seconds`` lie between two events: within a turn, about as long as one, and longer than
    anyone's patience. The first two promises are held by ``World`` itself.
    """
    seen: set[object] = set()
    n_states = 0

    def go_on(world: World, depth: int) -> None:
        nonlocal n_states
        n_states += 1
        if (mark := situation(world)) not in seen:
            seen.add(mark)
            world.served_in_the_end(n_steps=40)
            world.others_served_though_it_dies("a", n_steps=40, seconds=25.0)
        if depth:
            later = world.after(seconds)
            for event in EVENTS:
                for key in AB:
                    if (following := getattr(later, event)(key)) is not None:
                        go_on(following, depth - 1)

    go_on(START, DEPTH)
    assert n_states > 10_000


def test_interleavings_reach_what_they_are_to_reach() -> None:
    """The tree of events is no tree of nothing: each kind of state is in it."""
    loading = START.arrive("a")
    assert loading is not None
    ready = loading.become_ready("a")
    assert ready is not None
    assert ready.resident("a") == replace(ready.loaded[0], leases=1)
    waiting = ready.arrive("b")
    assert waiting is not None
    assert [t.key for t in waiting.waiting] == ["b"]
    left = waiting.after(100.0).leave("a")
    assert left is not None
    assert left.loaded[0].is_leaving
    swapped = left.reap("a")
    assert swapped is not None
    assert [r.key for r in swapped.loaded] == ["b"]
