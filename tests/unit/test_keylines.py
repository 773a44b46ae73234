"""Where each key of a TOML text stands."""

import pytest

from kvsup.keylines import item_lines, key_lines


def test_key_lines_of_a_whole_file_are_found_for_keys_tables_and_nested_tables() -> None:
    """Comments, blank lines and values do not count; keys below a table carry its name."""
    text = """# a model
name = "m"

  model = "m.gguf"  # a comment = none
[options]
temperature = 0.5
[restart]  # [no.table]
policy = "never"

[variants.agent]
num_ctx = 8192
[variants.agent.options]
temperature = 0
"""

    assert key_lines(text) == {
        "name": 2,
        "model": 4,
        "options": 5,
        "options.temperature": 6,
        "restart": 7,
        "restart.policy": 8,
        "variants.agent": 10,
        "variants.agent.num_ctx": 11,
        "variants.agent.options": 12,
        "variants.agent.options.temperature": 13,
    }


def test_key_lines_of_dotted_and_quoted_keys_are_plain() -> None:
    """A key is the same however it is written."""
    text = "options.top_k = 1\n\"num_ctx\" = 2\n[variants.'chat'] \nrestart . policy = 1\n"

    assert key_lines(text) == {
        "options.top_k": 1,
        "num_ctx": 2,
        "variants.chat": 3,
        "variants.chat.restart.policy": 4,
    }


@pytest.mark.parametrize("fence", ['"""', "'''"])
def test_key_lines_inside_a_text_of_many_lines_are_no_keys(fence: str) -> None:
    """What looks like a key inside a system prompt is none."""
    text = f"system = {fence}\nnum_ctx = 1\n[options]\n{fence}\nnum_ctx = 2\n"

    assert key_lines(text) == {"system": 1, "num_ctx": 5}


def test_key_lines_after_a_text_of_many_lines_on_one_line_go_on() -> None:
    """A fenced text that ends on its own line hides nothing."""
    assert key_lines('system = """one"""\nnum_ctx = 2\n') == {"system": 1, "num_ctx": 2}


def test_key_lines_of_a_key_that_comes_twice_are_the_first() -> None:
    """Arrays of tables repeat a header; the first one is pointed at."""
    assert key_lines("[[a]]\nb = 1\n[[a]]\nb = 2\n") == {"a": 1, "a.b": 2}


def test_item_lines_of_an_array_over_many_lines_are_those_of_its_tables() -> None:
    """Brackets in texts and comments do not count, nor does an array within a table."""
    text = """model = "a[{"
fallback = [
  { num_ctx = 4096 }, # [ {
  { a = "{", b = [1, 2],
    c = 2 },
]
num_ctx = 3
"""

    assert item_lines(text) == {"fallback.1": 3, "fallback.2": 4, "num_ctx": 7}


def test_item_lines_of_an_array_on_one_line_are_that_line() -> None:
    """As most people write it."""
    assert item_lines("a = 1\nb = [{ c = 1 }, { c = 2 }]\n") == {"b.1": 2, "b.2": 2}


def test_item_lines_of_tables_with_headers_have_their_keys() -> None:
    """Each header begins the next one; a variant's come below its name."""
    text = "[[a]]\nb = 1\n[[a]]\nb = 2\n[[variants.v.a]]\nc = 3\n"

    assert item_lines(text) == {
        "a.1": 1,
        "a.1.b": 2,
        "a.2": 3,
        "a.2.b": 4,
        "variants.v.a.1": 5,
        "variants.v.a.1.c": 6,
    }


def test_item_lines_inside_a_text_of_many_lines_are_none() -> None:
    """A system prompt may hold anything."""
    assert item_lines('system = """\n[[a]]\nb = [{}]\n"""\n') == {}
