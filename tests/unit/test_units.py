"""Durations and sizes as people and Ollama's clients write them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.units import (
    FOREVER_S,
    format_bytes,
    format_duration,
    format_span,
    parse_bytes,
    parse_duration,
    parse_duration_setting,
)


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        (0, 0.0),
        (300, 300.0),
        (0.5, 0.5),
        (-1, FOREVER_S),
        (-0.5, FOREVER_S),
        (math.inf, FOREVER_S),
        (10**400, FOREVER_S),
        ("0", 0.0),
        ("0s", 0.0),
        ("300ms", 0.3),
        ("1.5h", 5400.0),
        ("2h45m", 9900.0),
        ("1h30m5s", 5405.0),
        (" 5m ", 300.0),
        ("+5m", 300.0),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        ("1ns", 1e-9),
        ("-1s", FOREVER_S),
        ("-0", 0.0),
    ],
)
def test_parse_duration_of_a_number_or_go_text_is_seconds(value: object, expected_s: float) -> None:
    """Numbers are seconds, texts are Go durations, what is negative is for ever."""
    assert parse_duration(value) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("abc", 'time: invalid duration "abc"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("1h x", 'time: unknown unit "h x" in duration "1h x"'),
        ("10", 'time: missing unit in duration "10"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("5M", 'time: unknown unit "M" in duration "5M"'),
        (True, "Unsupported type: 'bool'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
        ([1], "Unsupported type: '[]interface {}'"),
        (math.nan, 'time: invalid duration "nan"'),
    ],
)
def test_parse_duration_of_something_else_raises_in_go_words(value: object, text: str) -> None:
    """Clients of Ollama see the texts of Go's time package."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (2.5, "2.5s"),
        (59.0, "59s"),
        (60.0, "1m"),
        (300.0, "5m"),
        (90.5, "90.5s"),
        (5400.0, "1h30m"),
        (3601.0, "1h1s"),
    ],
)
def test_format_duration_is_short(seconds: float, text: str) -> None:
    """Whole minutes and hours are written as such, parts of seconds as seconds."""
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**6) | st.just(FOREVER_S))
def test_parse_duration_of_a_formatted_duration_is_the_duration(seconds: float) -> None:
    """Whole seconds, and for ever, survive being written and read."""
    assert parse_duration_setting(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("value", "expected_bytes"),
    [
        (0, 0),
        (123, 123),
        ("123", 123),
        ("1B", 1),
        ("1k", 1000),
        ("1KiB", 1024),
        ("8GB", 8 * 1000**3),
        ("8GiB", 8 << 30),
        ("8 gib", 8 << 30),
        ("1.5MiB", 3 << 19),
        ("2TiB", 2 << 40),
    ],
)
def test_parse_bytes_of_a_size_is_bytes(value: object, expected_bytes: int) -> None:
    """Units with an ``i`` are powers of 1024, the others powers of 1000; case does not matter."""
    assert parse_bytes(value) == expected_bytes


@pytest.mark.parametrize(
    "value", ["", "GiB", "-1", -1, "1XB", "1 2", True, 1.5, None, [1], 10**400]
)
def test_parse_bytes_of_no_size_raises_with_an_example(value: object) -> None:
    """The error shows how a size is written."""
    with pytest.raises(ValueError, match=r'is no size; write e.g. "8GiB" or a number of bytes'):
        parse_bytes(value)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (25 * 10**6, "23.8 MiB"),
        (1 << 30, "1 GiB"),
        (3 << 40, "3 TiB"),
    ],
)
def test_format_bytes_has_three_digits_that_matter(n_bytes: int, text: str) -> None:
    """Sizes are shown in the largest power of 1024 that leaves a number of one or more."""
    assert format_bytes(n_bytes) == text


@given(st.floats(min_value=0, max_value=1e15))
def test_parse_bytes_of_a_formatted_size_is_near_it(n_bytes: float) -> None:
    """What is shown can be written into a file, and means the same to one part in a hundred."""
    shown = parse_bytes(format_bytes(math.floor(n_bytes)))

    assert shown == pytest.approx(n_bytes, rel=0.01, abs=1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0.0 s"), (0.42, "0.4 s"), (40.0, "40 s"), (99.0, "99 s"), (100.0, "2 min"),
        (5940.0, "99 min"), (6000.0, "2 h"), (71 * 3600.0, "71 h"), (86400.0 * 5, "5 days"),
    ],
)  # fmt: skip
def test_span_is_told_in_the_unit_that_fits(seconds: float, text: str) -> None:
    """One number, coarse enough to be read at a glance."""
    assert format_span(seconds) == text


@pytest.mark.parametrize("value", ["9" * 400, f"{'9' * 300}TiB", "9000000TiB"])
def test_parse_bytes_of_more_than_there_can_be_is_refused_in_words(value: str) -> None:
    """Not by an error that nothing expects."""
    with pytest.raises(ValueError, match="more than anything has"):
        parse_bytes(value)
