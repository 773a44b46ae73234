"""What a model is asked for that it cannot do, or only with the right settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import RunningKvsup
from tests.tiny import TinyModels

HI = [{"role": "user", "content": "Hi"}]
TOOLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": HI,
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
    "/v1/responses": {"input": "Hi", "tools": [{"type": "function", "name": "f"}]},
    "/v1/messages": {
        "messages": HI,
        "max_tokens": 9,
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    },
}


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    models = {
        "plain": f'model = "{tiny.plain()}"\nnum_ctx = 512\nthreads = 1\n',
        "vectors": f'model = "{tiny.embedding()}"\nthreads = 1\n',
        "coder": f'model = "{tiny.fill_in()}"\nnum_ctx = 2048\nthreads = 1\n',
    }
    folder = tmp_path_factory.mktemp("capabilities") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=any_build) as running:
        yield running
    assert running.children() == []


@pytest.mark.parametrize("path", TOOLS)
def test_tools_for_a_model_without_them_are_400(kvsup: RunningKvsup, path: str) -> None:
    """llama-server would leave them out without a word; Ollama says this."""
    answer = kvsup.client.post(path, json={"model": "plain", **TOOLS[path]})

    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith("plain:latest does not support tools")


def test_suffix_of_some_length_is_seen_in_full(kvsup: RunningKvsup) -> None:
    """llama-server cuts both sides to parts of its logical batch, which is long enough for that."""
    body = {"model": "coder", "prompt": "p" * 700, "suffix": "s" * 250, "stream": False}

    answer = kvsup.client.post("/api/generate", json=body).raise_for_status().json()

    assert answer["prompt_eval_count"] > 950


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", {"messages": HI}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": HI, "max_tokens": 9}),
        ("/completion", {"prompt": "Hi"}),
    ],
)
def test_text_of_a_model_for_vectors_is_400(
    kvsup: RunningKvsup, path: str, more: dict[str, Any]
) -> None:
    """llama-server answers 500."""
    answer = kvsup.client.post(path, json={"model": "vectors", **more})

    assert answer.status_code == 400
    assert "does not support chat" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/%63ompletions"])
def test_image_by_address_is_400_and_not_fetched(kvsup: RunningKvsup, path: str) -> None:
    """However the path is spelled."""
    image = {"type": "image_url", "image_url": {"url": f"{kvsup.url}/api/version"}}
    body = {"model": "plain", "messages": [{"role": "user", "content": [image]}]}

    answer = kvsup.client.post(path, json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("image URLs are not currently supported")
