"""Ollama's variables as defaults for the host."""

import pytest

from kvsup.environment import ignored_variables, parse_host, read_environment


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("1.2.3.4", "1.2.3.4", 11434),
        ("1.2.3.4:5678", "1.2.3.4", 5678),
        ("example.com", "example.com", 11434),
        ("example.com:1", "example.com", 1),
        (":1234", "0.0.0.0", 1234),
        (":0", "0.0.0.0", 0),
        (":66000", "0.0.0.0", 11434),
        (":-1", "0.0.0.0", 11434),
        ("[::1]", "::1", 11434),
        ("::1", "::1", 11434),
        ("[::1]:1337", "::1", 1337),
        ("[::]:1337", "::", 1337),
        ("http://1.2.3.4", "1.2.3.4", 80),
        ("https://1.2.3.4", "1.2.3.4", 443),
        ("https://example.com/ollama", "example.com", 443),
        ("http://1.2.3.4:5678/", "1.2.3.4", 5678),
        ("example.com/path", "example.com", 11434),
    ],
)
def test_parse_host_of_each_form_is_what_ollama_listens_on(text: str, host: str, port: int) -> None:
    """The forms and defaults are those of Ollama's envconfig."""
    assert parse_host(text) == (host, port)


@pytest.mark.parametrize(
    ("name", "value", "table"),
    [
        ("OLLAMA_HOST", "1.2.3.4:5", {"host": "1.2.3.4", "port": 5}),
        ("OLLAMA_KV_CACHE_TYPE", "q8_0:q5_1", {"kv_cache_type": "q8_0:q5_1"}),
        ("OLLAMA_KEEP_ALIVE", "10m", {"keep_alive": "10m"}),
        ("OLLAMA_KEEP_ALIVE", "600", {"keep_alive": "600"}),
        ("OLLAMA_KEEP_ALIVE", "-1", {"keep_alive": "-1"}),
        ("OLLAMA_KEEP_ALIVE", "0", {"keep_alive": "0"}),
        ("OLLAMA_LOAD_TIMEOUT", "1m", {"load_timeout": "1m"}),
        ("OLLAMA_MAX_LOADED_MODELS", "3", {"max_loaded_models": 3}),
        ("OLLAMA_MAX_LOADED_MODELS", "0", {}),
        ("OLLAMA_NUM_PARALLEL", "4", {"num_parallel": 4}),
        ("OLLAMA_CONTEXT_LENGTH", "8192", {"num_ctx": 8192}),
        ("OLLAMA_CONTEXT_LENGTH", "0", {}),
        ("OLLAMA_MAX_QUEUE", "7", {"max_queue": 7}),
        ("OLLAMA_MAX_QUEUE", "many", {"max_queue": "many"}),
        ("OLLAMA_ORIGINS", "https://a, app://b*", {"origins": ["https://a", "app://b*"]}),
        ("OLLAMA_FLASH_ATTENTION", "1", {"flash_attention": "on"}),
        ("OLLAMA_FLASH_ATTENTION", "yes", {"flash_attention": "on"}),
        ("OLLAMA_FLASH_ATTENTION", "false", {"flash_attention": "off"}),
        ("OLLAMA_FLASH_ATTENTION", "0", {"flash_attention": "off"}),
    ],
)
def test_read_environment_of_a_variable_sets_the_key_it_stands_for(
    name: str, value: str, table: dict[str, object]
) -> None:
    """Every variable that kvsup honours, in the form in which ``kvsup.toml`` would hold it."""
    environment = read_environment({name: value})

    assert environment.table == table
    assert environment.spelling == dict.fromkeys(table, name)


@pytest.mark.parametrize("value", ["", "  ", '""', "''"])
def test_read_environment_of_an_empty_variable_asks_for_nothing(value: str) -> None:
    """An empty variable is as good as none, also in quotes."""
    assert read_environment({"OLLAMA_HOST": value, "OLLAMA_KEEP_ALIVE": value}).table == {}


def test_read_environment_of_a_quoted_variable_drops_the_quotes() -> None:
    """Blanks, then quotes around a value are stripped, as in Ollama."""
    assert read_environment({"OLLAMA_KEEP_ALIVE": ' "5m" '}).table == {"keep_alive": "5m"}


def test_ignored_variables_have_a_word_each_and_the_honoured_ones_are_not_among_them() -> None:
    """Who comes from Ollama learns what a variable means here, or that it means nothing."""
    environ = {
        "OLLAMA_HOST": "x",
        "OLLAMA_MODELS": "/models",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_SOMETHING": "1",
        "PATH": "/bin",
    }

    assert ignored_variables(environ) == {
        "OLLAMA_NOPRUNE": "kvsup never deletes a model file",
        "OLLAMA_SOMETHING": "kvsup does not know it",
    }
