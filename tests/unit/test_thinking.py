"""Thinking parted from an answer, wherever its pieces are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.ollama.thinking import ThoughtSplitter


def _parted(pieces: list[str], *, prompt: str = "") -> tuple[str, str]:
    splitter = ThoughtSplitter(prompt=prompt)
    parts = [splitter.feed(piece) for piece in pieces]
    parts.append(splitter.finish())
    return "".join(thought for thought, _ in parts), "".join(content for _, content in parts)


@pytest.mark.parametrize(
    ("answer", "prompt", "thought", "content"),
    [
        ("Four.", "", "", "Four."),
        ("<think>\nTwo and two.\n</think>\n\nFour.", "", "Two and two.\n", "Four."),
        ("\n <think>a</think>b", "", "a", "b"),
        ("a <think>b</think>", "", "", "a <think>b</think>"),
        ("<think>a</think>", "", "a", ""),
        ("<think>a < b </thin k", "", "a < b </thin k", ""),
        ("<think>a</think>b</think>c", "", "a", "b</think>c"),
        ("a</think>b", "…<think>\n", "a", "b"),
        ("<thing>", "", "", "<thing>"),
        ("<thi", "", "", "<thi"),
        ("", "", "", ""),
    ],
)
def test_thought_is_what_stands_in_tags_at_the_start(
    answer: str, prompt: str, thought: str, content: str
) -> None:
    """As a whole, and letter by letter."""
    assert _parted([answer], prompt=prompt) == (thought, content)
    assert _parted(list(answer), prompt=prompt) == (thought, content)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", "a", " ", "\n", "b <"])),
    st.data(),
)
def test_thought_does_not_depend_on_where_pieces_are_cut(
    parts: list[str], data: st.DataObject
) -> None:
    """Whatever the model writes."""
    answer = "".join(parts)
    cut = data.draw(st.integers(0, len(answer)))

    assert _parted([answer[:cut], answer[cut:]]) == _parted([answer])
