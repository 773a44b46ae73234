"""Models that are made by ``/api/create``, of other models and of uploaded files."""

import hashlib
import json
from typing import Any

import pytest

from tests.conftest import StartKvsup
from tests.creating import post, said, store_files, toml_of, upload
from tests.running import RunningKvsup
from tests.tiny import ADAPTED, ANSWER, TinyModels


@pytest.fixture
def kvsup(start_kvsup: StartKvsup, tiny: TinyModels) -> RunningKvsup:
    """Return a kvsup with one model that has a file of its own."""
    base = f'model = "{tiny.plain()}"\nnum_ctx = 512\nkv_cache_type = "q8_0:q5_1"\nthreads = 1\n'
    return start_kvsup({"base": base})


def test_files_make_a_model_by_the_api(kvsup: RunningKvsup, tiny: TinyModels) -> None:
    """Uploaded once; a second upload is answered without being stored."""
    digest = upload(kvsup, tiny.plain())
    here = kvsup.client.head(f"/api/blobs/{digest}")
    again = kvsup.client.post(f"/api/blobs/{digest}", content=tiny.plain().read_bytes())

    status, answer = post(
        kvsup, "/api/create", model="made", files={"m.gguf": digest}, parameters={"num_ctx": 512}
    )

    assert here.status_code == 200
    assert again.status_code == 200
    assert (status, answer) == (200, {"status": "success"})
    assert said(kvsup, "made") == ANSWER


def test_files_of_two_models_make_none(kvsup: RunningKvsup, tiny: TinyModels) -> None:
    """Only parts of one model go together."""
    files = {
        f"{n}.gguf": upload(kvsup, path) for n, path in enumerate([tiny.plain(), tiny.fill_in()])
    }

    status, answer = post(kvsup, "/api/create", model="made", files=files)

    assert status == 400
    assert "2 models, and not the parts of one" in answer["error"]


def test_blob_that_is_not_what_it_says_is_kept_under_what_it_is(kvsup: RunningKvsup) -> None:
    """As Ollama does; malformed digests are refused."""
    data = b"GGUF no more"
    true = hashlib.sha256(data).hexdigest()
    wrong = kvsup.client.post(f"/api/blobs/sha256:{'0' * 64}", content=data)
    absent = kvsup.client.head(f"/api/blobs/sha256:{'0' * 64}")
    present = kvsup.client.head(f"/api/blobs/sha256-{true}")
    forms = ["sha256:12", "md5:" + "0" * 64, "sha256:" + "g" * 64, "..%2f..%2fetc"]

    assert wrong.status_code == 400
    assert wrong.json()["error"] == (
        f'digest mismatch, expected "sha256:{"0" * 64}", got "sha256:{true}"'
    )
    assert (absent.status_code, present.status_code) == (404, 200)
    for form in forms:
        assert kvsup.client.post(f"/api/blobs/{form}", content=b"x").status_code in {400, 404}
    assert store_files(kvsup) == {f"blobs/sha256-{true}"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "neither 'from' or 'files' was specified"),
        ({"files": {"../m.gguf": "sha256:" + "0" * 64}}, "file path must be relative"),
        ({"files": {"/m.gguf": "sha256:" + "0" * 64}}, "file path must be relative"),
        ({"files": {"m.gguf": "sha256:../../etc/passwd"}}, "invalid digest format"),
        ({"files": {"m.gguf": ""}}, "invalid digest format"),
        ({"files": {"m.gguf": "sha256:" + "0" * 64}}, "no such file or directory"),
        ({"files": {"model.safetensors": "sha256:" + "0" * 64}}, "convert_hf_to_gguf.py"),
        ({"from": "../../x"}, "invalid model name"),
        ({"from": "base", "remote_host": "ollama.com"}, "leave remote_host out"),
        ({"from": "base", "quantize": "Q9_Z"}, "unsupported quantization type Q9_Z"),
        ({"from": "base", "parameters": {"temperature": "hot"}}, "temperature"),
        ({"from": "gone"}, "registry.ollama.ai is none of the registries"),
    ],
)
def test_wrong_creation_is_told(kvsup: RunningKvsup, body: dict[str, Any], told: str) -> None:
    """With what is wrong, and nothing of it stays."""
    status, answer = post(kvsup, "/api/create", model="made", **body)

    assert status in {400, 500}
    assert told in answer["error"]
    assert "made" not in kvsup.models()
    assert not [name for name in store_files(kvsup) if name.startswith("manifests")]


@pytest.mark.parametrize("name", ["", "../x", "a/b/c/d", "x:", "evil\x00", "a" * 100, "x@sha256:0"])
def test_name_that_is_none_is_refused(kvsup: RunningKvsup, name: str) -> None:
    """By Ollama's grammar, before anything is looked at."""
    status, answer = post(kvsup, "/api/create", model=name, **{"from": "base"})

    assert (status, answer) == (400, {"error": "invalid model name"})


def test_fields_of_a_creation_are_taken(kvsup: RunningKvsup, tiny: TinyModels) -> None:
    """Over what the base says: the store has each, and what llama-server can do is done."""
    adapter, draft = upload(kvsup, tiny.adapter()), upload(kvsup, tiny.plain())
    first = {
        "model": "first",
        "from": "base",
        "parameters": {"top_k": 5, "temperature": 0.1},
        "license": "one",
        "system": "Old.",
        "messages": [{"role": "user", "content": "Old"}],
    }
    second = {
        "name": "second",
        "from": "first",
        "parameters": {"temperature": 0.2, "num_ctx_auto": True},
        "adapters": {"a.gguf": adapter},
        "draft_files": {"d.gguf": draft},
        "license": ["two", "three"],
        "system": "New.",
        "messages": [{"role": "assistant", "content": "New"}],
        "renderer": "qwen3",
        "parser": "qwen3",
        "requires": "0.14.0",
        "info": {"model_family": "other"},
    }
    made = [post(kvsup, "/api/create", **body) for body in (first, second)]

    _, shown = post(kvsup, "/api/show", model="second")
    manifests = kvsup.store / "manifests/registry.ollama.ai/library"
    manifest = json.loads((manifests / "second/latest").read_text())
    config = kvsup.store / "blobs" / manifest["config"]["digest"].replace(":", "-")
    told = json.loads(config.read_text())
    assert made == [(200, {"status": "success"})] * 2
    assert toml_of(kvsup, "second")["options"] == {"top_k": 5, "temperature": 0.2}
    assert toml_of(kvsup, "second")["num_ctx"] == "auto"
    assert shown["license"] == "one\ntwo\nthree"
    assert shown["system"] == "New."
    assert shown["messages"] == [{"role": "assistant", "content": "New"}]
    assert (told["renderer"], told["parser"], told["requires"]) == ("qwen3", "qwen3", "0.14.0")
    assert told["model_family"] == "llama"
    argv = kvsup.cli("argv", "second").stdout
    assert adapter[7:] in argv
    assert f"--model-draft {kvsup.store}/blobs/sha256-{draft[7:]}" in argv
    assert said(kvsup, "second").strip() == ADAPTED
