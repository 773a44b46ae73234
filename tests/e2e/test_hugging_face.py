"""Models of Hugging Face, pulled from a stand-in of its hub through its own library."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvsup.runtime.bringing import digest_of
from scripts.make_tiny_gguf import make_scripted
from tests.conftest import StartKvsup
from tests.hub import Hub
from tests.running import RunningKvsup
from tests.stores import HubLayout
from tests.tiny import ANSWER, TinyModels, png

HI = [{"role": "user", "content": "Hi"}]

Start = Callable[..., RunningKvsup]


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Return a hub without any repository."""
    with Hub() as hub:
        yield hub


@pytest.fixture
def start(start_kvsup: StartKvsup, hub: Hub, tmp_path: Path) -> Start:
    """Return what starts a kvsup that asks the hub, as nobody unless said otherwise."""

    def start(**environment: str) -> RunningKvsup:
        return start_kvsup(
            {},
            host=f'registries = ["hf.co", "{hub.cdn.host}"]\nnum_ctx = 512\n',
            environment={
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_OFFLINE": "0",  # other tests forbid their clients to ask it
                "HF_TOKEN": "",
                **environment,
            },
        )

    return start


def _pull(kvsup: RunningKvsup, model: str) -> dict[str, Any]:
    answer = kvsup.client.post("/api/pull", json={"model": model, "stream": False})
    return dict(answer.json())


def _said(kvsup: RunningKvsup, model: str, **message: object) -> str:
    messages = [{**HI[0], **message}]
    body = {"model": model, "messages": messages, "stream": False}
    answer = kvsup.client.post("/api/chat", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["message"]["content"])


def _layers(kvsup: RunningKvsup) -> list[dict[str, Any]]:
    (path,) = [p for p in (kvsup.store / "manifests").rglob("*") if p.is_file()]
    return list(json.loads(path.read_text())["layers"])


def test_quantization_that_is_named_is_fetched(start: Start, hub: Hub, tiny: TinyModels) -> None:
    """At the commit of now; the file's origin is noted, and it is called as by Ollama."""
    files: dict[str, Path | bytes] = {
        "m-Q8_0.gguf": tiny.plain(),
        "m-Q4_0.gguf": b"no GGUF",
        "README.md": b"#",
    }
    hub.add("org/m-GGUF", files)
    kvsup = start()

    assert _pull(kvsup, "hf.co/org/m-GGUF:Q8_0") == {"status": "success"}

    names = [model["name"] for model in kvsup.client.get("/api/tags").json()["models"]]
    assert names == ["hf.co/org/m-GGUF:Q8_0"]
    assert _layers(kvsup)[0]["from"] == f"hf.co/org/m-GGUF@{'a' * 40}/m-Q8_0.gguf"
    assert _said(kvsup, "hf.co/org/m-gguf:q8_0") == ANSWER


def test_file_names_what_was_pulled_as_what_lies_in_the_hubs_cache(
    start: Start, hub: Hub, tiny: TinyModels
) -> None:
    """``hf:ORG/REPO:TAG`` looks in kvsup's own store first; what is in neither is told to pull."""
    hub.add("org/m-GGUF", {"m-Q8_0.gguf": tiny.plain()})
    kvsup = start()
    _pull(kvsup, "hf.co/org/m-GGUF:Q8_0")
    kvsup.write("tuned", 'model = "hf:org/m-GGUF:Q8_0"\nkv_cache_type = "q8_0:q4_0"\n')
    kvsup.client.post("/kvsup/reload").raise_for_status()
    kvsup.write("other", 'model = "hf:org/m-GGUF:Q4_0"\n')

    refused = kvsup.client.post("/kvsup/reload")

    (kvsup.configs / "other.toml").unlink()
    removed = kvsup.cli("rm", "hf.co/org/m-GGUF:Q8_0")

    assert removed.returncode == 1
    assert "tuned.toml is made of hf.co/org/m-GGUF:Q8_0" in removed.stderr
    assert _said(kvsup, "tuned") == ANSWER
    assert "kvsup pull hf.co/org/m-GGUF:Q4_0" in refused.text


def test_projector_comes_along(start: Start, hub: Hub, tiny: TinyModels) -> None:
    """Where the repository has one."""
    model, projector = tiny.vision()
    hub.add("org/v-GGUF", {"v-Q8_0.gguf": model, "mmproj-v-f16.gguf": projector})
    kvsup = start()
    image = base64.b64encode(png()).decode()

    assert _pull(kvsup, "hf.co/org/v-GGUF") == {"status": "success"}
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in _layers(kvsup)]
    assert kinds == ["model", "projector"]
    assert _said(kvsup, "hf.co/org/v-GGUF", images=[image]) == ANSWER


