"""A llama-server that breaks off, refuses or disagrees: no answer is cut, doubled or mixed."""

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
