"""Ollama's cloud and accounts: kvsup answers as an Ollama that has them switched off."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.running import RunningKvsup
from tests.tiny import TinyModels

MODEL = "ollama cloud is disabled: remote model is unavailable"
DETAILS = "ollama cloud is disabled: remote model details are unavailable"

HI = [{"role": "user", "content": "Hi"}]
ASKING: dict[str, dict[str, Any]] = {
    "/api/generate": {"prompt": "Hi"},
    "/api/chat": {"messages": HI},
    "/api/embed": {"input": "Hi"},
    "/api/embeddings": {"prompt": "Hi"},
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 1},
}


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file, of which no model is ever loaded."""
    plain = f'model = "{tiny.plain()}"\nthreads = 1\n'
    folder = tmp_path_factory.mktemp("cloud") / "kvsup"
    models = {"plain": plain, "mine": f'name = "mine:cloud"\n{plain}'}
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert running.children() == []


def _message(answer: httpx.Response) -> str:
    """Return the text of an error in whatever shape."""
    error = answer.json()["error"]
    text: str = error if isinstance(error, str) else error["message"]
    return text


@pytest.mark.parametrize("name", ["gpt-oss:120b-cloud", "kimi:cloud", "Kimi:CLOUD", "a/b:1-Cloud"])
@pytest.mark.parametrize("path", ASKING)
def test_model_of_the_cloud_is_403_on_every_route_that_runs_one(
    kvsup: RunningKvsup, path: str, name: str
) -> None:
    """In the shape of the route's API."""
    answer = kvsup.client.post(path, json={"model": name, **ASKING[path]})

    assert (answer.status_code, _message(answer)) == (403, MODEL)


def test_model_of_the_cloud_has_no_details(kvsup: RunningKvsup) -> None:
    """By Ollama's route and by OpenAI's."""
    shown = kvsup.client.post("/api/show", json={"model": "kimi:cloud"})
    listed = kvsup.client.get("/v1/models/kimi:cloud")

    assert (shown.status_code, shown.json()) == (403, {"error": DETAILS})
    assert (listed.status_code, _message(listed)) == (403, DETAILS)


def test_model_that_is_here_is_served_whatever_its_tag(kvsup: RunningKvsup) -> None:
    """The operator named it so."""
    shown = kvsup.client.post("/api/show", json={"model": "mine:cloud"})

    assert shown.status_code == 200


@pytest.mark.parametrize("name", ["cloud", "gone-cloud", "cloudy:latest", "gone:cloudy"])
def test_name_that_only_looks_like_the_cloud_is_not_found(kvsup: RunningKvsup, name: str) -> None:
    """The tag decides."""
    answer = kvsup.client.post("/api/chat", json={"model": name, "messages": HI})

    assert (answer.status_code, answer.json()) == (404, {"error": f"model '{name}' not found"})


def test_ollama_client_raises_403_for_a_model_of_the_cloud(kvsup: RunningKvsup) -> None:
    """Also where it asks for a stream."""
    with (
        ollama.Client(host=kvsup.url) as client,
        pytest.raises(ollama.ResponseError, match="cloud is disabled") as caught,
    ):
        list(client.chat("kimi:cloud", messages=HI, stream=True))

    assert caught.value.status_code == 403


def test_status_says_that_the_cloud_is_off(kvsup: RunningKvsup) -> None:
    """By configuration."""
    answer = kvsup.client.get("/api/status")

    assert answer.json() == {"cloud": {"disabled": True, "source": "config"}}


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_me_is_nobody(kvsup: RunningKvsup, body: bytes) -> None:
    """401 with the field that Ollama's CLI reads."""
    answer = kvsup.client.post("/api/me", content=body)

    assert answer.status_code == 401
    assert set(answer.json()) == {"error", "signin_url"}
    assert answer.json()["error"] == "unauthorized"


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/signout"), ("DELETE", "/api/user/keys/c3NoLWtleQ==")]
)
def test_signing_out_needs_an_account(kvsup: RunningKvsup, method: str, path: str) -> None:
    """There is none."""
    answer = kvsup.client.request(method, path)

    assert answer.status_code == 401
    assert answer.json() == {"error": "you are not currently signed in"}


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("web_search", "ollama cloud is disabled: web search is unavailable"),
        ("web_fetch", "ollama cloud is disabled: web fetch is unavailable"),
    ],
)
def test_web_tools_are_403_after_their_body_was_asked_for(
    kvsup: RunningKvsup, what: str, text: str
) -> None:
    """A missing body comes first."""
    path = f"/api/experimental/{what}"

    missing = kvsup.client.post(path, content=b"  ")
    refused = kvsup.client.post(path, content=json.dumps({"query": "x", "url": "x"}))

    assert (missing.status_code, missing.json()) == (400, {"error": "missing request body"})
    assert (refused.status_code, refused.json()) == (403, {"error": text})


def test_recommendations_are_an_empty_list(kvsup: RunningKvsup) -> None:
    """Never null."""
    answer = kvsup.client.get("/api/experimental/model-recommendations")

    assert answer.json() == {"recommendations": []}