def test_split_model_is_served_part_by_part(start: Start, hub: Hub, tmp_path: Path) -> None:
    """A real llama-server finds its parts by the names that they get."""
    make_scripted(tmp_path / "s.gguf", part_tensors=5)
    parts = {f"s-Q8_0-{p.stem[2:]}.gguf": p for p in sorted(tmp_path.glob("s-0*.gguf"))}
    assert len(parts) == 3
    hub.add("org/s-GGUF", parts)
    kvsup = start()

    assert _pull(kvsup, "hf.co/org/s-GGUF:Q8_0") == {"status": "success"}
    assert len(_layers(kvsup)) == 3
    assert _said(kvsup, "hf.co/org/s-GGUF:Q8_0") == ANSWER


def test_commit_that_is_newer_replaces_the_older(start: Start, hub: Hub, tiny: TinyModels) -> None:
    """What did not change is not fetched again."""
    hub.add("org/m-GGUF", {"m-Q8_0.gguf": tiny.plain()})
    kvsup = start()
    _pull(kvsup, "hf.co/org/m-GGUF")
    n_fetched = len(hub.cdn.seen)
    _pull(kvsup, "hf.co/org/m-GGUF")
    n_again = len(hub.cdn.seen)
    hub.add("org/m-GGUF", {"m-Q8_0.gguf": tiny.fill_in()}, commit="b" * 40)

    _pull(kvsup, "hf.co/org/m-GGUF")

    assert n_again == n_fetched
    assert _layers(kvsup)[0]["from"].startswith(f"hf.co/org/m-GGUF@{'b' * 40}/")
    assert len(list((kvsup.store / "blobs").iterdir())) == 2
    assert _said(kvsup, "hf.co/org/m-GGUF") == ANSWER


def test_file_of_the_users_cache_is_not_fetched(
    start: Start, hub: Hub, tiny: TinyModels, tmp_path: Path
) -> None:
    """It is looked for where ``HF_HOME`` says, whether ``[sources]`` lists it or not."""
    digest = digest_of(tiny.plain(), lambda _n_bytes: None)
    HubLayout(tmp_path / "hf/hub").add("o/r", "m.gguf", tiny.plain(), digest=digest)
    hub.add("org/m-GGUF", {"m-Q8_0.gguf": tiny.plain()})
    kvsup = start()

    assert _pull(kvsup, "hf.co/org/m-GGUF") == {"status": "success"}
    assert not hub.cdn.seen
    assert _said(kvsup, "hf.co/org/m-GGUF") == ANSWER


def test_closed_repository_needs_the_users_token(start: Start, hub: Hub, tiny: TinyModels) -> None:
    """It goes to the hub alone, not to where its files lie; without one the mend is told."""
    hub.add("org/m-GGUF", {"m-Q8_0.gguf": tiny.plain()})
    hub.token = "hf_secret"
    nobody, somebody = start(), start(HF_TOKEN="hf_secret")

    refused = _pull(nobody, "hf.co/org/m-GGUF")
    pulled = _pull(somebody, "huggingface.co/org/m-GGUF")

    assert "unauthorized: access denied to org/m-GGUF" in refused["error"]
    assert f"accept its conditions at {hub.url}/org/m-GGUF, then set HF_TOKEN" in refused["error"]
    assert pulled == {"status": "success"}
    assert {seen.authorization for seen in hub.cdn.seen} == {""}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("hf.co/org/none", "org/none: file does not exist"),
        ("hf.co/org/text", "org/text: no GGUF file of it is there"),
        ("hf.co/org/many", "several files of it are there; add one of :IQ1_M, :Q2_K"),
        ("hf.co/org/many:Q9", "no Q9 of it is there, only IQ1_M, Q2_K"),
        ("hf.co/org/small", "the hub has no digest of m-Q8_0.gguf"),
    ],
)
def test_what_is_not_there_is_told(start: Start, hub: Hub, model: str, told: str) -> None:
    """With what is."""
    hub.add("org/text", {"model.safetensors": b"x"})
    hub.add("org/many", {"m-Q2_K.gguf": b"x", "m-IQ1_M.gguf": b"y"})
    hub.add("org/small", {"m-Q8_0.gguf": b"x"})
    hub.without_digest("m-Q8_0.gguf")

    answer = _pull(start(), model)

    assert answer["error"].startswith("pull model manifest: ")
    assert told in answer["error"]
