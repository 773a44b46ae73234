"""Which instance serves a name and what a request asks for; no process is started here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.config import ModelConfig
from kvsup.errors import ModelNotFound, RequestError
from kvsup.fitting import NOTHING, Asked
from kvsup.gguf import Metadata, Value
from kvsup.kvtypes import STOCK_TYPES
from kvsup.lifecycle import Lifecycle, State
from kvsup.llama.binary import Binary
from kvsup.modelfile import ModelFile
from kvsup.modelshape import shape_of
from kvsup.plan import Plan, make_plan
from kvsup.runtime.instance import Instance
from kvsup.runtime.roster import Roster

BINARY = Binary("/bin/llama-server", "0.6.0", 11434, STOCK_TYPES, frozenset(), ())
MODEL = ModelConfig(name="m", model="/m.gguf", num_ctx=1024)
KEYS: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
}

wishes = st.builds(
    Asked,
    kv_cache_type=st.sampled_from([None, "f16", "q8_0", "q8_0:q4_0"]),
    num_ctx=st.none() | st.integers(1, 10_000),
    num_batch=st.none() | st.integers(1, 600),
    num_gpu=st.none() | st.integers(-1, 40),
    num_thread=st.none() | st.integers(0, 8),
    main_gpu=st.none() | st.integers(0, 2),
    use_mmap=st.none() | st.booleans(),
)
settings_of_files = st.builds(
    ModelConfig,
    name=st.just("m"),
    model=st.just("/m.gguf"),
    num_ctx=st.integers(4, 10_000),
    batch_size=st.none() | st.integers(1, 600),
    gpu_layers=st.none() | st.integers(0, 40),
    threads=st.none() | st.integers(1, 8),
    on_bigger_request=st.sampled_from(["reload", "clamp"]),
    embedding=st.sampled_from(["auto", "on"]),
)


def plan_of(model: ModelConfig = MODEL, binary: Binary = BINARY) -> Plan:
    """Return the plan of a model."""
    metadata = Metadata(3, KEYS, ())
    file = ModelFile(metadata, shape_of(metadata), 135_000_000, 90 << 20, 1, "stamp")
    return make_plan(model, binary, file, inherited={}, run_dir="/run/kvsup/0123456789ab")


def made(plan: Plan, *, is_trial: bool) -> Instance:
    """Return an instance that nobody runs."""
    return Instance(plan, emit=lambda _event: None, on_change=lambda: None, is_trial=is_trial)


@dataclass
class Served:
    """A roster, and what a fleet with room for everything would have loaded from it."""

    plans: Sequence[Plan] = field(default_factory=lambda: [plan_of()])
    resident: dict[str, Instance] = field(default_factory=dict)
    n_loads: int = 0

    def __post_init__(self) -> None:
        self.roster = Roster(self.plans, make=made)

    def choose(self, asked: Asked = NOTHING, name: str = "m") -> Instance:
        """Return what is to serve a request."""
        return self.roster.choose(name, asked, resident=self.resident)

    def serve(self, asked: Asked = NOTHING, name: str = "m", *, drains: bool = False) -> Instance:
        """Load what is to serve a request, in the place of the smaller one, and return it.

        With ``drains`` the smaller one still ends a stream when this returns.
        """
        chosen = self.choose(asked, name)
        if chosen.key not in self.resident or chosen.is_leaving:
            self.n_loads += 1
            chosen.prepare()
            self.resident[chosen.key] = chosen
            for old in [i for i in self.resident.values() if _is_other_size(i, chosen)]:
                old.stop("a request asked for more than it has")
                if not drains:
                    self.unload(old)
        return chosen

    def unload(self, instance: Instance) -> None:
        """Let a process be gone, with nobody waiting."""
        del self.resident[instance.key]
        self.roster.forget(unless=self.resident.keys())


def _is_other_size(instance: Instance, chosen: Instance) -> bool:
    mine, its = instance.plan.model, chosen.plan.model
    same = (mine.name, mine.kv_cache_type) == (its.name, its.kv_cache_type)
    return same and instance is not chosen


@settings(max_examples=300)
@given(settings_of_files, st.lists(wishes, min_size=2, max_size=3), st.booleans())
def test_choose_for_clients_that_were_served_once_loads_nothing_more(
    model: ModelConfig,
    asked: list[Asked],
    drains: bool,  # noqa: FBT001 - hypothesis gives it by position
) -> None:
    """Clients whose load-time options differ in any way never make each other reload."""
    now = Served([plan_of(model)])
    for each in asked:
        now.serve(each, drains=drains)
    n_loads = now.n_loads

    for each in asked * 2:
        now.serve(each, drains=drains)

    assert now.n_loads == n_loads


def test_choose_for_nothing_is_the_catalogues() -> None:
    """A name without wishes is what it always was."""
    now = Served()

    assert now.choose() is now.roster.instance("m")
    assert now.choose(Asked(num_ctx=1024)) is now.roster.instance("M:latest")


def test_choose_of_an_unknown_name_is_refused_whatever_it_asks_for() -> None:
    """A wish does not make a model."""
    with pytest.raises(ModelNotFound, match="'nope'"):
        Served().choose(Asked(num_ctx=1), "nope")


def test_choose_twice_for_the_same_is_one_instance() -> None:
    """Whoever asks for the same waits for the same load."""
    now = Served()
    asked = Asked(num_ctx=2048, kv_cache_type="q8_0:q5_1")

    assert now.choose(asked) is now.choose(asked)
    assert now.roster.siblings("m") == [now.roster.instance("m"), now.choose(asked)]


def test_choose_by_an_alias_finds_what_another_asked_for_by_name() -> None:
    """Names of one model share what was derived from it."""
    now = Served([plan_of(msgspec.structs.replace(MODEL, aliases=("other",)))])
    larger = now.serve(Asked(num_ctx=2048))

    assert now.choose(NOTHING, "OTHER") is larger


def test_choose_for_less_while_the_larger_one_serves_is_the_larger_one() -> None:
    """Nobody makes it smaller again while it is loaded."""
    now = Served()
    now.serve()

    larger = now.serve(Asked(num_ctx=2048))

    assert larger.plan.model.num_ctx == 2048
    assert now.choose() is now.choose(Asked(num_ctx=10)) is larger


def test_choose_after_the_larger_one_unloaded_is_the_files() -> None:
    """Growth lasts as long as the process."""
    now = Served()

    now.unload(now.serve(Asked(num_ctx=2048)))

    assert now.choose() is now.roster.instance("m")
    assert now.roster.instances() == [now.roster.instance("m")]


def test_choose_while_the_middle_one_of_three_drains_is_the_largest() -> None:
    """What was superseded serves nobody new: who asks for less would wait for its last stream."""
    now = Served()
    now.serve()
    now.serve(Asked(num_ctx=2048))

    largest = now.serve(Asked(num_ctx=4096), drains=True)

    assert now.choose() is largest
    assert now.choose(Asked(num_ctx=2048)) is largest


def test_choose_for_another_option_while_the_middle_one_drains_builds_on_the_largest() -> None:
    """What the largest has is kept when it grows in another direction."""
    now = Served([plan_of(msgspec.structs.replace(MODEL, batch_size=64))])
    now.serve(Asked(num_ctx=2048))
    now.serve(Asked(num_batch=128), drains=True)

    model = now.serve(Asked(num_ctx=4096), drains=True).plan.model

    assert (model.num_ctx, model.batch_size) == (4096, 128)


def test_choose_of_a_small_batch_before_the_load_is_what_the_file_would_give() -> None:
    """What the file leaves open has a size too, and it is the least that anyone is served with."""
    now = Served()
    usual = now.roster.instance("m").plan.model.batch_size
    assert usual is not None

    now.serve(Asked(num_batch=2))

    batch = now.choose().plan.model.batch_size
    assert batch is not None
    assert batch >= usual


def test_choose_of_other_types_is_an_instance_beside() -> None:
    """Pairs have no order: each has a process, and grows by itself."""
    now = Served()
    base = now.serve()

    other = now.serve(Asked(kv_cache_type="q8_0:q5_1"))
    grown = now.serve(Asked(kv_cache_type="q8_0:q5_1", num_ctx=2048))

    assert str(other.plan.model.kv_cache_type) == "q8_0:q5_1"
    assert other.plan.model.num_ctx == 1024
    assert grown.plan.model.num_ctx == 2048
    assert now.choose() is base
    assert now.choose(Asked(kv_cache_type="f16")) is base
    assert now.choose(Asked(kv_cache_type="q8_0:q5_1")) is grown
    assert len({i.plan.socket for i in (base, other, grown)}) == 3
    assert len({i.plan.digest for i in (base, other, grown)}) == 1


def test_choose_of_other_types_is_never_pinned_but_a_larger_one_is() -> None:
    """A pin is for what the file says; a request cannot take memory for ever."""
    now = Served([plan_of(msgspec.structs.replace(MODEL, pin=True))])

    assert now.choose(Asked(num_ctx=2048)).plan.model.pin
    assert not now.choose(Asked(kv_cache_type="q8_0")).plan.model.pin


def test_choose_that_is_refused_leaves_nothing() -> None:
    """A wrong wish makes no instance."""
    now = Served([plan_of(msgspec.structs.replace(MODEL, on_bigger_request="refuse"))])

    for asked in (Asked(num_ctx=2048), Asked(kv_cache_type="q9_9")):
        with pytest.raises(RequestError):
            now.choose(asked)

    assert now.roster.instances() == [now.roster.instance("m")]


def test_choose_after_the_larger_one_failed_is_the_files_for_less_and_it_for_as_much() -> None:
    """What cannot run is kept to be known, and stands in nobody else's way."""
    now = Served()
    base = now.serve()
    failed = now.serve(Asked(num_ctx=2048))
    failed.failure = "no memory"

    now.unload(failed)

    assert now.choose() is base
    assert now.choose(Asked(num_ctx=2048)) is failed


