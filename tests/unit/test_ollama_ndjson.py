"""JSON and times as Ollama writes them."""

import pytest

from kvsup.ollama.ndjson import encode, rfc3339


def test_encode_special_characters_are_escaped() -> None:
    """Go escapes HTML's and Unicode's; the rest stays UTF-8, compact."""
    value = {"a": [1, None], "b": "<&>\u2028\u2029\x85é"}

    assert encode(value) == (
        b'{"a":[1,null],"b":"\\u003c\\u0026\\u003e\\u2028\\u2029\\u0085\xc3\xa9"}'
    )


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (1_787_389_200_120_000_000, "2026-08-22T09:00:00.12Z"),
        (1_787_389_210_000_000_000, "2026-08-22T09:00:10Z"),
        (2**63 - 1, "2262-04-11T23:47:16.854775807Z"),
    ],
)
def test_rfc3339_fraction_has_no_more_digits_than_needed(time_ns: int, text: str) -> None:
    """Go cuts zeros off the fraction, and the fraction off whole seconds."""
    assert rfc3339(time_ns) == text
