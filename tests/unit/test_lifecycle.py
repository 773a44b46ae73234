"""The table of states."""

from itertools import product

import pytest

from kvsup.lifecycle import ALIVE, TRANSITIONS, Lifecycle, State


@pytest.mark.parametrize(("old", "new"), list(product(State, State)))
def test_enter_takes_exactly_the_listed_edges(old: State, new: State) -> None:
    """An unlisted edge is a bug, and changes nothing."""
    life = Lifecycle(old, since_s=10.0)

    if new in TRANSITIONS[old]:
        assert life.enter(new, now_s=12.5) == 2.5
        assert (life.state, life.since_s) == (new, 12.5)
    else:
        with pytest.raises(ValueError, match=f"no edge from {old.value} to {new.value}"):
            life.enter(new, now_s=12.5)
        assert (life.state, life.since_s) == (old, 10.0)


@pytest.mark.parametrize("goal", [State.STOPPED, State.READY])
@pytest.mark.parametrize("start", State)
def test_transitions_reach_stopped_and_ready_from_every_state(start: State, goal: State) -> None:
    """No state is a trap: all can end, and all can serve again."""
    reached = {start}
    while new := set().union(*(TRANSITIONS[state] for state in reached)) - reached:
        reached |= new

    assert goal in reached


def test_transitions_list_every_state_once_and_no_edge_to_itself() -> None:
    """A state that is entered from itself would lose its clock."""
    assert set(TRANSITIONS) == set(State)
    assert all(state not in following for state, following in TRANSITIONS.items())


def test_alive_states_end_only_through_a_reap() -> None:
    """A process that lives is never simply forgotten: STOPPED follows only a stop or a drain."""
    ways = {state for state in ALIVE if State.STOPPED in TRANSITIONS[state]}

    assert ways <= {State.STOPPING, State.DRAINING}
