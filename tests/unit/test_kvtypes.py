"""The grammar ``type_k:type_v``, and the bytes that a row of each type takes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.kvtypes import F16, STOCK_TYPES, KVPair, KVType, parse_kv_pair

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
BLANKS = st.text(" \t", max_size=2)


@given(NAMES, NAMES)
def test_parse_of_a_printed_pair_is_the_pair(k: str, v: str) -> None:
    """What kvsup prints, a TOML file may hold."""
    pair = KVPair(KVType(k), KVType(v))

    assert parse_kv_pair(str(pair)) == pair


@given(NAMES, NAMES, BLANKS, BLANKS)
def test_parse_of_a_pair_with_blanks_and_capitals_is_the_canonical_pair(
    k: str, v: str, before: str, after: str
) -> None:
    """Case and blanks around names are forgiven, and gone in what is printed."""
    written = f"{before}{k.upper()}{after}:{before}{v.title()}{after}"

    assert str(parse_kv_pair(written)) == f"{k}:{v}"


@given(NAMES)
def test_parse_of_one_type_is_both_halves(name: str) -> None:
    """``q8_0`` is ``q8_0:q8_0``."""
    assert parse_kv_pair(name) == KVPair(KVType(name), KVType(name))


@pytest.mark.parametrize("text", ["", ":", "q8_0:", ":q8_0", "q8_0:q5_1:f16", " : "])
def test_parse_of_no_pair_raises_with_an_example(text: str) -> None:
    """The error shows how a pair is written."""
    with pytest.raises(ValueError, match='is no pair of types; write "type_k:type_v"'):
        parse_kv_pair(text)


@pytest.mark.parametrize("text", ["8bit", "q8-0", "q8 0", "q8_0/q5_1", "-1"])
def test_parse_of_impossible_name_raises_with_an_example(text: str) -> None:
    """Names are letters, digits and underscores, as in ggml."""
    with pytest.raises(ValueError, match=r'is no type name; write e.g. "q8_0:q5_1"'):
        parse_kv_pair(text)


def test_parse_of_a_type_that_the_binary_lacks_names_the_nearest() -> None:
    """The error has the nearest name and all that this binary takes."""
    text = (
        "'q5_2' is no KV cache type of this llama-server; did you mean 'q5_1'? "
        "it takes f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl"
    )

    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_kv_pair("f16:q5_2", allowed=STOCK_TYPES)


def test_parse_of_a_type_that_a_fork_lists_is_taken() -> None:
    """A fork that lists more types is believed."""
    assert str(parse_kv_pair("turbo3:f16", allowed=(*STOCK_TYPES, "turbo3"))) == "turbo3:f16"


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [
        ("f32", 256), ("f16", 128), ("bf16", 128), ("q8_0", 68), ("q5_1", 48), ("q5_0", 44),
        ("q4_1", 40), ("q4_0", 36), ("iq4_nl", 36),
    ],
)  # fmt: skip
def test_row_bytes_of_64_elements_are_those_of_ggml(name: str, n_bytes: int) -> None:
    """Blocks of 32 elements have 34, 24, 22, 20, 18 and 18 bytes (ggml-common.h, b11434)."""
    assert KVType(name).row_bytes(64) == n_bytes


def test_row_bytes_of_a_part_of_a_block_raise() -> None:
    """A row that a block does not divide cannot be stored."""
    with pytest.raises(ValueError, match="33 elements are no multiple of q8_0's 32"):
        KVType("q8_0").row_bytes(33)


def test_unknown_type_counts_as_quantized_and_has_no_size() -> None:
    """What stock llama.cpp does not know is treated with the rules of quantized types."""
    unknown = KVType("turbo3")

    assert unknown.is_quantized
    assert unknown.block_elements is None
    assert unknown.row_bytes(32) is None


@pytest.mark.parametrize("name", STOCK_TYPES)
def test_stock_type_is_quantized_unless_it_is_a_float(name: str) -> None:
    """f32, f16 and bf16 are plain numbers, the rest is stored in blocks."""
    assert KVType(name).is_quantized == (name not in {"f32", "f16", "bf16"})


def test_default_pair_is_f16() -> None:
    """Without a word from anyone the cache is exact, as llama-server's own default."""
    assert str(F16) == "f16:f16"
