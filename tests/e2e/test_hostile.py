"""Requests that once ended in a traceback, or broke something for others."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import RunningKvsup

SMOLLM2 = """
model = "{path}"
num_ctx = 512
threads = 1
"""

DEEP = b'{"model": "smollm2", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"
BAD_UTF8 = b'{"model": "smollm2", "stop": "\xff"}'


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file, whose log must stay free of tracebacks."""
    folder = tmp_path_factory.mktemp("hostile") / "kvsup"
    models = {"smollm2": SMOLLM2.format(path=smollm2)}
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert "Traceback" not in running.log()


@pytest.mark.parametrize("keep_alive", [1e12, 1e300, "1000000000000h"])
def test_ps_after_an_enormous_keep_alive_still_answers(
    kvsup: RunningKvsup, keep_alive: object
) -> None:
    """A duration past Go's longest is for ever, and breaks nobody's listing."""
    body = {"model": "smollm2", "keep_alive": keep_alive}
    kvsup.client.post("/api/generate", json=body).raise_for_status()

    answer = kvsup.client.get("/api/ps")

    assert answer.status_code == 200
    assert answer.json()["models"][0]["name"] == "smollm2:latest"


@pytest.mark.parametrize("body", [DEEP, BAD_UTF8])
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
)
def test_v1_of_an_undecodable_body_is_a_client_error(
    kvsup: RunningKvsup, path: str, body: bytes
) -> None:
    """Whoever finds it, kvsup or llama-server, says 4xx or its own word; kvsup has no traceback."""
    answer = kvsup.client.post(path, content=body)

    assert answer.status_code >= 400
    assert "error" in answer.json()


@pytest.mark.parametrize("path", ["/v1/%E4%BD%A0", "/upstream/smollm2/%E4%BD%A0", "/v1/a%20b"])
def test_path_that_is_no_ascii_goes_on_as_it_was_sent(kvsup: RunningKvsup, path: str) -> None:
    """llama-server answers that there is no such route."""
    answer = kvsup.client.post(path, json={"model": "smollm2"})

    assert answer.status_code == 404


def test_upstream_of_an_escaped_name_finds_the_model(kvsup: RunningKvsup) -> None:
    """Clients escape the colon of a name."""
    answer = kvsup.client.get("/upstream/smollm2%3Alatest/health")

    assert answer.json() == {"status": "ok"}


@pytest.mark.parametrize("lines", ["²", "9" * 5000, "-1", "x"])
def test_logs_of_an_odd_number_of_lines_answers(kvsup: RunningKvsup, lines: str) -> None:
    """What is no number is as if it were not there."""
    answer = kvsup.client.get("/kvsup/logs/smollm2", params={"lines": lines})

    assert answer.status_code == 200


def test_embed_of_a_model_that_does_not_says_the_key_that_mends_it(kvsup: RunningKvsup) -> None:
    """llama-server's own advice names a flag that kvsup owns."""
    answer = kvsup.client.post("/api/embed", json={"model": "smollm2", "input": "x"})

    assert answer.status_code == 501
    assert answer.json() == {
        "error": 'smollm2 does not support embeddings; set embedding = "on" in its file'
    }


def test_sighup_with_a_bad_edit_of_any_kind_changes_nothing(kvsup: RunningKvsup) -> None:
    """The kvsup that runs goes on."""
    kvsup.write("z", 'model = "~nobody-at-all/x.gguf"\nvariants = 5\nmmproj = "nosuch"')
    try:
        done = kvsup.cli("reload")
    finally:
        (kvsup.configs / "z.toml").unlink()

    assert done.returncode == 1
    assert "variants: is no table" in done.stderr
    assert httpx.get(f"{kvsup.url}/api/version").status_code == 200
