"""Bounds on JSON: held against a reader that looks at each byte."""

import json
from array import array
from collections.abc import Iterator
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.api import jsonlimits
from kvsup.api.jsonlimits import MAX_DEPTH, MAX_VALUES, check_json
from kvsup.errors import RequestError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a"\\[]{},é\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='"\\[{'), inner),
    max_leaves=40,
)


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _n_values(value: object) -> int:
    """Return commas and four times the opened brackets: what is counted of the values."""
    if isinstance(value, (list, dict)):
        inner = list(value.values()) if isinstance(value, dict) else value
        return 4 + max(0, len(inner) - 1) + sum(map(_n_values, inner))
    return 0


def _is_refused(body: bytes) -> bool:
    try:
        check_json(body)
    except RequestError:
        return True
    return False


@given(value=JSON, max_depth=st.integers(0, 4), max_values=st.integers(1, 30))
def test_json_is_refused_exactly_where_it_nests_too_deep_or_holds_too_much(
    value: object, max_depth: int, max_values: int
) -> None:
    """Whatever stands in its texts: brackets, commas, quotes, backslashes."""
    body = json.dumps(value, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlimits, "MAX_DEPTH", max_depth)
        patch.setattr(jsonlimits, "MAX_VALUES", max_values)
        patch.setattr(jsonlimits, "FEW_BYTES", -1)
        n_texts = jsonlimits._without_escapes(body).count(b'"') // 2
        expected = (
            _depth(value) > max_depth or _n_values(value) > max_values or n_texts > max_values
        )

        assert _is_refused(body) == expected


@given(st.binary())
def test_bytes_that_are_no_json_raise_nothing_else(body: bytes) -> None:
    """The decoder says what is wrong with them."""
    _is_refused(body * 200)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' * MAX_DEPTH + b"0" + b"}" * MAX_DEPTH,
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[" + b",".join([b"[[]]"] * 1000) + b"]",
        json.dumps({"messages": ["[" * 5000, '\\[{"' * 5000]}).encode(),
        json.dumps({"prompt": list(range(400_000))}).encode(),
        json.dumps({"image": "A" * (20 << 20)}).encode(),
        json.dumps({"text": 'say "x", ' * (3 * MAX_VALUES // 10)}).encode(),
    ],
)  # fmt: skip
def test_json_of_honest_clients_passes(body: bytes) -> None:
    """Deep enough, long enough; images and long texts are one value."""
    check_json(body)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nests deeper than 128"),
        (b'{"":' * 200_000, "nests deeper than 128"),
        (b"[" * (100 << 20), "holds more than 1000000 values"),
        (b'[""' + b',""' * MAX_VALUES + b"]", "holds more than 1000000 values"),
        (b"[0" + b",0" * MAX_VALUES + b"]", "holds more than 1000000 values"),
        (b"[" + b"{}," * (30 << 20) + b"{}]", "holds more than 1000000 values"),
    ],
)
@pytest.mark.parametrize("blanks", [b"", b" " * 100, b"\r\n\t " * (1 << 19), b"\xef\xbb\xbf "])
def test_json_that_a_decoder_would_pay_for_is_refused(
    body: bytes, text: str, blanks: bytes
) -> None:
    """In words, whatever stands before it that a decoder skips."""
    with pytest.raises(RequestError, match=text):
        check_json(blanks + body)


@pytest.mark.parametrize("start", [b"--boundary\r\n", b"\x0b", b'"', b"\x1f\x8b"])
def test_what_is_no_array_or_object_passes(start: bytes) -> None:
    """Forms, sounds and single texts may have any bytes."""
    check_json(start + b"[" * 5000)


def test_brackets_that_close_nothing_are_not_walked_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Megabytes of them would hold up every thread of Python."""
    n_walked = []

    def counting(steps: "array[int]") -> Iterator[int]:
        n_walked.append(len(steps))
        return accumulate(steps)

    monkeypatch.setattr(jsonlimits, "accumulate", counting)
    n_opened = MAX_DEPTH + 1

    with pytest.raises(RequestError, match="nests deeper than 128"):
        check_json(b"[" * n_opened + b"]" * (5 << 20))
    check_json(b"[]" * n_opened + b"]" * (5 << 20))

    assert n_walked == [2 * n_opened] * 2