def test_choose_of_what_failed_a_minute_ago_is_a_new_try() -> None:
    """Memory that was short may be free by then."""
    now = Served()
    failed = now.serve(Asked(num_ctx=2048))
    failed.failure = "no memory"
    failed._life = Lifecycle(State.FAILED, time.monotonic() - 61)
    now.unload(failed)

    assert now.choose(Asked(num_ctx=2048)) is not failed


def test_choose_after_many_different_failures_does_not_keep_them_all() -> None:
    """A client that asks for another impossible size each time must not fill the memory."""
    now = Served()
    for num_thread in range(1, 200):
        failed = now.serve(Asked(num_thread=num_thread))
        failed.failure = "no memory"
        now.unload(failed)

    assert len(now.roster.instances()) < 100


def test_forget_keeps_what_is_waited_for() -> None:
    """Between a request and its load nothing but the queue holds an instance."""
    now = Served()
    larger = now.choose(Asked(num_ctx=2048))

    now.roster.forget(unless={larger.key})
    assert larger in now.roster.instances()
    now.roster.forget(unless=())

    assert now.roster.instances() == [now.roster.instance("m")]


def test_drop_of_what_cannot_be_loaded_makes_room_for_the_files() -> None:
    """A refused growth is forgotten in the same step."""
    now = Served()

    now.roster.drop(now.choose(Asked(num_ctx=2048)))

    assert now.choose() is now.roster.instance("m")


