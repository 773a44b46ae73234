"""A llama-server that breaks off, refuses or disagrees: no answer is cut, doubled or mixed."""

import json
from pathlib import Path

import httpx
import pytest

from tests.conftest import StartKvsup
from tests.e2e.killing import QUICK, scripted
from tests.standin.script import write_script

HALF = "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_answer_that_is_no_stream_and_breaks_off_is_cut_off(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, content_type: str
) -> None:
    """Nothing is put behind its half, and it has no proper end."""
    half = HALF.format(content_type) + '{"content":"Hel'
    line = write_script(tmp_path / "s.json", answers=[[["raw", half], ["hang_up"]]])
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})
    came: list[bytes] = []

    with kvsup.client.stream("POST", "/upstream/m/completion", json={"prompt": "Hi"}) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            came.extend(answer.iter_raw())

    assert b"".join(came) == b'{"content":"Hel'
    assert "ERROR" not in kvsup.log()
    assert kvsup.client.get("/api/version").status_code == 200


HELLO = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}


def n_posts(script: Path) -> int:
    """Return how many answers the stand-in was asked for."""
    return script.with_suffix(".answers").stat().st_size


@pytest.mark.parametrize("stream", [True, False])
def test_tool_call_without_an_object_is_an_error_and_not_left_out(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, *, stream: bool
) -> None:
    """It is what the model wrote: another attempt would give it again."""
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "[1"}}
    event = f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'tool_calls': [call]}}]})}\n\n"
    script = tmp_path / "s.json"
    line = write_script(script, answers=[[["head"], ["token", "Look"], ["send", event], ["done"]]])
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})

    answer = kvsup.client.post("/api/chat", json={**HELLO, "stream": stream})

    *_, last = answer.text.splitlines()
    assert json.loads(last) == {"error": "the model's call of f has no object as arguments"}
    assert answer.status_code == (200 if stream else 500)
    assert n_posts(script) == 1
