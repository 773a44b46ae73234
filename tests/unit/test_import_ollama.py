"""An installation of Ollama as kvsup's files: its variables, and the models of its store."""

from collections.abc import Mapping
from functools import partial

import pytest
import tomli

from kvsup.importing.ollama import StoredModel, Variable, read_env_file, read_ollama
from tests.importing import imported, tables

UNIT = """\
[Service]
Environment="OLLAMA_HOST=127.0.0.1:11435" 'OLLAMA_KV_CACHE_TYPE=q8_0'
# Environment=OLLAMA_DEBUG=1
  Environment=OLLAMA_NUM_PARALLEL=2 \\
    OLLAMA_FLASH_ATTENTION=1
ExecStart=/usr/bin/ollama serve
Environment=OLLAMA_KEEP_ALIVE=1d
Environment="OLLAMA_BROKEN
"""


def of(*models: StoredModel, **variables: str) -> tuple[dict[str, dict[str, object]], list[str]]:
    """Return files and notes of an installation."""
    named = {name: Variable(value, "environment") for name, value in variables.items()}
    return tables(partial(read_ollama, models, named, "/store"))


def model(
    *layers: str, parameters: Mapping[str, object] | None = None, **changes: object
) -> StoredModel:
    """Return a model with layers of these kinds."""
    facts: dict[str, object] = {
        "name": "m:latest",
        "manifest": "/store/manifests/m",
        "layers": [(kind, f"/store/blobs/{kind}") for kind in layers],
        "parameters": parameters or {},
        **changes,
    }
    return StoredModel(**facts)  # type: ignore[arg-type]


def test_unit_of_systemd_sets_the_variables_with_their_lines() -> None:
    """Several in a line, quoted, over two lines; comments and other settings set none."""
    variables = read_env_file(UNIT, "o.conf")

    assert variables == {
        "OLLAMA_HOST": Variable("127.0.0.1:11435", "o.conf", 2),
        "OLLAMA_KV_CACHE_TYPE": Variable("q8_0", "o.conf", 2),
        "OLLAMA_NUM_PARALLEL": Variable("2", "o.conf", 4),
        "OLLAMA_FLASH_ATTENTION": Variable("1", "o.conf", 4),
        "OLLAMA_KEEP_ALIVE": Variable("1d", "o.conf", 7),
    }


def test_plain_file_of_variables_is_read_too() -> None:
    """As EnvironmentFile= takes it, or a shell."""
    text = "OLLAMA_HOST=a\nexport OLLAMA_ORIGINS='http://b'\n; no\nlower=1\n"

    values = {name: variable.value for name, variable in read_env_file(text, "e").items()}

    assert values == {"OLLAMA_HOST": "a", "OLLAMA_ORIGINS": "http://b"}


def test_variables_become_keys_of_the_host() -> None:
    """By the table that kvsup reads them with itself; what it cannot read is told and dropped."""
    found = read_ollama((), read_env_file(UNIT, "o.conf"), "/store")

    host = tomli.loads(imported(found)["kvsup.toml"])

    assert host == {
        "port": 11435,
        "kv_cache_type": "q8_0",
        "num_parallel": 2,
        "flash_attention": "on",
    }
    assert any(str(note).startswith("o.conf:7: OLLAMA_KEEP_ALIVE: ") for note in found.all_notes)


def test_variables_without_equivalent_are_told_with_what_to_use() -> None:
    """As doctor does; an open host needs keys here."""
    _, notes = of(OLLAMA_DEBUG="1", OLLAMA_MODELS="/x", OLLAMA_HOST="0.0.0.0", PATH="/bin")

    assert "environment: OLLAMA_DEBUG: use log_level in kvsup.toml" in notes
    assert any("OLLAMA_HOST: beyond this machine" in note for note in notes)
    assert not any("OLLAMA_MODELS" in note or "PATH" in note for note in notes)


def test_layers_become_keys() -> None:
    """Weights, projector, draft and adapters by path; the system prompt and messages as text."""
    layers = ("model", "projector", "draft", "adapter", "license", "template", "messages")

    messages = [
        {"role": "user", "content": 'Say "hi"\nonce.\t\x07'},
        {"role": "assistant", "content": "hi"},
    ]

    files, notes = of(
        model(*layers, system='Say "hi"\nonce.\t\x07', messages=messages, parameters={"top_k": 3})
    )

    assert files["m"] == {
        "model": "/store/blobs/model",
        "mmproj": "/store/blobs/projector",
        "draft_model": "/store/blobs/draft",
        "adapters": ["/store/blobs/adapter"],
        "system": 'Say "hi"\nonce.\t\x07',
        "messages": messages,
        "options": {"top_k": 3},
    }
    told = [note.partition(": m ")[2].partition(":")[0] for note in notes]
    assert sorted(filter(None, told)) == ["template"]


def test_parameters_become_options_or_keys() -> None:
    """Those that act at load time are keys; -1 leaves it to llama-server; unknown ones are told."""
    parameters = {
        "temperature": 0.2,
        "stop": ["a", "b"],
        "num_ctx": 2048,
        "num_gpu": -1,
        "num_thread": 4.0,
        "num_batch": 128,
        "main_gpu": 0,
        "use_mmap": False,
        "draft_num_predict": 5,
        "mirostat": 1,
        "top_k": "many",
        "kv_cache_type": 8,
    }

    files, notes = of(model("model", parameters=parameters))

    assert files["m"] == {
        "model": "/store/blobs/model",
        "options": {"temperature": 0.2, "stop": ["a", "b"]},
        "num_ctx": 2048,
        "threads": 4,
        "batch_size": 128,
        "main_gpu": 0,
        "use_mmap": False,
        "extra_args": ["--spec-draft-n-max", "5"],
    }
    told = {note.partition("parameter ")[2].partition(":")[0] for note in notes} - {""}
    assert told == {"mirostat", "top_k", "kv_cache_type"}


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (model(is_remote=True), "is served by Ollama's cloud"),
        (model("tensor", "json"), "is made of tensors"),
        (model("license"), "has no weights"),
        (model(problem="is spoilt"), "is spoilt"),
    ],
)
def test_model_without_gguf_file_is_left_out_with_the_reason(
    stored: StoredModel, reason: str
) -> None:
    """There is nothing that llama-server could load."""
    files, notes = of(stored)

    assert files == {}
    assert any(reason in note and note.endswith("m is left out") for note in notes)


def test_file_of_ollamas_own_engine_is_warned_of() -> None:
    """Only where it came from Ollama's registry."""
    _, notes = of(model("model", family="gemma3", is_library=True))
    _, others = of(model("model", family="gemma3"))

    assert any("may be written for its engine alone" in note for note in notes)
    assert not any("engine alone" in note for note in others)


def test_names_keep_their_tag_unless_it_is_the_default() -> None:
    """Ollama's clients find each model under the name that they know."""
    names = ["a:latest", "a:7b", "hf.co/org/Repo:Q4"]

    files, _ = of(*(model("model", name=name) for name in names))

    assert {stem: table.get("name") for stem, table in files.items()} == {
        "a": None,
        "a-7b": "a:7b",
        "hf.co-org-repo-q4": "hf.co/org/Repo:Q4",
    }
