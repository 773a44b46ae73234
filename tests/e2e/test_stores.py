"""Models of an Ollama store, of Hugging Face's cache and of a folder, served as they lie there."""

import os
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.conftest import StartKvsup
from tests.running import RunningKvsup, eventually
from tests.stores import HubLayout, OllamaLayout, link
from tests.tiny import TinyModels

PIRATE = "You are a pirate. Say arrr."
PARAMETERS = (
    '{"temperature": 0, "seed": 7, "num_predict": 4, "stop": ["<|im_end|>"], "num_ctx": 512}'
)
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def store(tmp_path: Path, smollm2: Path) -> OllamaLayout:
    """Return a store with one model that says all that a store can say of an ordinary one."""
    layout = OllamaLayout(tmp_path / "ollama")
    layout.add(
        "smollm2:135m",
        layout.file("model", smollm2),
        layout.text("system", PIRATE),
        layout.text("params", PARAMETERS),
        layout.text("template", "{{ .System }}{{ .Prompt }}"),
        layout.text("license", "Apache License, Version 2.0"),
    )
    return layout


def _names(kvsup: RunningKvsup) -> set[str]:
    return {model["name"] for model in kvsup.client.get("/api/tags").json()["models"]}


def _digests(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what is in a folder, with sizes and times."""
    found = {}
    for place, _, files in os.walk(folder):
        for name in files:
            status = (Path(place) / name).lstat()
            found[str(Path(place) / name)] = (status.st_size, status.st_mtime_ns)
    return found


def _error(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


def test_model_of_an_ollama_store_is_served_with_what_the_store_says(
    start_kvsup: StartKvsup, store: OllamaLayout
) -> None:
    """Its parameters and system prompt hold, over which the TOML file stands; nothing is copied."""
    before = _digests(store.root)
    kvsup = start_kvsup(
        {"pirate": 'model = "ollama:smollm2:135m"\nthreads = 1\n[options]\nnum_predict = 3\n'},
        environment={"OLLAMA_MODELS": str(store.root)},
    )

    with ollama.Client(host=kvsup.url) as client:
        shown = client.show("pirate")
        answer = client.chat("pirate", messages=HI)
        rendered = kvsup.client.post(
            "/api/chat", json={"model": "pirate", "messages": HI, "_debug_render_only": True}
        ).json()
    (process,) = kvsup.children()

    assert answer.message.content
    assert answer.eval_count == 3
    assert PIRATE in rendered["_debug_info"]["rendered_template"]
    assert "<|im_start|>" in rendered["_debug_info"]["rendered_template"]
    assert shown["license"] == "Apache License, Version 2.0"
    assert f"SYSTEM {PIRATE}" in shown["modelfile"]
    assert {tuple(line.split()) for line in shown["parameters"].splitlines()} == {
        ("temperature", "0"),
        ("seed", "7"),
        ("num_predict", "3"),
        ("stop", '"<|im_end|>"'),
        ("num_ctx", "512"),
    }
    command = process.cmdline()
    assert Path(command[command.index("--model") + 1]).parent == store.root / "blobs"
    assert command[command.index("--ctx-size") + 1] == "512"
    assert _digests(store.root) == before


def test_sources_are_served_without_a_file_each(
    start_kvsup: StartKvsup, store: OllamaLayout, tmp_path: Path, smollm2: Path
) -> None:
    """They are listed and can be run; a file of the same name wins; none is deleted by request."""
    hub = HubLayout(tmp_path / "hub")
    hub.add("HuggingFaceTB/SmolLM2-135M-GGUF", "SmolLM2-Q4_1.gguf", smollm2)
    link(smollm2, tmp_path / "ggufs" / "lab" / "Tiny one.gguf")
    store.add("mine", store.file("model", smollm2))
    kvsup = start_kvsup(
        {"mine": f'model = "{smollm2}"\nthreads = 1\nsystem = "by hand"\n'},
        host=f"""
        [sources]
        ollama = true
        huggingface = "{tmp_path}/hub"
        folders = ["{tmp_path}/ggufs"]
        """,
        environment={"OLLAMA_MODELS": str(store.root)},
    )
    hub_name = "hf.co/HuggingFaceTB/SmolLM2-135M-GGUF:Q4_1"

    with ollama.Client(host=kvsup.url) as client:
        answers = [
            client.chat(name, messages=HI, options={"num_predict": 2}).message.content
            for name in ("smollm2:135m", "hf.co/huggingfacetb/smollm2-135m-gguf:q4_1", "tiny-one")
        ]
        by_hand = kvsup.client.post("/api/show", json={"model": "mine"}).json()["system"]
    refused = kvsup.client.request("DELETE", "/api/delete", json={"model": hub_name})
    unwritten = kvsup.cli("tune", "smollm2:135m", "--write").stderr
    copied = kvsup.client.post(
        "/api/copy", json={"source": "smollm2:135m", "destination": "my-pirate"}
    )

    assert copied.status_code == 200, copied.text
    assert _names(kvsup) == {
        "mine:latest",
        "smollm2:135m",
        hub_name,
        "Tiny-one:latest",
        "my-pirate:latest",
    }
    assert all(answers)
    assert by_hand == "by hand"
    status, text = _error(refused)
    assert 'needs a TOML file of its own (model = "ollama:smollm2:135m")' in " ".join(
        unwritten.split()
    )
    assert (status, "where kvsup deletes nothing" in text) == (501, True)
    assert 'model = "ollama:smollm2:135m"' in (kvsup.configs / "my-pirate.toml").read_text()


def test_sources_are_followed_while_kvsup_runs(
    start_kvsup: StartKvsup, store: OllamaLayout, tmp_path: Path, smollm2: Path
) -> None:
    """What another program fetches or deletes comes and goes; half of a file is no model yet."""
    folder = tmp_path / "ggufs"
    folder.mkdir()
    (folder / "half.gguf").write_bytes(smollm2.read_bytes()[:5000])
    kvsup = start_kvsup(
        {},
        host=f'[sources]\nollama = "{store.root}"\nfolders = ["{folder}"]\n',
    )

    first = _names(kvsup)
    store.add("second", store.file("model", smollm2))
    eventually(lambda: _names(kvsup) == {"smollm2:135m", "second:latest"})
    (store.root / "manifests/registry.ollama.ai/library/smollm2/135m").unlink()
    eventually(lambda: _names(kvsup) == {"second:latest"})
    with (folder / "half.gguf").open("ab") as file:
        file.write(smollm2.read_bytes()[5000:])
    eventually(lambda: _names(kvsup) == {"second:latest", "half:latest"})

    assert first == {"smollm2:135m"}
    assert "left out" in kvsup.log()
    assert "truncated" in kvsup.log()


def test_model_that_only_ollama_loads_fails_with_that_cause(
    start_kvsup: StartKvsup, store: OllamaLayout, tiny: TinyModels, tmp_path: Path
) -> None:
    """Not with llama-server's word about an architecture, which a person could do nothing about."""
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(tiny.plain().read_bytes().replace(b"llama", b"olmo3"))
    store.add("foreign", store.file("model", foreign))
    kvsup = start_kvsup(
        {"mine": 'model = "ollama:foreign"\nthreads = 1\n'},
        environment={"OLLAMA_MODELS": str(store.root)},
    )

    answer = kvsup.client.post("/api/chat", json={"model": "mine", "messages": HI})
    why = kvsup.cli("why", "mine").stdout

    assert answer.status_code == 500
    for text in (answer.json()["error"], " ".join(why.split())):
        assert "its architecture olmo3 is one of Ollama's own engine" in text
        assert "hf:ORG/REPO" in text
    assert "mine: a stock llama-server does not load it" in kvsup.log()
