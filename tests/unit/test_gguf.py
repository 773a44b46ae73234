"""The GGUF reader against the gguf package, and against files that lie."""

import contextlib
import io
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.gguf import (
    Array,
    GGUFError,
    Metadata,
    has_fim_tokens,
    read_metadata,
    read_metadata_of,
    read_whole_values,
    split_paths,
)
from kvsup.ggufnames import parameter_size


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """A file with one value of each kind and three tensors, from the gguf package."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(15)
    writer.add_block_count(2)
    writer.add_uint8("a.uint8", 200)
    writer.add_int8("a.int8", -5)
    writer.add_uint16("a.uint16", 65535)
    writer.add_int16("a.int16", -30000)
    writer.add_int32("a.int32", -7)
    writer.add_uint64("a.uint64", 1 << 40)
    writer.add_int64("a.int64", -(1 << 40))
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "häää?")
    writer.add_array("a.heads", [3, 0, 3])
    writer.add_array("a.pattern", [True, False])
    writer.add_array("a.scores", [0.25] * 1025)
    writer.add_array("a.words", ["one", "", "drei"])
    writer.add_tensor("weight", np.zeros((8, 64), dtype=np.float16))
    writer.add_tensor("bias", np.zeros(8, dtype=np.float32))
    writer.add_tensor(
        "packed", np.zeros((4, 36), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _text(text: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _header(*keys: bytes, n_keys: int | None = None, n_tensors: int = 0, version: int = 3) -> bytes:
    count = len(keys) if n_keys is None else n_keys
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, count) + b"".join(keys)


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _array(kind: int, length: int, elements: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + elements


def _tensor(name: bytes, shape: tuple[int, ...], kind: int) -> bytes:
    return (
        _text(name)
        + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        + struct.pack("<IQ", kind, 0)
    )


def _read(content: bytes) -> Metadata:
    return read_metadata(io.BytesIO(content))


def test_read_metadata_of_every_kind_of_value_equals_the_gguf_package(small_file: Path) -> None:
    """Scalars and short numeric arrays have the values that the reference reader gives."""
    reference = gguf.GGUFReader(small_file)

    metadata = read_metadata_of(small_file)

    keys = {name for name in reference.fields if not name.startswith("GGUF.")}
    assert set(metadata.values) == keys
    for name in keys - {"a.scores", "a.words"}:
        contents = reference.fields[name].contents()
        expected = tuple(contents) if isinstance(contents, list) else contents
        assert metadata.values[name] == expected, name


def test_read_metadata_of_long_and_text_arrays_keeps_type_and_length(small_file: Path) -> None:
    """Vocabularies are not materialised."""
    metadata = read_metadata_of(small_file)

    assert metadata.values["a.scores"] == Array("float32", 1025)
    assert metadata.values["a.words"] == Array("string", 3)


def test_read_metadata_of_tensors_equals_the_gguf_package(small_file: Path) -> None:
    """Names, shapes, types and sizes are those that the reference reader gives."""
    reference = gguf.GGUFReader(small_file)

    metadata = read_metadata_of(small_file)

    assert [(t.name, t.shape, t.type_name, t.size_bytes) for t in metadata.tensors] == [
        (t.name, tuple(t.shape), t.tensor_type.name, t.n_bytes) for t in reference.tensors
    ]
    assert metadata.n_tensors == 3
    assert metadata.n_params == sum(t.n_elements for t in reference.tensors)
    assert metadata.tensor_bytes == sum(t.n_bytes for t in reference.tensors)


def test_metadata_text_and_integer_of_other_kinds_are_none(small_file: Path) -> None:
    """A key of another kind reads as absent, a bool is no integer."""
    metadata = read_metadata_of(small_file)

    assert metadata.architecture == "llama"
    assert metadata.text("a.text") == "häää?"
    assert metadata.integer("a.int8") == -5
    assert metadata.text("a.int8") is None
    assert metadata.integer("a.text") is None
    assert metadata.integer("a.bool") is None
    assert metadata.integer("absent") is None


@pytest.mark.parametrize("member", list(gguf.LlamaFileType), ids=str)
def test_metadata_file_type_of_every_known_number_is_its_name(member: gguf.LlamaFileType) -> None:
    """The names are the enum's, without its prefixes."""
    name = member.name.removeprefix("ALL_").removeprefix("MOSTLY_").removesuffix("_MOE")
    content = _header(_key(b"general.file_type", 4, struct.pack("<I", member.value)))

    expected = "unknown" if name == "GUESSED" else name

    assert _read(content).file_type == expected


@pytest.mark.parametrize("number", [4, 5, 6, 33, 34, 35, 42, 4000])
def test_metadata_file_type_of_a_removed_or_new_number_is_unknown(number: int) -> None:
    """Numbers without a name today have none."""
    content = _header(_key(b"general.file_type", 4, struct.pack("<I", number)))

    assert _read(content).file_type == "unknown"


def test_metadata_file_type_without_the_key_is_unknown() -> None:
    """A file need not say its type."""
    assert _read(_header()).file_type == "unknown"