def test_drop_of_the_catalogues_changes_nothing() -> None:
    """Only derived ones can be dropped."""
    now = Served()

    now.roster.drop(now.roster.instance("m"))

    assert now.choose() is now.roster.instance("m")


def test_replace_with_the_same_keeps_what_was_derived() -> None:
    """A reload without an edit is nothing."""
    now = Served()
    larger = now.serve(Asked(num_ctx=2048))

    changes = now.roster.replace([plan_of()])

    assert changes.retired == ()
    assert now.choose() is larger


@pytest.mark.parametrize("after", [[], [MODEL.num_ctx * 2]])
def test_replace_of_a_changed_or_removed_model_retires_what_was_derived(after: list[int]) -> None:
    """Derived settings are those of the file that was."""
    now = Served()
    base = now.serve()
    other = now.serve(Asked(kv_cache_type="q8_0"))

    changes = now.roster.replace(
        [plan_of(msgspec.structs.replace(MODEL, num_ctx=n)) for n in after]
    )

    assert set(changes.retired) == {base, other}
    assert other not in now.roster.instances()


def test_replace_of_another_model_keeps_what_was_derived() -> None:
    """An edit of one file touches no other model."""
    second = msgspec.structs.replace(MODEL, name="n")
    now = Served([plan_of(), plan_of(second)])
    larger = now.serve(Asked(num_ctx=2048))

    now.roster.replace([plan_of(), plan_of(msgspec.structs.replace(second, num_ctx=8))])

    assert now.choose() is larger


def test_replace_by_another_build_of_the_same_binary_retires_what_was_derived() -> None:
    """The model's own process is replaced, its larger one with the old arguments must go too."""
    now = Served()
    larger = now.serve(Asked(num_ctx=2048))
    newer = msgspec.structs.replace(BINARY, flags=frozenset({"--no-ui"}))

    changes = now.roster.replace([plan_of(binary=newer)])

    assert larger in changes.retired


def test_replace_ends_the_failure_of_what_was_derived_with_an_edit() -> None:
    """After an edit it may work."""
    now = Served()
    failed = now.choose(Asked(num_ctx=2048))
    failed.failure = "no memory"

    now.roster.replace([plan_of(msgspec.structs.replace(MODEL, env={"A": "b"}))])

    again = now.choose(Asked(num_ctx=2048))
    assert again is not failed
    assert again.failure is None


def test_siblings_are_of_one_model_only() -> None:
    """``kvsup stop NAME`` reaches every instance of the name, and none of another."""
    now = Served([plan_of(), plan_of(msgspec.structs.replace(MODEL, name="n"))])
    mine = [now.serve(), now.serve(Asked(kv_cache_type="q8_0"))]
    now.serve(Asked(num_ctx=2048), "n")

    assert now.roster.siblings("m") == mine


def test_plan_of_a_derived_instance_keeps_the_environment_and_the_folder() -> None:
    """It differs in its settings alone."""
    plan = replace(plan_of(), environment={"A": "b"})
    now = Served([plan])
    larger = now.choose(Asked(num_ctx=2048)).plan

    assert (larger.environment, larger.run_dir) == (plan.environment, plan.run_dir)
    assert (larger.binary, larger.file) == (plan.binary, plan.file)
