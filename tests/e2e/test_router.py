"""``/models`` and below, as llama.cpp's router has them for its web UI and for editors."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import StartKvsup
from tests.running import RunningKvsup, eventually
from tests.tiny import ANSWER, TinyModels

PLAIN = 'model = "{path}"\naliases = ["easy"]\nnum_ctx = 512\nthreads = 1\n'


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file."""
    eye = tiny.vision()
    models = {
        "plain": PLAIN.format(path=tiny.plain()),
        "eye": f'model = "{eye.model}"\nmmproj = "{eye.mmproj}"\nnum_ctx = 512\nthreads = 1\n',
        "embedder": f'model = "{tiny.embedding()}"\nthreads = 1\n',
    }
    folder = tmp_path_factory.mktemp("router") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert running.children() == []


def _post(kvsup: RunningKvsup, action: str, body: object) -> httpx.Response:
    return kvsup.client.post(f"/models/{action}", content=json.dumps(body))


def _models(kvsup: RunningKvsup) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in kvsup.client.get("/models").json()["data"]}


def _status(kvsup: RunningKvsup, name: str = "plain") -> str:
    status: str = _models(kvsup)[name]["status"]["value"]
    return status


def _unloaded(kvsup: RunningKvsup) -> None:
    _post(kvsup, "unload", {"model": "plain"})
    eventually(lambda: _status(kvsup) == "unloaded")


def _error(answer: httpx.Response) -> tuple[int, str]:
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.status_code, answer.json()["error"]["message"]


def test_models_are_listed_with_their_status_and_what_they_take(kvsup: RunningKvsup) -> None:
    """OpenAI's members first, then llama.cpp's."""
    answer = kvsup.client.get("/models").json()

    assert answer["object"] == "list"
    models = _models(kvsup)
    assert set(models) == {"plain", "eye", "embedder"}
    plain = models["plain"]
    assert (plain["object"], plain["owned_by"]) == ("model", "llamacpp")
    assert plain["aliases"] == ["plain", "easy"]
    assert isinstance(plain["created"], int)
    assert "--model" in plain["status"]["args"]
    assert plain["meta"]["n_ctx"] == 512
    assert plain["meta"]["n_ctx_train"] == 4096
    inputs = {name: entry["architecture"]["input_modalities"] for name, entry in models.items()}
    assert inputs == {"plain": ["text"], "eye": ["text", "image"], "embedder": ["text"]}
    assert models["embedder"]["architecture"]["output_modalities"] == ["embeddings"]


@pytest.mark.parametrize("name", ["plain", "Plain:latest", "easy"])
def test_load_and_unload_answer_at_once_and_happen(kvsup: RunningKvsup, name: str) -> None:
    """By any of the model's names; a second time each is an error."""
    _unloaded(kvsup)

    loaded = _post(kvsup, "load", {"model": name})
    eventually(lambda: _status(kvsup) == "loaded")
    again = _post(kvsup, "load", {"model": name})
    unloaded = _post(kvsup, "unload", {"model": name})
    eventually(lambda: _status(kvsup) == "unloaded")
    once_more = _post(kvsup, "unload", {"model": name})

    assert (loaded.json(), unloaded.json()) == ({"success": True}, {"success": True})
    assert _error(again) == (400, "model is already running")
    assert _error(once_more) == (400, "model is not running")


@pytest.mark.parametrize("action", ["load", "unload"])
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b'{"model": 1}', 400),
        (b'{"model": null}', 400),
        (b"{}", 404),
        (b'{"model": "gone"}', 404),
    ],
)
def test_wrong_or_unknown_name_is_a_client_error(
    kvsup: RunningKvsup, action: str, content: bytes, status: int
) -> None:
    """In OpenAI's shape."""
    answer = kvsup.client.post(f"/models/{action}", content=content)

    assert _error(answer)[0] == status


