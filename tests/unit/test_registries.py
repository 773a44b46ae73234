"""Hosts that models may come from: how they are listed, and who is one of them."""

import pytest

from kvsup.stores.registries import Registries


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ("registry.ollama.ai", "https://registry.ollama.ai"),
        ("Registry.Example:8443", "https://registry.example:8443"),
        ("http://plain.example:5000", "http://plain.example:5000"),
        ("https://localhost:5000", "https://localhost:5000"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("127.9.9.9", "http://127.9.9.9"),
        ("192.168.1.2:5000", "https://192.168.1.2:5000"),
    ],
)
def test_entry_says_where_and_whether_by_tls(entry: str, url: str) -> None:
    """Only what is on this machine does without unless it says so."""
    (registry,) = Registries.parse([entry]).entries

    assert registry.url == url


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.example",
        "ftp://a",
        "http://",
        "a/b",
        "a:b",
        "a:0",
        "a:99999",
        "a b",
        "u@a",
        "[::1]",
    ],
)
def test_entry_that_names_no_host_is_told(entry: str) -> None:
    """With what to write instead."""
    with pytest.raises(ValueError, match="names no registry; write HOST"):
        Registries.parse([entry])


def test_host_of_a_name_is_found_whatever_its_case() -> None:
    """With its port; the two names of Hugging Face are one."""
    registries = Registries.parse(["registry.ollama.ai", "localhost:5000", "hf.co"])

    assert registries.find("Registry.Ollama.AI") is registries.entries[0]
    assert registries.find("localhost:5000") is registries.entries[1]
    assert registries.find("localhost") is None
    assert registries.find("localhost:5001") is None
    assert registries.find("ollama.ai") is None
    for host in ("hf.co", "huggingface.co"):
        found = registries.find(host)
        assert found is not None
        assert found.is_hub
    assert Registries.parse(["localhost"]).find("hf.co") is None


def test_only_the_address_of_a_registry_may_be_private() -> None:
    """Its scheme and port are part of it."""
    registries = Registries.parse(["localhost:5000", "registry.example"])

    assert registries.allows("http", "localhost", 5000)
    assert registries.allows("https", "REGISTRY.example", 443)
    assert not registries.allows("https", "localhost", 5000)
    assert not registries.allows("http", "localhost", 80)
    assert not registries.allows("http", "registry.example", 80)
    assert registries.with_address("http://127.0.0.1:8080/x").allows("http", "127.0.0.1", 8080)
