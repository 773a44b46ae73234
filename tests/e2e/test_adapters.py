"""LoRAs that a model names are applied, each in full, on the real llama-server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapters import make_lora
from tests.running import RunningKvsup
from tests.stores import OllamaLayout
from tests.tiny import ADAPTED, ANSWER, TinyModels

MODEL = """
model = "{model}"
num_ctx = 256
threads = 1

[variants.one]
adapters = ["../../loras/one.gguf"]

[variants.both]
adapters = ["../../loras/one.gguf", "../../loras/two.gguf"]
"""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    folder = tmp_path_factory.mktemp("adapters")
    loras = folder / "loras"
    loras.mkdir()
    model = tiny.plain()
    one = make_lora(loras / "one.gguf", model, after="", says=" they")
    make_lora(loras / "two.gguf", model, after=" they", says=" told")
    store = OllamaLayout(folder / "ollama")
    store.add("stored", store.file("model", model), store.file("adapter", one))
    with RunningKvsup(
        folder / "kvsup",
        models={
            "plain": MODEL.format(model=model),
            "stored": 'model = "ollama:stored"\nthreads = 1\n',
        },
        llama_server=any_build,
        host="max_loaded_models = 2\n",
        environment={"OLLAMA_MODELS": str(store.root)},
    ) as running:
        yield running
    assert running.children() == []


def _post(kvsup: RunningKvsup, path: str, **body: Any) -> Any:
    answer = kvsup.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _said(kvsup: RunningKvsup, model: str) -> str:
    messages = [{"role": "user", "content": "Hi"}]
    answer = _post(kvsup, "/api/chat", model=model, messages=messages, stream=False)
    text: str = answer["message"]["content"]
    return text


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("plain", ANSWER),
        ("plain:one", ADAPTED),
        ("plain:both", "they told."),
        ("stored", ADAPTED),
    ],
)
def test_model_says_what_all_of_its_adapters_make_of_it(
    kvsup: RunningKvsup, model: str, expected: str
) -> None:
    """Those of a file, by paths from its folder, and that of a store."""
    assert _said(kvsup, model).strip() == expected


def test_show_tells_them_as_lines_of_the_modelfile(kvsup: RunningKvsup) -> None:
    """In their order, by their paths."""
    loras = kvsup.configs.parents[1] / "loras"

    lines = _post(kvsup, "/api/show", model="plain:both")["modelfile"].splitlines()

    assert [line for line in lines if line.startswith("ADAPTER")] == [
        f"ADAPTER {loras}/one.gguf",
        f"ADAPTER {loras}/two.gguf",
    ]
    assert "ADAPTER" not in _post(kvsup, "/api/show", model="plain")["modelfile"]


def test_bytes_of_adapters_are_weights(kvsup: RunningKvsup) -> None:
    """They are part of what is on the disk of it."""
    loras = (kvsup.configs.parents[1] / "loras").iterdir()
    models = kvsup.client.get("/api/tags").json()["models"]

    listed = {model["name"]: model["size"] for model in models}

    n_bytes = sum(path.stat().st_size for path in loras)
    assert listed["plain:both"] - listed["plain:latest"] == n_bytes


def test_adapter_of_a_modelfile_comes_behind_those_of_the_file_of_its_base(
    kvsup: RunningKvsup,
) -> None:
    """Of which the new model has its own copy of the key."""
    two = kvsup.configs.parents[1] / "loras/two.gguf"
    modelfile = kvsup.folder / "Modelfile"
    modelfile.write_text(f"FROM plain:one\nADAPTER {two}\n")

    made = kvsup.cli("create", "made", "-f", str(modelfile))

    assert made.returncode == 0, made.stderr
    assert _said(kvsup, "made").strip() == "they told."
