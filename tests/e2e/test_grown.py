"""What a model that has grown beyond its file answers, and changes whose client has left."""

import json
import socket
from pathlib import Path

from tests.conftest import StartKvsup
from tests.running import RunningKvsup, eventually
from tests.tiny import ANSWER, TinyModels


def test_response_within_a_grown_context_is_complete(
    start_kvsup: StartKvsup, tiny: TinyModels
) -> None:
    """It is the context of the process that may cut an answer, not the one of the file."""
    kvsup = start_kvsup({"small": f'model = "{tiny.plain()}"\nthreads = 1\nnum_ctx = 128\n'})
    chat = {"model": "small", "messages": [{"role": "user", "content": "Hi"}]}
    kvsup.client.post("/api/chat", json={**chat, "options": {"num_ctx": 1024}}).raise_for_status()

    answer = kvsup.client.post("/v1/responses", json={"model": "small", "input": "x" * 300}).json()

    assert answer["output"][-1]["content"][0]["text"] == ANSWER
    assert (answer["status"], answer["incomplete_details"]) == ("completed", None)


def test_copy_whose_client_leaves_is_whole_or_nothing(
    start_kvsup: StartKvsup, tiny: TinyModels
) -> None:
    """A file that was written is served, whoever still waits for the answer."""
    kvsup = start_kvsup({"model": f'model = "{tiny.plain()}"\nthreads = 1\n'})

    for number in range(8):
        _leave_at_once(kvsup, {"source": "model", "destination": f"copy{number}"})

    eventually(lambda: _served(kvsup) == _written(kvsup.configs))


def _leave_at_once(kvsup: RunningKvsup, body: dict[str, str]) -> None:
    host, port = kvsup.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST /api/copy HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + data)


def _served(kvsup: RunningKvsup) -> set[str]:
    tags = kvsup.client.get("/api/tags").json()["models"]
    return {tag["name"].removesuffix(":latest") for tag in tags}


def _written(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.toml")} - {"kvsup"}
