"""Who is served next: ranks, turns, claims, and what bounds a wait."""

import math
from dataclasses import replace

import pytest

from kvsup.residency import RAM, Budget
from kvsup.scheduling import PRIORITY_S, STARVING_S, Ticket
from tests.schedules import Model, World

ONE = Budget(10, None)
AB = {"a": Model({RAM: 6}, load_s=4.0), "b": Model({RAM: 6}, load_s=4.0)}


def sure(world: World | None) -> World:
    """Return the world after an event that must have been possible."""
    assert world is not None
    return world


def serving(world: World, key: str) -> World:
    """Return the world with ``key`` loaded, ready and idle."""
    return sure(sure(sure(world.arrive(key)).become_ready(key)).leave(key))


def keys_of(tickets: tuple[Ticket, ...]) -> list[str]:
    """Return what tickets are for, in their order."""
    return [ticket.key for ticket in tickets]


def test_ready_model_with_a_free_slot_serves_whatever_waits_before() -> None:
    """Neither a queue for another slot nor one for another model is in its way."""
    models = {**AB, "c": Model({RAM: 3}, n_slots=2)}
    world = serving(World(models, Budget(10, None)), "c")
    world = sure(world.arrive("a"))
    world = sure(world.arrive("b"))
    for _ in range(3):
        world = sure(world.arrive("a"))

    world = sure(world.arrive("c"))

    assert keys_of(world.running) == ["a", "c"]
    assert keys_of(world.waiting) == ["b", "a", "a", "a"]


def test_model_in_its_turn_serves_all_who_wait_for_it_then_the_other_has_its_turn() -> None:
    """Requests that alternate cost two loads, not one each."""
    world = World(AB, ONE)
    for key in "abababab":
        world = sure(world.arrive(key))
    world = sure(world.become_ready("a"))

    for _ in range(4):
        assert keys_of(world.running) == ["a"]
        world = sure(world.after(0.1).leave("a"))
    world = world.after(world.again_s - world.now_s)  # it lingers a moment, for who comes again

    assert world.loaded[0].is_leaving
    world = sure(sure(world.reap("a")).become_ready("b"))
    assert keys_of(world.running) == ["b"]
    assert keys_of(world.waiting) == ["b"] * 3


def test_turn_that_is_over_gives_the_place_to_who_waits_for_it() -> None:
    """What comes later for the model that is loaded waits, so that it becomes idle."""
    world = sure(sure(World(AB, ONE).arrive("a")).become_ready("a"))
    world = sure(sure(world.arrive("b")).arrive("a"))
    assert keys_of(world.waiting) == ["b", "a"]
    world = world.after(world.loaded[0].turn_s)

    world = sure(world.leave("a"))

    assert world.loaded[0].is_leaving
    assert keys_of(world.waiting) == ["b", "a"]


@pytest.mark.parametrize("load_s", [0.1, 30.0, 600.0])
def test_stream_of_requests_for_one_model_starves_no_other(load_s: float) -> None:
    """Two slots are never both idle, requests overlap; the other waits a turn and one request."""
    models = {"a": Model({RAM: 6}, n_slots=2, load_s=load_s), "b": Model({RAM: 6})}
    world = sure(sure(World(models, ONE).arrive("a")).become_ready("a"))
    world = sure(world.arrive("b"))
    turn_s = world.loaded[0].turn_s
    since_s = world.now_s

    for _ in range(100):
        if world.loaded[0].is_leaving:
            break
        world = sure(world.arrive("a"))
        world = sure(world.after(1.0).leave("a"))

    assert world.loaded[0].is_leaving
    assert world.now_s - since_s <= turn_s + 2.0


def test_stream_of_small_models_does_not_keep_a_large_one_out() -> None:
    """They may take the room that is free while it waits, but not for longer than its patience."""
    small = {f"small{i}": Model({RAM: 3}, load_s=1.0) for i in range(9)}
    world = World({**small, "large": Model({RAM: 10})}, ONE)
    world = sure(sure(world.arrive("small0")).become_ready("small0"))
    world = sure(world.arrive("large"))
    arrived_s = world.now_s

    for step in range(1, 200):
        world = world.after(1.0)
        for key in small:
            world = world.reap(key) or world
            world = world.become_ready(key) or world
        if step % 3 == 0 and world.running:
            world = sure(world.leave(world.running[0].key))
        world = world.arrive(f"small{step % 9}") or world
        if world.resident("large"):
            break

    assert world.resident("large")
    assert world.now_s - arrived_s <= STARVING_S + 60.0


def test_one_that_starves_closes_even_calls_without_a_slot() -> None:
    """Calls that take no slot pass a claim, or a monitor would wait for a model that leaves."""
    world = sure(sure(World(AB, ONE).arrive("a")).become_ready("a"))
    world = sure(world.arrive("b")).after(10.0)
    world = sure(world.arrive("a", slots=0))
    assert keys_of(world.waiting) == ["b"]

    world = world.after(STARVING_S)

    assert keys_of(sure(world.arrive("a", slots=0)).waiting) == ["b", "a"]


def test_priority_is_a_head_start_in_the_queue() -> None:
    """Higher first, but only before those that came within that time."""
    world = sure(sure(World({"a": Model({RAM: 6})}, ONE).arrive("a")).become_ready("a"))
    world = sure(world.arrive("a"))
    early = world.waiting[0].number
    soon = sure(world.after(PRIORITY_S - 1).arrive("a", priority=1))
    late = sure(world.after(PRIORITY_S + 1).arrive("a", priority=1))

    assert sure(soon.leave("a")).running[0].number != early
    assert sure(late.leave("a")).running[0].number == early


def test_priority_decides_which_model_is_loaded_first() -> None:
    """For memory as for slots."""
    models = {**AB, "c": replace(AB["a"], priority=2)}
    world = sure(sure(World(models, ONE).arrive("a")).become_ready("a"))
    world = sure(sure(world.arrive("b")).arrive("c")).after(5.0)

    world = sure(sure(world.leave("a")).reap("a"))

    assert [r.key for r in world.loaded] == ["c"]


def test_weight_is_the_length_of_a_turn() -> None:
    """Of two models that contend one may be given more of the time."""
    models = {"a": replace(AB["a"], weight=3.0), "b": AB["b"]}
    world = serving(World(models, ONE), "a")

    assert world.loaded[0].turn_s == 12.0


def test_claim_takes_as_few_as_make_room() -> None:
    """Of two busy models only one must become idle; the other goes on serving."""
    models = {key: Model({RAM: 4}, n_slots=2) for key in "abc"}
    world = World(models, ONE)
    for key in "ab":
        world = sure(sure(world.arrive(key)).become_ready(key))
    world = sure(world.after(5.0).arrive("c"))

    for key in "ab":
        world = sure(world.arrive(key))

    assert keys_of(world.waiting) == ["c", "a"]
    assert keys_of(world.running) == ["a", "b", "b"]


def test_schedule_of_nothing_that_waits_is_looked_at_no_more() -> None:
    """No timer runs while nobody waits for a model that is not loaded."""
    world = serving(World(AB, ONE), "a")

    assert math.isinf(world.again_s)
    assert sure(world.arrive("b")).again_s > world.now_s
