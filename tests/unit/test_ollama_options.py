"""Options: Ollama's defaults, llama-server's names, and what is wrong with a table of them."""

import msgspec
import pytest

from kvsup.config import ModelConfig
from kvsup.fitting import Asked
from kvsup.ollama.options import (
    LOAD_TIME_OPTIONS,
    OPTIONS,
    OptionTypeError,
    check_options,
    given_fields,
    load_time_options,
    sampling_fields,
)


def test_sampling_without_layers_sends_ollamas_defaults() -> None:
    """llama-server's own defaults differ, so every one of Ollama's is sent."""
    assert sampling_fields(num_ctx=100) == {
        "n_predict": 1000,
        "n_keep": 4,
        "seed": -1,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repeat_last_n": 64,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def test_sampling_later_layer_wins() -> None:
    """The request's options lie over the model's; a list replaces a list."""
    model = {"temperature": 0.1, "stop": ["a", "b"], "top_k": 5}
    request = {"temperature": 1, "stop": ["c"], "top_k": None, "mirostat": "x", "num_ctx": 9}

    fields = sampling_fields(model, request, num_ctx=100)

    assert (fields["temperature"], fields["stop"], fields["top_k"]) == (1.0, ["c"], 5)
    assert not {"mirostat", "num_ctx"} & fields.keys()


@pytest.mark.parametrize(
    ("num_predict", "n_predict"),
    [(-1, 1000), (-2, 1000), (1001, 1000), (1000, 1000), (7.9, 7), (0, 0)],
)
def test_sampling_num_predict_is_bounded(num_predict: float, n_predict: int) -> None:
    """No answer is longer than ten times the context."""
    assert sampling_fields({"num_predict": num_predict}, num_ctx=100)["n_predict"] == n_predict


def test_sampling_num_keep_zero_is_left_out() -> None:
    """Ollama leaves ``n_keep`` out when it is 0."""
    assert "n_keep" not in sampling_fields({"num_keep": 0}, num_ctx=100)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("temperature", "hot", 'option "temperature" must be of type float32'),
        ("temperature", 1e39, 'option "temperature" must be of type float32'),
        ("top_k", True, 'option "top_k" must be of type integer'),
        ("top_k", float("nan"), 'option "top_k" must be of type integer'),
        ("num_ctx", "4096", 'option "num_ctx" must be of type integer'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("stop", "x", 'option "stop" must be of type array'),
        ("stop", ["x", 1], 'option "stop" must be of an array of strings'),
    ],
)
def test_sampling_wrong_type_raises_with_ollamas_text(name: str, value: object, text: str) -> None:
    """A wrong type is an error even of an option that a request cannot change."""
    with pytest.raises(OptionTypeError) as caught:
        sampling_fields({name: value}, num_ctx=100)

    assert str(caught.value) == text


def test_check_options_sound_table_is_empty() -> None:
    """What a request may send may stand in a table."""
    assert check_options({"temperature": 1, "stop": ["x"], "seed": 3}) == {}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("temprature", 1, "did you mean temperature?"),
        ("zzz", 1, "there are num_predict,"),
        ("num_ctx", 1, "use the key num_ctx"),
        ("num_batch", 1, "use the key batch_size"),
        ("num_gpu", 1, "use the key gpu_layers"),
        ("num_thread", 1, "use the key threads"),
        ("stop", "x", "must be of type array"),
    ],
)
def test_check_options_wrong_entry_says_what_to_write(name: str, value: object, text: str) -> None:
    """Unknown, load-time and mistyped options each get a mend."""
    problems = check_options({name: value, "seed": 1})

    assert problems.keys() == {name}
    assert text in problems[name]


def test_load_time_options_are_those_with_a_key() -> None:
    """They are the ones that llama-server takes as arguments."""
    assert {"num_ctx", "num_batch", "num_gpu", "num_thread"} <= LOAD_TIME_OPTIONS
    assert not {"temperature", "stop"} & LOAD_TIME_OPTIONS


def test_given_fields_are_only_those_that_a_layer_gives() -> None:
    """APIs with defaults of their own get no default of Ollama's, and no bound."""
    given = {"temperature": 0, "num_predict": -1, "top_k": None, "num_ctx": 9, "unknown": "x"}

    assert given_fields(given, num_ctx=8) == {"temperature": 0.0, "n_predict": -1}
    assert given_fields({}, num_ctx=8) == {}


def test_repeat_last_n_of_the_whole_context_is_told_as_a_number() -> None:
    """llama-server refuses -1 (b11434)."""
    assert given_fields({"repeat_last_n": -1}, num_ctx=8)["repeat_last_n"] == 8
    assert sampling_fields({"repeat_last_n": -1}, num_ctx=8)["repeat_last_n"] == 8


def test_given_fields_of_a_wrong_type_raise_with_ollamas_text() -> None:
    """As in a request to Ollama's own API."""
    with pytest.raises(OptionTypeError, match='option "top_k" must be of type integer'):
        given_fields({"top_k": "many"}, num_ctx=8)


def test_load_time_options_are_told_apart_and_typed() -> None:
    """Sampling and unknown options are none of them; a null is none; fractions are cut."""
    options = {
        "num_ctx": 512.9,
        "num_thread": None,
        "use_mmap": False,
        "kv_cache_type": "q8_0:q4_0",
        "temperature": 1,
        "low_vram": True,
    }

    assert load_time_options(options) == {
        "num_ctx": 512,
        "use_mmap": False,
        "kv_cache_type": "q8_0:q4_0",
    }
    assert load_time_options({}) == {}


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("num_ctx", "512", "integer"),
        ("num_ctx", True, "integer"),
        ("num_ctx", [512], "integer"),
        ("num_gpu", float("inf"), "integer"),
        ("use_mmap", "yes", "boolean"),
        ("use_mmap", 0, "boolean"),
        ("main_gpu", {}, "integer"),
        ("kv_cache_type", 8, "string"),
        ("kv_cache_type", ["q8_0"], "string"),
    ],
)
def test_load_time_options_of_a_wrong_type_raise_with_ollamas_text(
    name: str, value: object, kind: str
) -> None:
    """The text is the one of sampling options."""
    with pytest.raises(OptionTypeError) as caught:
        load_time_options({name: value})

    assert str(caught.value) == f'option "{name}" must be of type {kind}'


def test_load_time_options_are_the_fields_that_a_request_can_ask_for() -> None:
    """None of them can be forgotten on the way from a request to a load."""
    assert {field.name for field in msgspec.structs.fields(Asked)} == LOAD_TIME_OPTIONS


def test_load_time_options_name_keys_that_a_model_has() -> None:
    """What is said to be written instead can be written."""
    keys = {field.encode_name for field in msgspec.structs.fields(ModelConfig)}

    assert {OPTIONS[name].key for name in LOAD_TIME_OPTIONS} <= keys