def test_read_metadata_of_an_unknown_tensor_type_counts_parameters_but_no_bytes() -> None:
    """A type from the future costs only the size."""
    content = _header(_tensor(b"a", (64,), 999), _tensor(b"b", (2, 3), 0), n_keys=0, n_tensors=2)

    metadata = _read(content)

    assert metadata.n_params == 70
    assert metadata.tensor_bytes is None


def test_read_metadata_of_a_vocabulary_beyond_one_chunk_finds_what_follows() -> None:
    """Words that cross the edges of the chunks that are read do not derail the reader."""
    words = [b"w" * (n % 977) for n in range(10_000)]
    content = _header(
        _key(b"words", 9, _array(8, len(words), b"".join(map(_text, words)))),
        _key(b"after", 8, _text(b"here")),
    )

    metadata = _read(content)

    assert len(content) > 4 << 20
    assert metadata.values == {"words": Array("string", 10_000), "after": "here"}


def test_read_metadata_of_a_text_over_one_mebibyte_steps_over_it() -> None:
    """A long text is not kept, but what follows is read."""
    content = _header(
        _key(b"long", 8, _text(b"x" * ((1 << 20) + 1))), _key(b"after", 8, _text(b"here"))
    )

    assert _read(content).values == {"long": Array("byte", (1 << 20) + 1), "after": "here"}


def test_read_metadata_header_ends_where_the_tensors_follow() -> None:
    """What lies behind the header is no part of it."""
    content = _header(_key(b"k", 0, b"\x01"), _tensor(b"t", (1,), 0), n_keys=1, n_tensors=1)

    assert _read(content + bytes(100)).header_bytes == len(content)


def test_read_whole_values_of_every_kind_equals_the_gguf_package(small_file: Path) -> None:
    """Long arrays and words are there, too."""
    reference = gguf.GGUFReader(small_file)

    values = read_whole_values(small_file)

    for name, value in values.items():
        contents = reference.fields[name].contents()
        assert value == (tuple(contents) if isinstance(contents, list) else contents), name
    assert {"a.scores", "a.words"} <= values.keys()


def test_read_whole_values_of_words_beyond_one_chunk_finds_all(tmp_path: Path) -> None:
    """Words that cross the edges of the chunks are whole; one that is no UTF-8 is mended."""
    words = [b"w" * (n % 977) for n in range(10_000)] + [b"\xff"]
    path = tmp_path / "words.gguf"
    path.write_bytes(_header(_key(b"words", 9, _array(8, len(words), b"".join(map(_text, words))))))

    (found,) = read_whole_values(path).values()

    assert found == (*(word.decode() for word in words[:-1]), "\ufffd")


def _vocabulary(words: tuple[str, ...], keys: tuple[str, ...]) -> bytes:
    return _header(
        _key(
            b"tokenizer.ggml.tokens",
            9,
            _array(8, len(words), b"".join(_text(w.encode()) for w in words)),
        ),
        *(_key(b"tokenizer.ggml." + key.encode(), 4, struct.pack("<I", 1)) for key in keys),
    )


