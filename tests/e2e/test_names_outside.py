"""Names that would leave the folder, on every route that takes one: nothing outside is touched."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.sockets import request, say
from tests.running import RunningKvsup

MODEL = """
model = "{path}"
num_ctx = 256
threads = 1
"""
CANARY = "canary-outside-of-the-folder"

NAMES = (
    "../outside", "..", ".", "/", "./m", "m/../m", "m/..", "../configs/m", "..\\outside",
    "outside/../../outside", "/etc/passwd", "file:///etc/passwd", "~/outside", "~root/outside",
    "C:\\outside", "C:/outside", "\\\\host\\share\\m", "CON", "NUL", "aux.toml", "m\0", "m\0.toml",
    "\0", "..%2foutside", "%2e%2e%2foutside", "..%252foutside", "..\u2215outside",
    "\uff0e\uff0e/outside", "\uff0e\uff0e\uff0foutside", "..\u29f8outside", "m\u202e",
    "m\n../outside", "m:../outside", "m:", ":m", "m@sha256:../outside", "a" * 300, "a/" * 200,
    "../" * 60 + "etc/passwd", "kvsup.toml", ".hidden", "-m", "--model", "$HOME", "`id`", "m;id",
)  # fmt: skip

BY_MEMBER = {
    "/api/chat": "model", "/api/generate": "model", "/api/embed": "model", "/api/show": "model",
    "/api/embeddings": "model", "/api/pull": "model", "/api/push": "model",
    "/v1/chat/completions": "model", "/v1/completions": "model", "/v1/embeddings": "model",
    "/v1/responses": "model", "/v1/messages": "model", "/v1/messages/count_tokens": "model",
    "/completion": "model", "/tokenize": "model", "/rerank": "model", "/infill": "model",
    "/models/load": "model", "/models/unload": "model",
    "/kvsup/stop": "model", "/kvsup/reset": "model",
}  # fmt: skip

IN_PATH = (
    "GET /v1/models/{}", "GET /upstream/{}/health", "POST /upstream/{}/v1/completions",
    "GET /kvsup/logs/{}", "HEAD /api/blobs/{}", "POST /api/blobs/{}",
    "HEAD /api/blobs/sha256:{}", "POST /api/blobs/sha256-{}",
)  # fmt: skip


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one kvsup beside whose configuration lie files that must stay unread."""
    folder = tmp_path_factory.mktemp("names") / "kvsup"
    models = {"m": MODEL.format(path=smollm2)}
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        (folder / "outside.toml").write_text(f'system = "{CANARY}"\n' + MODEL.format(path=smollm2))
        (folder / "outside").write_text(CANARY)
        (folder / "outside.gguf").write_text(CANARY)
        yield running
    assert "Traceback" not in running.log()
    assert running.children() == []


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of the folder that kvsup does not itself write while it runs."""
    own = {"kvsup.log", "lock"}
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in own and "state" not in path.parts
    }


def check(answer: httpx.Response) -> None:
    """Hold that an answer is a refusal in words, and that nothing from outside is in it."""
    assert answer.status_code in {400, 404, 405, 501}, answer.text
    assert CANARY not in answer.text
    assert "root:" not in answer.text
    if answer.content and answer.headers["content-type"].startswith("application/json"):
        error = answer.json()["error"]
        assert isinstance(error, str) or error["message"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_name_that_is_no_model_is_refused_wherever_it_stands(
    kvsup: RunningKvsup, name: str
) -> None:
    """On each route in the shape of its API; files inside and outside stay as they are."""
    before = tree(kvsup.folder)
    extra: dict[str, object] = {
        "messages": [{"role": "user", "content": "Hi"}],
        "prompt": "Hi",
        "input": "Hi",
    }
    extra |= {"max_tokens": 2, "content": "Hi", "from": "m"}

    for path, member in BY_MEMBER.items():
        check(kvsup.client.post(path, json={member: name, **extra}))
    for path, body in (
        ("/api/copy", {"source": name, "destination": "n"}),
        ("/api/copy", {"source": "m", "destination": name}),
        ("/api/create", {"model": name, "from": "m", "stream": False}),
    ):
        answer = kvsup.client.post(path, json=body)
        if answer.status_code == 200:  # a name of odd characters is a name
            gone = {"model": body.get("destination", body.get("model"))}
            kvsup.client.request("DELETE", "/api/delete", json=gone).raise_for_status()
        else:
            check(answer)
    check(kvsup.client.request("DELETE", "/api/delete", json={"model": name}))

    assert tree(kvsup.folder) == before


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_name_in_a_path_leads_nowhere_else(kvsup: RunningKvsup, name: str) -> None:
    """Escaped once, twice, or sent as it is where HTTP allows."""
    before = tree(kvsup.folder)
    for route in IN_PATH:
        method, _, path = route.partition(" ")
        for written in {quote(name, safe=""), quote(name), quote(quote(name, safe=""), safe="")}:
            heard = say(kvsup, request(f"{method} {path.format(written)}"))

            assert heard.statuses in ([301], [307], [400], [404], [405], [501]), heard.data
            assert CANARY.encode() not in heard.data
            assert b"root:" not in heard.data

    assert tree(kvsup.folder) == before


@pytest.mark.parametrize(
    "path",
    [
        "/upstream/m/../../kvsup/models", "/upstream/m/%2e%2e/%2e%2e/kvsup/models",
        "/upstream/m/..%2f..%2fetc/passwd", "/upstream/../upstream/m/health", "/v1/../api/tags",
        "/upstream/%2e%2e/m/health", "/upstream/m/.%2e/health", "/upstream/m/..%5c..%5chealth",
    ],
)  # fmt: skip
def test_dots_in_a_path_are_never_walked(kvsup: RunningKvsup, path: str) -> None:
    """Neither by kvsup nor by llama-server behind it."""
    heard = say(kvsup, request(f"GET {path}"))

    assert heard.statuses in ([400], [404], [405]), heard.data
    assert b"in_flight" not in heard.data


def test_model_itself_is_found_by_its_names(kvsup: RunningKvsup) -> None:
    """The corpus is not refused because everything is."""
    for name in ("m", "M", "m:latest", "library/m"):
        assert kvsup.client.post("/api/show", json={"model": name}).status_code == 200
    assert json.loads(kvsup.client.get("/upstream/m/health").text) == {"status": "ok"}
