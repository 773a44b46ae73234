"""Images by URL on a real kvsup and a real model with eyes: refused, or fetched by kvsup alone."""

import base64
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartKvsup
from tests.running import RunningKvsup
from tests.tiny import ANSWER, TinyModels, png

IMAGE = base64.b64encode(png()).decode()
SETTINGS = "num_ctx = 512\nthreads = 1\n"
OPEN_LOOPBACK = """
import ipaddress
from kvsup.runtime import publicnet
publicnet.is_public = lambda address: address.is_loopback
"""
"""What plays the Internet for a kvsup in a process of its own."""

REFUSED = "image URLs are not currently supported"


class _Server(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        """Send the image."""
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png())

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def asked() -> list[str]:
    """Return the paths that the web server was asked for."""
    return []


@pytest.fixture
def server(asked: list[str]) -> Iterator[str]:
    """Return host and port of a web server with one image."""
    handler = type("Handler", (_Server,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"localhost:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def eye(tiny: TinyModels) -> dict[str, str]:
    """Return a model that sees."""
    model, mmproj = tiny.vision()
    return {"eye": f'model = "{model}"\nmmproj = "{mmproj}"\n{SETTINGS}'}


def requests(url: str) -> dict[str, dict[str, Any]]:
    """Return a request with an image at ``url`` for each API, by its path."""
    openai_part = {"type": "image_url", "image_url": {"url": url}}
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, openai_part]}]
    anthropic_part = {"type": "image", "source": {"type": "url", "url": url}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, anthropic_part]}]
    return {
        "/v1/chat/completions": {"model": "eye", "messages": chat},
        "/upstream/eye/v1/chat/completions": {"messages": chat},
        "/v1/messages": {"model": "eye", "messages": messages, "max_tokens": 50},
    }


def ask_all(kvsup: RunningKvsup, url: str) -> dict[str, tuple[int, str]]:
    """Return status and text of each API's answer."""
    answers = {path: kvsup.client.post(path, json=body) for path, body in requests(url).items()}
    return {path: (answer.status_code, answer.text) for path, answer in answers.items()}


def test_image_by_url_is_refused_by_default_and_nobody_is_asked(
    start_kvsup: StartKvsup, tiny: TinyModels, server: str, asked: list[str]
) -> None:
    """On every API, and on llama-server's own behind kvsup."""
    answers = ask_all(start_kvsup(eye(tiny)), f"http://{server}/a.png")

    assert [status for status, _ in answers.values()] == [400] * 3
    assert all(REFUSED in text for _, text in answers.values())
    assert asked == []


def test_image_of_a_listed_host_that_is_private_is_refused(
    start_kvsup: StartKvsup, tiny: TinyModels, server: str, asked: list[str]
) -> None:
    """The list does not open the machine itself."""
    kvsup = start_kvsup(eye(tiny), host=f'image_hosts = ["{server}"]\n')

    answers = ask_all(kvsup, f"http://{server}/a.png")

    assert [status for status, _ in answers.values()] == [400] * 3
    assert all("no host of the public Internet" in text for _, text in answers.values())
    assert asked == []


def test_image_of_a_listed_host_is_seen_by_the_model(
    start_kvsup: StartKvsup, tiny: TinyModels, server: str, asked: list[str], tmp_path: Path
) -> None:
    """Fetched once for each request, by kvsup; the model sees what it would have seen as base64."""
    (tmp_path / "sitecustomize.py").write_text(OPEN_LOOPBACK)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parents[2]}"
    kvsup = start_kvsup(
        eye(tiny), host=f'image_hosts = ["{server}"]\n', environment={"PYTHONPATH": path}
    )

    answers = ask_all(kvsup, f"http://{server}/a.png")
    elsewhere = ask_all(kvsup, "http://elsewhere.example/a.png")
    named = requests(f"data:image/png;base64,{IMAGE}")["/v1/chat/completions"]
    wanted = kvsup.client.post("/v1/chat/completions", json=named).json()

    assert all(status == 200 and ANSWER in text for status, text in answers.values()), answers
    assert asked == ["/a.png"] * 3
    assert all("not listed in image_hosts" in text for _, text in elsewhere.values())
    seen = kvsup.client.post(
        "/v1/chat/completions", json=requests(f"http://{server}/b.png")["/v1/chat/completions"]
    ).json()
    assert seen["usage"]["prompt_tokens"] == wanted["usage"]["prompt_tokens"]
