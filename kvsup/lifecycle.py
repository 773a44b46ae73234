"""The states of an instance and the edges between them: one table, and the clock of each state.

Only ``Instance.run()`` enters states; everyone else reads. A picture of the table is in
``docs/architecture.md``, held to it by a test.
"""

from dataclasses import dataclass, field
from enum import Enum


class State(str, Enum):
    """What an instance is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.STARTING}),
    State.STARTING: frozenset({State.LOADING, State.BACKOFF, State.FAILED, State.STOPPED}),
    State.LOADING: frozenset({State.READY, State.STOPPING, State.BACKOFF, State.FAILED}),
    State.READY: frozenset({State.DRAINING, State.BACKOFF, State.FAILED}),
    State.DRAINING: frozenset({State.STOPPING, State.BACKOFF, State.FAILED, State.STOPPED}),
    State.STOPPING: frozenset({State.STOPPED}),
    State.BACKOFF: frozenset({State.STARTING, State.STOPPED}),
    State.FAILED: frozenset({State.STOPPED}),
}
"""From each state to those that may follow; an edge that is not here is a bug."""

ALIVE = frozenset({State.LOADING, State.READY, State.DRAINING, State.STOPPING})
"""States in which a process exists."""

AFTER_LOAD = frozenset({State.READY, State.BACKOFF})
"""States to which a load leads that nobody ended, and that is not given up."""


@dataclass(slots=True)
class Lifecycle:
    """The current state and since when; ``enter`` refuses an unlisted edge and changes nothing."""

    state: State = State.STOPPED
    since_s: float = field(default=0.0)

    def enter(self, state: State, *, now_s: float) -> float:
        """Move to ``state`` and return the seconds spent in the one before.

        Raises:
            ValueError: the table has no such edge.
        """
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"no edge from {self.state.value} to {state.value}")
        spent_s = now_s - self.since_s
        self.state, self.since_s = state, now_s
        return spent_s