@pytest.mark.parametrize(
    ("words", "keys", "found"),
    [
        ((), ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"), True),
        ((), ("prefix_token_id", "suffix_token_id", "middle_token_id"), True),
        ((), ("prefix_token_id", "suffix_token_id"), False),
        (("<MID>",), ("prefix_token_id", "fim_suf_token_id"), True),
        (("<|fim_prefix|>", "a", "<|fim_suffix|>", "<|fim_middle|>"), (), True),
        (("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<MID>"), (), True),
        (("<|fim_prefix|>", "<|fim_suffix|>", "x<|fim_middle|>"), (), False),
        (("<|fim_prefix|> <|fim_suffix|> <|fim_middle|>",), (), False),
    ],
)
def test_has_fim_tokens_by_keys_or_by_words(
    tmp_path: Path, words: tuple[str, ...], keys: tuple[str, ...], *, found: bool
) -> None:
    """All three are needed, each by a key or as a word of its own."""
    path = tmp_path / "fim.gguf"
    path.write_bytes(_vocabulary(words, keys))

    assert has_fim_tokens(path, read_metadata_of(path)) is found


def test_has_fim_tokens_behind_the_header_do_not_count(tmp_path: Path) -> None:
    """Weights may hold any bytes."""
    path = tmp_path / "fim.gguf"
    words = b"".join(map(_text, (b"<PRE>", b"<SUF>", b"<MID>")))
    path.write_bytes(_header() + words)

    assert not has_fim_tokens(path, read_metadata_of(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no GGUF file"),
        (b"GGU", "no GGUF file"),
        (b"PK\x03\x04" * 8, "no GGUF file"),
        (b"GGUF\x00\x00\x00\x03" + bytes(16), "big endian"),
        (_header(version=1), "version 1 is not known"),
        (_header(version=9), "version 9 is not known"),
        (b"GGUF\x03\x00", "truncated"),
        (_header(n_keys=1 << 60), "claims 0 tensors and"),
        (_header(n_keys=1, n_tensors=1 << 60), "tensors and 1 keys"),
        (_header(n_keys=1), "truncated"),
        (_header(_text(b"k", length=1 << 60)), "claims a name of"),
        (_header(_text(b"k", length=60_000)), "truncated"),
        (_header(_key(b"k", 8, _text(b"x", length=1 << 60))), "truncated"),
        (_header(_key(b"k", 8, _text(b"x", length=2))), "truncated"),
        (_header(_key(b"k", 9, _array(4, 1 << 60))), "claims 1152921504606846976 elements"),
        (_header(_key(b"k", 9, _array(4, 1 << 20))), "truncated"),
        (_header(_key(b"k", 9, _array(8, 1 << 20))), "truncated"),
        (_header(_key(b"k", 9, _array(8, 1, _text(b"", length=1 << 60)))), "truncated"),
        (_header(_key(b"k", 9, _array(8, 2, _text(b"", length=(1 << 64) - 8)))), "truncated"),
        (_header(_key(b"k", 9, _array(9, 1, _array(9, 1)))), "array of arrays"),
        (_header(_key(b"k", 13, b"")), "unknown type 13"),
        (_header(_key(b"k", 9, _array(77, 1))), "unknown type 77"),
        (_header(_key(b"k", 0, b"\x01"), _key(b"k", 0, b"\x01")), "twice"),
        (_header(_key(b"\xff\xfe", 0, b"\x01")), "no UTF-8"),
        (_header(_key(b"k", 8, _text(b"\xff\xfe"))), "no UTF-8"),
        (_header(_tensor(b"t", (1,) * 5, 0), n_keys=0, n_tensors=1), "claims 5 dimensions"),
        (_header(_tensor(b"t", (1 << 40,) * 2, 0), n_keys=0, n_tensors=1), "elements"),
        (_header(_tensor(b"t", (33,), 2), n_keys=0, n_tensors=1), "no multiple of Q4_0's block"),
        (_header(_tensor(b"t", (1,), 0) * 2, n_keys=0, n_tensors=2), "same name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_read_metadata_of_a_hostile_header_says_what_is_wrong(content: bytes, message: str) -> None:
    """Every lie ends in one clear error, and nothing is allocated on its word."""
    with pytest.raises(GGUFError, match=message):
        _read(content)


_VALID = _header(
    _key(b"general.architecture", 8, _text(b"llama")),
    _key(b"llama.block_count", 4, struct.pack("<I", 2)),
    _key(b"heads", 9, _array(4, 2, struct.pack("<2I", 3, 3))),
    _key(b"words", 9, _array(8, 3, _text(b"a") + _text(b"") + _text(b"bcd"))),
    _tensor(b"w", (64, 2), 2),
    n_keys=4,
    n_tensors=1,
)


@settings(deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(_VALID) - 1), st.integers(0, 255)), max_size=6),
    length=st.integers(0, len(_VALID)),
)
def test_read_metadata_of_a_damaged_header_fails_in_one_way_only(
    edits: list[tuple[int, int]], length: int
) -> None:
    """Whatever bytes are changed or cut off: a header or a GGUFError."""
    content = bytearray(_VALID)
    for place, byte in edits:
        content[place] = byte

    with contextlib.suppress(GGUFError):
        assert _read(bytes(content[:length])).version in {2, 3}


@pytest.mark.parametrize(
    ("n_params", "text"),
    [
        (134_515_008, "134.52M"),
        (7_615_616_512, "7.6B"),
        (8_000_000_000, "8B"),
        (8_030_261_312, "8.0B"),
        (3_000_000, "3M"),
        (22_713, "23K"),
        (999, "999"),
        (0, "0"),
    ],
)
def test_parameter_size_of_a_count_is_worded_as_ollama_does(n_params: int, text: str) -> None:
    """Billions have one decimal, millions two, thousands and whole numbers none."""
    assert parameter_size(n_params) == text


def test_split_paths_of_a_first_part_gives_all(tmp_path: Path) -> None:
    """The parts follow the name of the first."""
    parts = [tmp_path / f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts:
        part.touch()

    assert split_paths(parts[0]) == tuple(parts)


def test_split_paths_of_an_unsplit_file_gives_itself(tmp_path: Path) -> None:
    """Most models are one file."""
    assert split_paths(tmp_path / "one.gguf") == (tmp_path / "one.gguf",)


def test_split_paths_with_a_missing_part_names_it(tmp_path: Path) -> None:
    """The operator learns which file to fetch."""
    with pytest.raises(GGUFError, match="part 2 of 3 of the model is missing: big-00002-of"):
        split_paths(tmp_path / "big-00001-of-00003.gguf")


@pytest.mark.parametrize("number", ["00002", "00000"])
def test_split_paths_of_another_part_names_the_first(tmp_path: Path, number: str) -> None:
    """llama-server wants the first part, so does the configuration."""
    with pytest.raises(GGUFError, match=r"name the first: big-00001-of-00003\.gguf"):
        split_paths(tmp_path / f"big-{number}-of-00003.gguf")
