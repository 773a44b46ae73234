"""Answers about models."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kvsup.ollama.catalog import (
    CatalogEntry,
    RunningEntry,
    capabilities,
    local_time,
    openai_models,
    ps,
    tags,
    version,
)

SECOND_NS = 1_000_000_000

ENTRY = CatalogEntry(
    name="m:latest",
    modified_at_ns=10 * SECOND_NS,
    size_bytes=99,
    digest="ab",
    families=("llama",),
    parameter_size="134.52M",
    quantization_level="Q4_1",
    kv_cache_type="q8_0:q5_1",
    num_ctx=4096,
    context_length=8192,
    embedding_length=576,
    capabilities=("completion", "tools"),
)
RUNNING = RunningEntry(
    name="m:latest",
    digest="ab",
    families=("llama",),
    parameter_size="134.52M",
    quantization_level="Q4_1",
    size_bytes=99,
    size_vram_bytes=0,
    expires_at_ns=5 * SECOND_NS,
    context_length=4096,
    kv_cache_type="q8_0:q5_1",
    kv_bytes={"k": 34, "v": 24},
)
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "134.52M",
    "quantization_level": "Q4_1",
}


@pytest.fixture(autouse=True)
def _utc() -> Iterator[None]:
    """Move this process to UTC, whatever the machine's time zone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def _items(answer: dict[str, object], key: str = "models") -> list[dict[str, Any]]:
    items = answer[key]
    assert isinstance(items, list)
    return items


def test_tags_entry_has_ollamas_fields_in_order() -> None:
    """Name and model are equal; lengths stand in the details."""
    (item,) = _items(tags([ENTRY]))

    assert list(item.items()) == [
        ("name", "m:latest"),
        ("model", "m:latest"),
        ("modified_at", "1970-01-01T00:00:10Z"),
        ("size", 99),
        ("digest", "ab"),
        ("details", {**DETAILS, "context_length": 8192, "embedding_length": 576}),
        ("capabilities", ["completion", "tools"]),
    ]


def test_tags_unknown_lengths_and_capabilities_vanish() -> None:
    """Empty fields are left out, and an empty list of models is a list."""
    bare = dataclasses.replace(ENTRY, context_length=0, embedding_length=0, capabilities=())

    (item,) = _items(tags([bare]))

    assert item["details"] == DETAILS
    assert "capabilities" not in item
    assert tags([]) == {"models": []}


def test_tags_newest_model_is_first() -> None:
    """Models come by the time of their last change."""
    newer = dataclasses.replace(ENTRY, name="n:latest", modified_at_ns=11 * SECOND_NS)

    assert [item["name"] for item in _items(tags([ENTRY, newer]))] == ["n:latest", "m:latest"]


def test_ps_entry_has_kv_types_and_bytes_after_ollamas_fields() -> None:
    """A client of Ollama finds its fields; kvsup's two stand behind."""
    (item,) = _items(ps([RUNNING]))

    assert list(item.items()) == [
        ("name", "m:latest"),
        ("model", "m:latest"),
        ("size", 99),
        ("digest", "ab"),
        ("details", DETAILS),
        ("expires_at", "1970-01-01T00:00:05Z"),
        ("size_vram", 0),
        ("context_length", 4096),
        ("kv_cache_type", "q8_0:q5_1"),
        ("kv_bytes", {"k": 34, "v": 24}),
    ]


def test_ps_entry_with_kv_warnings_has_them_last() -> None:
    """One without has no such member, so that Ollama's contract holds."""
    warned = dataclasses.replace(RUNNING, kv_warnings=("K (q8_0) is not rotated",))

    (plain,) = _items(ps([RUNNING]))
    (item,) = _items(ps([warned]))

    assert "kv_warnings" not in plain
    assert item == {**plain, "kv_warnings": ["K (q8_0) is not rotated"]}
    assert list(item)[-1] == "kv_warnings"