def test_events_tell_each_status_first_and_then_each_change(kvsup: RunningKvsup) -> None:
    """With the headers that proxies need, until the client leaves."""
    _unloaded(kvsup)
    seen: list[tuple[str, str]] = []
    is_open, is_done = threading.Event(), threading.Event()
    heads: list[httpx.Headers] = []

    def listen() -> None:
        with (
            httpx.Client(base_url=kvsup.url, timeout=30, trust_env=False) as client,
            client.stream("GET", "/models/sse") as answer,
        ):
            heads.append(answer.headers)
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                assert event["event"] == "status_change"
                seen.append((event["model"], event["data"]["status"]))
                if len(seen) == 3:
                    is_open.set()
                if seen[3:] and seen[-1] == ("plain", "unloaded"):
                    break
        is_done.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert is_open.wait(20)
    _post(kvsup, "load", {"model": "plain"})
    eventually(lambda: _status(kvsup) == "loaded")
    _post(kvsup, "unload", {"model": "plain"})
    listener.join(20)

    assert is_done.is_set()
    assert {name for name, _ in seen[:3]} == {"plain", "eye", "embedder"}
    states = [status for name, status in seen[3:] if name == "plain"]
    assert states[0] == "loading"
    assert states[-2:] == ["loaded", "unloaded"]
    assert heads[0]["content-type"].startswith("text/event-stream")
    assert heads[0]["cache-control"] == "no-cache"
    assert heads[0]["x-accel-buffering"] == "no"


def test_model_that_fails_to_load_says_so_in_its_status(
    start_kvsup: StartKvsup, tiny: TinyModels
) -> None:
    """As the router's own list does."""
    bad = 'extra_args = ["--override-kv", "llama.block_count=int:99"]\n'
    kvsup = start_kvsup({"broken": f'model = "{tiny.plain()}"\nthreads = 1\n{bad}'})

    _post(kvsup, "load", {"model": "broken"})
    eventually(lambda: "failed" in _models(kvsup)["broken"]["status"])

    status = _models(kvsup)["broken"]["status"]
    assert (status["value"], status["failed"]) == ("unloaded", True)
    assert status["exit_code"] == 1


@pytest.mark.parametrize(
    ("path", "body", "member"),
    [
        ("/completion", {"prompt": "Hi"}, "content"),
        ("/completions", {"prompt": "Hi"}, "content"),
        ("/tokenize", {"content": "Hi"}, "tokens"),
        ("/detokenize", {"tokens": [75]}, "content"),
        ("/apply-template", {"messages": [{"role": "user", "content": "Hi"}]}, "prompt"),
        ("/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, "choices"),
    ],
)
def test_native_path_answers_for_the_model_that_is_named(
    kvsup: RunningKvsup, path: str, body: dict[str, Any], member: str
) -> None:
    """llama-server's own answer; OpenAI's paths without ``/v1`` are OpenAI's."""
    answer = kvsup.client.post(path, json={"model": "plain", **body})

    assert answer.status_code == 200, answer.text
    assert member in answer.json()


@pytest.mark.parametrize("path", ["/completion", "/infill", "/tokenize", "/apply-template"])
def test_native_path_without_a_model_is_400_where_there_are_several(
    kvsup: RunningKvsup, path: str
) -> None:
    """Nobody can tell which is meant."""
    assert _error(kvsup.client.post(path, json={"prompt": "Hi"})) == (400, "model is required")


def test_native_path_without_a_model_is_the_only_one_s(
    start_kvsup: StartKvsup, tiny: TinyModels
) -> None:
    """As at a llama-server; OpenAI's paths ask for the name."""
    kvsup = start_kvsup({"only": PLAIN.format(path=tiny.fill_in())})
    chat = {"messages": [{"role": "user", "content": "Hi"}]}

    completed = kvsup.client.post("/completion", json={"prompt": "Hi"}).json()
    filled = kvsup.client.post("/infill", json={"input_prefix": "a", "input_suffix": "b"}).json()
    tokens = kvsup.client.post("/tokenize", json={"content": "Hi"}).json()["tokens"]
    text = kvsup.client.post("/detokenize", json={"tokens": tokens}).json()
    prompt = kvsup.client.post("/apply-template", json=chat).json()["prompt"]
    nameless = kvsup.client.post("/v1/chat/completions", json=chat)

    assert completed["content"] == filled["content"] == ANSWER
    assert text == {"content": "Hi"}
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert _error(nameless)[0] == 400


def test_native_stream_is_events_with_the_headers_that_proxies_need(kvsup: RunningKvsup) -> None:
    """Its pieces make the whole."""
    answer = kvsup.client.post(
        "/completion", json={"model": "plain", "prompt": "Hi", "stream": True}
    )

    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data:")]
    assert "".join(event["content"] for event in events) == ANSWER
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
