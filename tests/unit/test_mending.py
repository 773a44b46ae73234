"""Faults of a body in words, and whole answers that are changed."""

from typing import Any

import msgspec
import pytest

from kvsup.mending import Fault, MalformedError, WholeMend, read


class _Inner(msgspec.Struct):
    a: int


class _Body(msgspec.Struct):
    inner: list[_Inner] = []
    n: int | float | None = None
    text: str | list[str] | None = None
    map: dict[str, int] = {}


_decode = msgspec.json.Decoder(_Body).decode


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"[]", Fault("", "an object", "an array")),
        (b'{"inner":[{"a":1},{}]}', Fault("inner[1].a", "")),
        (b'{"inner":[{"a":"x"}]}', Fault("inner[0].a", "an integer", "a string")),
        (b'{"n":"x"}', Fault("n", "an integer", "a string")),
        (b'{"n":{}}', Fault("n", "an integer", "an object")),
        (b'{"text":true}', Fault("text", "a string or an array", "a boolean")),
        (b'{"map":{"k":null}}', Fault("map[...]", "an integer", "null")),
    ],
)
def test_fault_tells_where_and_what(body: bytes, fault: Fault) -> None:
    """Each API writes its text of these words."""
    assert read(_decode, body) == fault


def test_fault_in_a_part_stands_at_its_place_in_the_whole() -> None:
    """A body is read in parts where a part is passed on as it came."""
    assert read(_decode, b'{"n":"x"}', "tools[3]") == Fault("tools[3].n", "an integer", "a string")


def test_fault_that_msgspec_words_otherwise_is_told_in_its_words() -> None:
    """No fault is lost, whatever msgspec learns to check."""

    def decode(_raw: Any) -> object:
        raise msgspec.ValidationError("too odd")

    assert read(decode, b"{}", "x") == Fault("x", "too odd")


@pytest.mark.parametrize("body", [b"", b"{", b'{"text":"\xff"}', b"[" * 100_000])
def test_body_that_is_no_json_is_malformed(body: bytes) -> None:
    """Depth counts too: the decoder gives up before the stack does."""
    with pytest.raises(MalformedError):
        read(msgspec.json.Decoder(Any).decode, body)


def test_whole_answer_that_is_no_json_passes_as_it_came() -> None:
    """There is nothing that could be mended."""
    mend = WholeMend(lambda answer: answer)

    mend.feed(b"half an ")
    mend.feed(b"answer")

    assert mend.finish() == b"half an answer"
