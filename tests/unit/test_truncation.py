"""What is left out of a prompt that is too long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.ollama.truncation import (
    cut_around,
    cut_tokens,
    n_droppable,
    turn_cuts,
    without_oldest,
)

SYSTEM: dict[str, object] = {"role": "system", "content": "s"}
roles = st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=8)


def said(*roles_: str) -> list[dict[str, object]]:
    """Return messages of these roles, each with a content of its own."""
    return [{"role": role, "content": str(place)} for place, role in enumerate(roles_)]


def contents(messages: list[dict[str, object]]) -> str:
    """Return the contents side by side."""
    return "".join(str(message["content"]) for message in messages)


@pytest.mark.parametrize(
    ("count", "kept"),
    [(0, "01234"), (1, "0234"), (2, "034"), (3, "04"), (9, "04")],
)
def test_oldest_go_one_by_one_and_system_and_last_stay(count: int, kept: str) -> None:
    """The order of those that stay is unchanged."""
    messages = said("system", "user", "assistant", "user", "user")

    assert contents(without_oldest(messages, count)) == kept


@pytest.mark.parametrize(
    ("roles_", "cuts"),
    [
        ("user assistant user assistant user", [2, 4]),
        ("system user assistant user", [2]),
        ("user assistant tool assistant user", [4]),
        ("user user user", [1, 2]),
        ("assistant assistant assistant", [2]),
        ("user", []),
    ],
)
def test_turns_that_may_go_leave_a_users_message_first(roles_: str, cuts: list[int]) -> None:
    """Or only what stays in any case."""
    assert turn_cuts(said(*roles_.split())) == cuts


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 60))
def test_cut_around_a_gap_keeps_what_is_next_to_it(before: int, behind: int, room: int) -> None:
    """As much of both sides as there is room for."""
    prefix, suffix = list(range(before)), list(range(100, 100 + behind))

    end, start = cut_around(prefix, suffix, room=room)

    assert len(end) + len(start) == min(room, before + behind)
    assert list(end) == prefix[before - len(end) :]
    assert list(start) == suffix[: len(start)]


def test_oldest_skips_a_system_message_in_the_middle() -> None:
    """It is kept wherever it stands."""
    messages = said("user", "system", "user", "user")

    assert n_droppable(messages) == 2
    assert contents(without_oldest(messages, 2)) == "13"


@pytest.mark.parametrize("roles_", [(), ("user",), ("system",), ("system", "system", "user")])
def test_oldest_of_a_chat_with_nothing_to_spare_is_the_chat(roles_: tuple[str, ...]) -> None:
    """The last message and system messages are never left out."""
    messages = said(*roles_)

    assert n_droppable(messages) == 0
    assert without_oldest(messages, 5) == messages


@given(roles, st.integers(0, 10))
def test_oldest_leaves_out_as_many_as_asked_up_to_what_may_go(
    roles_: list[str], count: int
) -> None:
    """Nothing is added, reordered, or changed, and the input stays as it was."""
    messages = said(*roles_)

    kept = without_oldest(messages, count)

    assert messages == said(*roles_)
    assert len(messages) - len(kept) == min(count, n_droppable(messages))
    assert [message for message in messages if message in kept] == kept
    assert kept[-1:] == messages[-1:]


@pytest.mark.parametrize(
    ("n_ctx", "n_keep", "kept"),
    [
        (10, 4, [0, 1, 2, 3, 17, 18, 19]),
        (10, 0, [15, 16, 17, 18, 19]),
        (8, 2, [0, 1, 17, 18, 19]),
        (4, 99, [0, 1, 2]),
    ],
)
def test_cut_keeps_the_first_and_the_last_about_half_of_the_context(
    n_ctx: int, n_keep: int, kept: list[int]
) -> None:
    """Half of what is not kept at the front is free for the answer."""
    assert cut_tokens(range(20), n_ctx=n_ctx, n_keep=n_keep) == kept


@given(st.integers(1, 300), st.integers(4, 64), st.integers(0, 80))
def test_cut_of_what_is_too_long_fits_and_leaves_room_for_the_answer(
    more: int, n_ctx: int, n_keep: int
) -> None:
    """What stays is a beginning and an end of the tokens, each once, in order."""
    tokens = list(range(n_ctx + more))

    kept = cut_tokens(tokens, n_ctx=n_ctx, n_keep=n_keep)

    assert 0 < len(kept) < n_ctx
    assert kept == sorted(set(kept))
    n_first = min(n_keep, n_ctx - 1)
    assert kept[:n_first] == tokens[:n_first]
    n_last = len(kept) - n_first
    assert kept[n_first:] == tokens[len(tokens) - n_last :]


@pytest.mark.parametrize("n_keep", [-1, -5])
def test_cut_that_keeps_all_of_the_prompt_by_option_still_fits(n_keep: int) -> None:
    """A negative ``num_keep`` means the whole prompt; of one that is too long, what fits."""
    kept = cut_tokens(range(20), n_ctx=10, n_keep=n_keep)

    assert 0 < len(kept) < 10
    assert kept == sorted(set(kept))
