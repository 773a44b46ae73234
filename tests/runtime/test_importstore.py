"""What is read of an Ollama store."""

from pathlib import Path

import pytest

from kvsup.errors import ConfigError
from kvsup.runtime.importstore import read_store, store_of
from tests.stores import OllamaLayout

LIBRARY = "registry.ollama.ai/library"


def test_models_of_a_store_are_read_with_their_layers(tmp_path: Path) -> None:
    """Weights stay where they are; small layers are read."""
    store = OllamaLayout(tmp_path)
    manifest = store.add(
        "a:7b",
        store.text("model", "GGUF"),
        store.text("params", '{"num_ctx": 8}'),
        store.text("system", "Hi."),
        store.text("messages", '[{"role":"user","content":"a"},{"role":"tool","content":"b"}]'),
        config={"model_family": "llama"},
    )
    store.add("hf.co/org/Repo", config={"remote_host": "https://ollama.com"})

    remote, own = read_store(tmp_path)

    assert (own.name, own.manifest, own.is_library) == ("a:7b", str(manifest), True)
    assert (own.family, own.system, own.parameters) == ("llama", "Hi.", {"num_ctx": 8})
    assert own.messages == [{"role": "user", "content": "a"}]
    kind, path = own.layers[0]
    assert (kind, Path(path).read_bytes()) == ("model", b"GGUF")
    assert (remote.name, remote.is_remote) == ("hf.co/org/Repo:latest", True)
    assert not remote.is_library


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"config": {"digest": "sha256:00"}, "layers": []}',
        '{"config": {"digest": "../../etc/passwd"}, "layers": []}',
        '{"config": {"digest": "sha256:' + "0" * 64 + '"}, "layers": 3}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_manifest_that_is_spoilt_is_a_problem_of_its_model_alone(tmp_path: Path, text: str) -> None:
    """The others are read."""
    store = OllamaLayout(tmp_path)
    store.raw(f"{LIBRARY}/bad/latest", text)
    store.add("good", store.text("model", "GGUF"))

    bad, good = read_store(tmp_path)

    assert bad.problem.startswith("its manifest cannot be read: ")
    assert good.problem == ""


def test_files_that_make_no_name_are_no_models(tmp_path: Path) -> None:
    """Ollama passes over them, too."""
    store = OllamaLayout(tmp_path)
    store.raw(f"{LIBRARY}/a b/latest", "{}")
    store.raw(f"{LIBRARY}/.DS_Store", "{}")

    assert read_store(tmp_path) == []


def test_store_is_the_one_named_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any it says where it looked."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no Ollama store in /nowhere; name it: OLLAMA_MODELS"):
        store_of("/nowhere")

    (tmp_path / ".ollama/models/manifests").mkdir(parents=True)

    assert store_of(None) == tmp_path / ".ollama/models"
