"""Any models, any budget, any order of events: the promises of the scheduler hold."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kvsup.residency import RAM, Budget
from tests.schedules import EVENTS, Model, World

KEYS = "abcd"

models = st.builds(
    Model,
    sizes=st.fixed_dictionaries({RAM: st.integers(1, 8)}, optional={"CUDA0": st.integers(1, 8)}),
    n_slots=st.integers(1, 3),
    load_s=st.sampled_from([0.1, 3.0, 30.0, 300.0]),
    weight=st.sampled_from([0.1, 1.0, 4.0]),
    priority=st.integers(-3, 3),
    is_pinned=st.sampled_from([False, False, False, True]),
)
budgets = st.builds(
    Budget,
    memory_bytes=st.none() | st.integers(4, 20),
    max_loaded=st.none() | st.integers(1, 3),
    limits=st.fixed_dictionaries(
        {}, optional={RAM: st.integers(4, 16), "CUDA0": st.integers(2, 9)}
    ),
)


class Machine(RuleBasedStateMachine):
    """One world that anything may happen to; ``World`` holds what must never be."""

    world: World

    @initialize(each=st.lists(models, min_size=2, max_size=4), budget=budgets)
    def begin(self, each: list[Model], budget: Budget) -> None:
        """Configure two to four models."""
        self.world = World(dict(zip(KEYS, each, strict=False)), budget)

    @rule(key=st.sampled_from(KEYS), slots=st.integers(0, 3), priority=st.integers(-10, 10))
    def arrive(self, key: str, slots: int, priority: int) -> None:
        """A request comes, for as many slots as its model has at most."""
        if key in self.world.models:
            slots = min(slots, self.world.models[key].n_slots)
            self.world = self.world.arrive(key, slots=slots, priority=priority) or self.world

    @rule(key=st.sampled_from(KEYS), event=st.sampled_from(EVENTS[1:]))
    def happen(self, key: str, event: str) -> None:
        """Anything else happens to a model, where it can."""
        if key in self.world.models:
            self.world = getattr(self.world, event)(key) or self.world

    @rule(seconds=st.sampled_from([0.01, 0.5, 2.0, 10.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        """Time goes on."""
        self.world = self.world.after(seconds)

    @precondition(lambda self: self.world.again_s < float("inf"))
    @rule()
    def look_again(self) -> None:
        """The fleet looks again when it was told to."""
        self.world = self.world.after(self.world.again_s - self.world.now_s)

    def teardown(self) -> None:
        """Nobody waits for ever, whatever has happened before."""
        if hasattr(self, "world"):
            self.world.served_in_the_end(n_steps=200)
            self.world.first_served_though_others_come(n_steps=400, seconds=10.0)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestScheduler = Machine.TestCase
