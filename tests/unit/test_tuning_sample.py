"""The texts that pairs are judged by, before they are tokens."""

import pytest

from kvsup.errors import ConfigError
from kvsup.tuning.sample import (
    CHUNK_CHARACTERS,
    KINDS,
    Passage,
    Sample,
    built_in,
    chat_prompts,
    from_text,
)

PASSAGES = (
    Passage("prose", (1, 2, 3, 4, 5), 2),
    Passage("code", (6, 7, 8), 1),
    Passage("prose", (9, 10), 1),
)


def test_built_in_conversations_are_enough_and_end_with_an_answer() -> None:
    """At least 40, each with an answer of the assistant to score."""
    conversations = built_in()

    assert len(conversations) >= 40
    assert {conversation.messages[-1]["role"] for conversation in conversations} == {"assistant"}
    assert all(len(c.messages[-1]["content"]) > 300 for c in conversations)


def test_built_in_kinds_alternate_so_that_each_prefix_is_a_mixture() -> None:
    """The first four conversations are of four kinds, and so are the next."""
    kinds = [conversation.kind for conversation in built_in()]

    assert kinds[:8] == [*KINDS, *KINDS]


def test_built_in_tools_are_told_to_the_template_and_not_as_a_message() -> None:
    """A conversation with tools has them as OpenAI's API has them."""
    with_tools = [conversation for conversation in built_in() if conversation.tools]

    assert with_tools
    assert all(tool["type"] == "function" for c in with_tools for tool in c.tools)
    assert {m["role"] for c in with_tools for m in c.messages} == {"user", "assistant"}


def test_chat_prompts_are_thirty_different_ones_at_least() -> None:
    """Fewer say little of greedy answers."""
    prompts = chat_prompts()

    assert len(set(prompts)) == len(prompts) >= 30


def test_text_in_chunks_is_the_same_text() -> None:
    """Chunks end with lines, but for lines that are longer than a chunk."""
    text = "One line of many.\n" * 300 + "x" * 5000 + "\nlast\n"

    chunks = from_text(text)

    assert "".join(chunk.text for chunk in chunks) == text
    assert max(len(chunk.text) for chunk in chunks) <= CHUNK_CHARACTERS


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_text_that_is_blank_is_refused_before_anything_is_loaded(text: str) -> None:
    """There is nothing to score in white space; the message says what to write."""
    with pytest.raises(ConfigError, match=r"blank: write some hundred words"):
        from_text(text)


def test_first_tokens_of_a_sample_cut_the_last_passage() -> None:
    """A prefix has exactly as many scored tokens as asked for, where there are so many."""
    first = Sample(PASSAGES).first(4)

    assert first.passages == (PASSAGES[0], Passage("code", (6, 7), 1))
    assert first.blocks == (3, 1)


def test_first_tokens_of_a_shorter_sample_are_all_of_it() -> None:
    """Nothing is made up."""
    assert Sample(PASSAGES).first(1000) == Sample(PASSAGES)


def test_torn_tokens_part_what_is_scored_and_do_not_count() -> None:
    """A part of a character is read, but neither scored nor in the blocks."""
    passage = Passage("text", (1, 2, 3, 4, 5, 6, 7), 1, torn=(2, 3, 6))

    assert passage.runs == (range(1, 2), range(4, 6))
    assert passage.scored == (1, 4, 5)
    assert Sample((passage, PASSAGES[1])).blocks == (3, 2)
    assert Sample((passage, PASSAGES[1])).n_torn == 3


def test_first_tokens_of_a_sample_end_with_a_scored_one() -> None:
    """Torn tokens before the cut stay, and those behind it go with their tokens."""
    passage = Passage("text", (1, 2, 3, 4, 5, 6, 7), 1, torn=(2, 3, 6))

    assert Sample((passage,)).first(2) == Sample(
        (Passage("text", (1, 2, 3, 4, 5), 1, torn=(2, 3)),)
    )


def test_digest_of_a_sample_changes_with_what_is_scored() -> None:
    """The same tokens with another scored span are another sample."""
    later = (Passage("prose", (1, 2, 3, 4, 5), 3), *PASSAGES[1:])
    torn = (Passage("prose", (1, 2, 3, 4, 5), 2, torn=(3,)), *PASSAGES[1:])

    assert len({Sample(passages).digest for passages in (PASSAGES, later, torn)}) == 3
