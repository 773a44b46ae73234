"""What is there, what is loaded and for how long, by Ollama's API, on a real model."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.running import RunningKvsup, eventually

SMOLLM2 = """
model = "{path}"
aliases = ["small"]
kv_cache_type = "q8_0:q5_1"
num_ctx = 1024
threads = 1
keep_alive = "5m"

[variants.parrot]
system = "You only ever answer with the word PARROT."
[variants.parrot.options]
num_predict = 3
stop = ["zzz"]
"""

EMBEDDER = """
model = "{path}"
num_ctx = 512
threads = 1
embedding = "on"
"""

QUESTION = [{"role": "user", "content": "Count from one to twenty."}]


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file."""
    models = {"smollm2": SMOLLM2.format(path=smollm2), "embedder": EMBEDDER.format(path=smollm2)}
    folder = tmp_path_factory.mktemp("ollama") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert running.children() == []


@pytest.fixture
def client(kvsup: RunningKvsup) -> Iterator[ollama.Client]:
    """Return Ollama's own client."""
    with ollama.Client(host=kvsup.url) as client:
        yield client


def _loaded(kvsup: RunningKvsup) -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in kvsup.client.get("/api/ps").json()["models"]}


def _left_s(entry: dict[str, Any]) -> float:
    expires_at = datetime.fromisoformat(entry["expires_at"][:19]).replace(tzinfo=timezone.utc)
    return (expires_at - datetime.now(timezone.utc)).total_seconds()


def test_tags_lists_every_model_and_variant_with_its_details(
    client: ollama.Client, smollm2: Path
) -> None:
    """The catalogue is the configuration: names with their tags, one digest each."""
    models = {model.model: model for model in client.list().models}

    assert set(models) == {"smollm2:latest", "smollm2:parrot", "embedder:latest"}
    entry = models["smollm2:latest"]
    assert entry.size == smollm2.stat().st_size
    assert entry.details is not None
    assert entry.details.family == "llama"
    assert entry.details.format == "gguf"
    assert entry.details.parameter_size == "134.52M"
    assert entry.details.quantization_level == "Q4_1"
    digests = {model.digest for model in models.values()}
    assert len(digests) == 3
    assert all(digest and len(digest) == 64 for digest in digests)


def test_show_has_what_clients_read(client: ollama.Client) -> None:
    """Context, template, parameters, capabilities, and the model's metadata."""
    shown = client.show("smollm2:parrot")

    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.block_count"] == 30
    assert shown.capabilities == ["completion"]
    assert shown.template is not None
    assert "<|im_start|>" in shown.template
    assert shown.parameters is not None
    assert f"{'num_predict':<30} 3" in shown.parameters.splitlines()
    assert f"{'num_ctx':<30} 1024" in shown.parameters.splitlines()
    assert shown.modelfile is not None
    assert "SYSTEM You only ever answer with the word PARROT." in shown.modelfile


def test_show_by_the_old_field_name_answers(kvsup: RunningKvsup) -> None:
    """Litellm asks with ``name``."""
    answer = kvsup.client.post("/api/show", json={"name": "smollm2"})

    assert answer.status_code == 200
    assert answer.json()["details"]["family"] == "llama"


def test_capabilities_of_a_chat_model_with_embeddings_are_both(client: ollama.Client) -> None:
    """``embedding = "on"`` adds embeddings to a chat model."""
    assert client.show("embedder").capabilities == ["completion", "embedding"]


@pytest.mark.parametrize("stream", [{}, {"stream": True}, {"stream": False}])
def test_load_and_unload_by_empty_prompts_answer_one_plain_object(
    kvsup: RunningKvsup, stream: dict[str, bool]
) -> None:
    """Loading and unloading is one JSON object, even if a stream was asked for."""
    body = {"model": "smollm2", **stream}

    load = kvsup.client.post("/api/generate", json=body)
    loaded = _loaded(kvsup)
    unload = kvsup.client.post("/api/generate", json={**body, "keep_alive": 0})

    assert "smollm2:latest" in loaded

    for answer, reason in ((load, "load"), (unload, "unload")):
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        assert not answer.content.endswith(b"\n")
        fields = answer.json()
        assert set(fields) == {"model", "created_at", "response", "done", "done_reason"}
        assert fields["response"] == ""
        assert fields["done_reason"] == reason
    eventually(lambda: "smollm2:latest" not in _loaded(kvsup))


def test_load_and_unload_by_an_empty_chat_answer_an_empty_message(kvsup: RunningKvsup) -> None:
    """As generate, with an empty message."""
    empty = {"role": "assistant", "content": ""}

    load = kvsup.client.post("/api/chat", json={"model": "smollm2", "messages": []}).json()
    unload = kvsup.client.post("/api/chat", json={"model": "smollm2", "keep_alive": "0"}).json()
    again = kvsup.client.post("/api/chat", json={"model": "smollm2", "keep_alive": 0.0}).json()

    assert [reply["message"] for reply in (load, unload, again)] == [empty] * 3
    assert [reply["done_reason"] for reply in (load, unload, again)] == ["load", "unload", "unload"]
    eventually(lambda: "smollm2:latest" not in _loaded(kvsup))


@pytest.mark.parametrize(
    ("keep_alive", "expected_s"),
    [("10m", 600), (120, 120), ("1h30m", 5400), (-1, None), ("-1s", None)],
)
def test_keep_alive_of_a_request_decides_when_the_model_expires(
    kvsup: RunningKvsup, keep_alive: object, expected_s: int | None
) -> None:
    """``/api/ps`` tells when; for ever is a date that nobody lives to see."""
    kvsup.client.post("/api/generate", json={"model": "smollm2", "keep_alive": keep_alive})

    left_s = _left_s(_loaded(kvsup)["smollm2:latest"])

    if expected_s is None:
        assert left_s > timedelta(days=200 * 365).total_seconds()
    else:
        assert expected_s - 30 < left_s <= expected_s + 1


def test_keep_alive_of_the_last_request_stays_where_the_next_has_none(kvsup: RunningKvsup) -> None:
    """Absent does not mean default: what was asked for once holds."""
    kvsup.client.post("/api/generate", json={"model": "smollm2", "keep_alive": "2h"})

    kvsup.client.post("/api/chat", json={"model": "smollm2", "messages": []})

    assert _left_s(_loaded(kvsup)["smollm2:latest"]) > 3600


def test_keep_alive_of_zero_on_a_chat_unloads_after_the_answer(kvsup: RunningKvsup) -> None:
    """A request that wants nothing kept is answered first."""
    body = {"model": "smollm2", "messages": QUESTION, "options": {"num_predict": 2}}

    reply = kvsup.client.post("/api/chat", json={**body, "keep_alive": 0, "stream": False}).json()

    assert reply["message"]["content"]
    eventually(lambda: "smollm2:latest" not in _loaded(kvsup))


def test_ps_of_a_loaded_model_tells_pair_context_and_sizes(kvsup: RunningKvsup) -> None:
    """Beyond Ollama's fields: the KV cache types and the measured bytes of each half."""
    kvsup.client.post("/api/generate", json={"model": "smollm2"})

    entry = _loaded(kvsup)["smollm2:latest"]

    assert entry["model"] == entry["name"]
    assert entry["context_length"] == 1024
    assert entry["kv_cache_type"] == "q8_0:q5_1"
    assert entry["kv_bytes"]["k"] > entry["kv_bytes"]["v"] > 0
    assert entry["size"] > sum(entry["kv_bytes"].values())
    assert entry["size_vram"] == 0
    assert len(entry["digest"]) == 64
