"""A llama-server that hangs under a client: the client gets its answer all the same."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import StartKvsup
from tests.running import RunningKvsup
from tests.standin.script import LOAD, STANDIN, n_starts, write_script

WATCHFUL = '[watchdog]\ninterval = "100ms"\nstall = "1s"\n[restart]\nmin_delay = 0.05\n'
BODY = {
    "model": "m",
    "prompt": "Count: one, two, three,",
    "raw": True,
    "options": {"num_predict": 200, "temperature": 0, "stop": []},
}


def pieces(kvsup: RunningKvsup) -> Iterator[dict[str, Any]]:
    """Yield each line of a streamed answer as it comes."""
    with kvsup.client.stream("POST", "/api/generate", json=BODY) as answer:
        yield from map(json.loads, answer.iter_lines())


def test_real_llama_server_that_is_stopped_under_a_stream_is_not_noticed_by_the_client(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """SIGSTOP after some tokens: the answer goes on in another process and equals a calm one."""
    model = f'model = "{smollm2}"\nthreads = 1\nnum_ctx = 512\n{WATCHFUL}'
    kvsup = start_kvsup({"m": model})
    calm = "".join(piece["response"] for piece in pieces(kvsup))
    pid = int(kvsup.models()["m"]["pid"])

    got: list[dict[str, Any]] = []
    for piece in pieces(kvsup):
        got.append(piece)
        if len(got) == 3:
            psutil.Process(pid).send_signal(signal.SIGSTOP)

    assert "".join(piece["response"] for piece in got) == calm
    assert got[-1]["done"] is True
    assert not psutil.pid_exists(pid)
    assert "m: hangs: stopped by a signal for 1 s; it is ended" in kvsup.log()
    assert "m: was stopped from outside, and was ended; signal SIGKILL" in kvsup.log()


def test_wedge_before_the_first_byte_is_not_noticed_by_the_client(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """One that answers ``/health`` and hears no polite word: its successor answers."""
    script = tmp_path / "s.json"
    starts = [[["ignore", "SIGTERM"], ["ignore", "exit line"], *LOAD], LOAD]
    answers = [[["stall"]], [["head"], ["token", "Hello"], ["done"]]]
    line = write_script(script, starts=starts, answers=answers)
    model = f'model = "{smollm2}"\nllama_server = "{STANDIN}"\n{line}\n{WATCHFUL}'
    kvsup = start_kvsup({"m": model})
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi."}], "stream": False}

    answer = kvsup.client.post("/api/chat", json=body).raise_for_status().json()

    assert answer["message"]["content"] == "Hello"
    assert n_starts(script) == 2
    assert "m: hung, and was ended; signal SIGKILL; no token" in kvsup.log()
