"""Model names by Ollama's grammar."""

import pytest

from kvsup.ollama.names import display_name, full_name, lookup_keys, quoted, valid_name


@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        "Qwen3:8b",
        "a/b",
        "h.io:443/a/b:t",
        "_x",
        "x:local",
        " x ",
        "https://h/a/b",
        "a" * 80,
    ],
)
def test_valid_name_within_grammar_holds(name: str) -> None:
    """Host, namespace and tag are optional; case is free."""
    assert valid_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x:",
        ":x",
        "x/",
        "/x",
        "a/b/c/d",
        "x@sha256:1",
        "a b",
        "é",
        "-x",
        "a.b/c",
        "a" * 81,
        "x:y:z",
    ],
)
def test_valid_name_outside_grammar_fails(name: str) -> None:
    """A promised but empty part, a foreign character or too much length makes a name invalid."""
    assert not valid_name(name)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("qwen3", "qwen3:latest"),
        ("qwen3:8B", "qwen3:8B"),
        ("library/qwen3", "qwen3:latest"),
        ("me/qwen3:x", "me/qwen3:x"),
        ("registry.ollama.ai/library/qwen3", "qwen3:latest"),
        ("hf.co/me/qwen3", "hf.co/me/qwen3:latest"),
        ("hf.co/library/qwen3", "hf.co/library/qwen3:latest"),
        ("qwen3:local", "qwen3:latest"),
    ],
)
def test_display_name_any_spelling_is_shortest_with_tag(name: str, shown: str) -> None:
    """Defaults are left out, the tag never."""
    assert display_name(name) == shown


def test_display_name_invalid_raises() -> None:
    """What is no name has no form."""
    with pytest.raises(ValueError, match="no model name"):
        display_name("a b")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("Qwen3", ("qwen3:latest", "qwen3")),
        ("qwen3:LATEST", ("qwen3:latest", "qwen3")),
        ("Qwen3:8b", ("qwen3:8b",)),
        ("qwen3:8b:local", ("qwen3:8b",)),
        ("a b", ()),
    ],
)
def test_lookup_keys_any_spelling_ignore_case_and_default_tag(
    name: str, keys: tuple[str, ...]
) -> None:
    """``qwen3`` and ``Qwen3:latest`` find the same model."""
    assert lookup_keys(name) == keys


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("qwen3", "registry.ollama.ai/library/qwen3:latest"),
        ("Qwen3:8B", "registry.ollama.ai/library/Qwen3:8B"),
        ("me/qwen3", "registry.ollama.ai/me/qwen3:latest"),
        ("hf.co/me/qwen3:q4", "hf.co/me/qwen3:q4"),
        ("hf.co/library/qwen3", "hf.co/library/qwen3:latest"),
        ("registry.ollama.ai/library/qwen3:x", "registry.ollama.ai/library/qwen3:x"),
        (" qwen3:local ", "registry.ollama.ai/library/qwen3:latest"),
    ],
)
def test_full_name_any_spelling_has_every_part(name: str, full: str) -> None:
    """Host, namespace and tag are written out, and the full name is one of its spellings."""
    assert full_name(name) == full
    assert full_name(full) == full
    assert display_name(full) == display_name(name)


def test_full_name_invalid_raises() -> None:
    """What is no name has no form."""
    with pytest.raises(ValueError, match="no model name"):
        full_name("a b")


def test_quoted_name_with_marks_and_letters_escapes_the_marks_only() -> None:
    """Clients show these texts; Go writes letters of any script as they are."""
    assert quoted('Größe "9\\"') == '"Größe \\"9\\\\\\""'