def test_ps_entry_whose_conversations_are_kept_says_how_many_and_what_they_saved() -> None:
    """A hit rate of 0 is one; without a prompt there is none."""
    kept = {"conversations": 2, "bytes": 70, "restored_tokens": 0}

    (plain,) = _items(ps([RUNNING]))
    (item,) = _items(ps([dataclasses.replace(RUNNING, kept=kept, cache_hit_rate=0.0)]))

    assert item == {**plain, "kept": kept, "cache_hit_rate": 0.0}
    assert not {"kept", "cache_hit_rate"} & set(plain)


def test_ps_model_that_stays_is_first() -> None:
    """It expires at the end of Go's clock, which clients show as for ever."""
    stays = dataclasses.replace(RUNNING, name="s:latest", expires_at_ns=None)

    first, second = _items(ps([RUNNING, stays]))

    assert (first["name"], second["name"]) == ("s:latest", "m:latest")
    assert first["expires_at"] == "2262-04-11T23:47:16.854775807Z"


def test_openai_models_say_owner_and_time() -> None:
    """The namespace owns a model; no models are an empty list."""
    other = dataclasses.replace(ENTRY, name="hf.co/me/x:q4")

    first, second = _items(openai_models([ENTRY, other]), "data")

    assert first == {"id": "m:latest", "object": "model", "created": 10, "owned_by": "library"}
    assert (second["id"], second["owned_by"]) == ("hf.co/me/x:q4", "me")
    assert openai_models([]) == {"object": "list", "data": []}


def test_version_is_an_object() -> None:
    """Clients read ``version``."""
    assert version("0.1.0") == {"version": "0.1.0"}


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("UTC", "1970-01-01T00:00:10.5Z"),
        ("XXX-5:30", "1970-01-01T05:30:10.5+05:30"),
        ("XXX3", "1969-12-31T21:00:10.5-03:00"),
    ],
)
def test_local_time_has_the_offset_of_the_zone(
    monkeypatch: pytest.MonkeyPatch, zone: str, text: str
) -> None:
    """Go writes local times so, and Z where there is no offset."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()

    assert local_time(10 * SECOND_NS + SECOND_NS // 2) == text


def test_tags_and_ps_of_a_model_with_projector_name_both_families() -> None:
    """Older clients know by ``clip`` that a model sees."""
    families = ("llama", "clip")
    entry = dataclasses.replace(ENTRY, families=families)
    running = dataclasses.replace(RUNNING, families=families)

    details = [answer["details"] for answer in (*_items(tags([entry])), *_items(ps([running])))]

    assert [(d["family"], d["families"]) for d in details] == [("llama", ["llama", "clip"])] * 2


def _found(architecture: str = "llama", **said: object) -> tuple[str, ...]:
    nothing = {
        "pooling": False,
        "embeds": False,
        "chat_template": None,
        "sees": False,
        "hears": False,
        "fills_in": False,
    }
    return capabilities(architecture, **{**nothing, **said})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (None, ("completion",)),
        ("{% if tools %}", ("completion", "tools")),
        ("<think></think>", ("completion", "thinking")),
        ("<think>", ("completion",)),
        ("{{ content.split('</think>')[-1] }}", ("completion", "thinking")),
        ("{{ content.split('</think>')[-1] }}{{ reasoning_content }}", ("completion",)),
        ("{% if enable_thinking %}{{ tool_calls }}", ("completion", "tools", "thinking")),
    ],
)
def test_capabilities_template_tells_tools_and_thinking(
    template: str | None, found: tuple[str, ...]
) -> None:
    """What the template mentions the model can do."""
    assert _found(chat_template=template) == found


def test_capabilities_file_tells_the_rest() -> None:
    """Pooling means embeddings only; a projector sees or hears; gpt-oss always thinks."""
    assert _found("bert", pooling=True, fills_in=True) == ("embedding",)
    assert _found(embeds=True, fills_in=True) == ("completion", "embedding", "insert")
    assert _found("gpt-oss", sees=True, hears=True) == (
        "completion",
        "vision",
        "audio",
        "thinking",
    )
