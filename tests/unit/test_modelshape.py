"""What a header says about layers, of many architectures."""

import pytest

from kvsup.gguf import Array, GGUFError, Metadata, Value
from kvsup.modelshape import shape_of
from tests.headers import SMOLLM2, shape_from


@pytest.mark.parametrize(
    ("architecture", "keys", "windows"),
    [
        ("gemma2", {}, "10101010"),
        ("gpt-oss", {"attention.sliding_window": 128}, "10101010"),
        ("cohere2", {"attention.sliding_window": 128}, "11101110"),
        ("cohere2moe", {"attention.sliding_window": 128}, "01110111"),
        ("smallthinker", {"attention.sliding_window": 64}, "01110111"),
        ("llama4", {}, "11101110"),
        ("llama4", {"attention.sliding_window": 0}, "00000000"),
        ("olmo2", {}, "00000000"),
        (
            "lfm2",
            {
                "attention.sliding_window": 128,
                "attention.sliding_window_pattern": 2,
                "shortconv.l_cache": 3,
            },
            "11111111",
        ),
        ("exaone4", {"attention.sliding_window": 128}, "00000000"),
        ("phi3", {"attention.sliding_window": 128}, "00000000"),
        (
            "gemma4",
            {
                "attention.sliding_window": 128,
                "attention.sliding_window_pattern": (True, True, False, True) * 2,
            },
            "11011101",
        ),
        (
            "gemma3",
            {"attention.sliding_window": 128, "attention.sliding_window_pattern": 2},
            "10101010",
        ),
        (
            "gemma2",
            {"attention.sliding_window": 128, "nextn_predict_layers": 1},
            "1010101",
        ),
    ],
)
def test_shape_of_window_architectures_finds_their_layers(
    architecture: str, keys: dict[str, Value], windows: str
) -> None:
    """An array of the file comes first, then its period, then the architecture's."""
    shape = shape_from(architecture, SMOLLM2 | {"block_count": 8} | keys)

    assert "".join(str(int(layer.has_window)) for layer in shape.layers) == windows
    assert shape.is_exact


@pytest.mark.parametrize(
    ("architecture", "key", "window"),
    [("gemma2", None, 4096), ("gemma2", 99, 99), ("llama4", 99, 8192), ("smallthinker", 99, 4096)],
)
def test_shape_of_window_architectures_knows_their_width(
    architecture: str, key: int | None, window: int
) -> None:
    """Some architectures have a width without the key, some whatever the key says."""
    keys = SMOLLM2 if key is None else SMOLLM2 | {"attention.sliding_window": key}

    assert shape_from(architecture, keys).n_window_tokens == window


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"block_count": None}, "llama.block_count is missing"),
        ({"block_count": "30"}, "llama.block_count is missing or no whole number"),
        ({"block_count": 1 << 31}, "claims 2147483648 layers"),
        ({"block_count": 0}, "claims 0 layers"),
        ({"embedding_length": None}, "llama.embedding_length is missing"),
        ({"attention.head_count": -9}, "llama.attention.head_count is missing or no whole"),
        ({"attention.head_count_kv": (3, 3)}, "head_count_kv does not fit the layers"),
        ({"attention.head_count_kv": (-1,) * 30}, "head_count_kv does not fit the layers"),
        ({"attention.head_count_kv": Array("uint32", 5000)}, "head_count_kv is missing or no"),
    ],
)
def test_shape_of_a_header_without_what_it_needs_says_which_key(
    keys: dict[str, Value | None], message: str
) -> None:
    """A file that is no language model, or lies, ends in one clear error."""
    merged = {name: value for name, value in (SMOLLM2 | keys).items() if value is not None}

    with pytest.raises(GGUFError, match=message):
        shape_from("llama", merged)


def test_shape_of_a_vocabulary_counts_its_words() -> None:
    """The vocabulary's length comes from the tokenizer, else from the key."""
    values: dict[str, Value] = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": Array("string", 32000),
    }
    values |= {f"llama.{name}": value for name, value in SMOLLM2.items() if name != "vocab_size"}

    assert shape_of(Metadata(3, values, ())).n_vocab == 32000
    assert shape_from("llama", SMOLLM2).n_vocab == 49152
