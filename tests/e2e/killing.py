"""What the tests share that kill: models to kill, and requests to kill under."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import psutil

from kvsup.runtime.paths import run_dir
from tests.running import RunningKvsup
from tests.standin.script import STANDIN, Steps

QUICK = "[restart]\nmin_delay = 0.05\nmax_delay = 0.1\n"
HANGS: Steps = [["listen"], ["stage", 0.0], ["hang"]]
LONG = {"num_predict": 300, "temperature": 0, "stop": []}


def real(model: Path, rest: str = "") -> str:
    """Return the file of a model that the real llama-server serves."""
    return f'model = "{model}"\nthreads = 1\nnum_ctx = 512\n{rest}'


def scripted(model: Path, script: str, rest: str = "") -> str:
    """Return the file of a model that the stand-in serves."""
    return f'model = "{model}"\nllama_server = "{STANDIN}"\n{script}\n{rest}'


def chat(kvsup: RunningKvsup, *, n_predict: int = 8) -> httpx.Response:
    """Chat with model ``m`` without streaming."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello."}],
        "options": {"num_predict": n_predict, "temperature": 0},
        "stream": False,
    }
    return httpx.post(f"{kvsup.url}/api/chat", json=body, timeout=50, trust_env=False)


def generate(kvsup: RunningKvsup, *, n_predict: int = 300) -> Any:
    """Return a long stream of model ``m`` as a context manager."""
    options = {**LONG, "num_predict": n_predict, "ignore_eos": True}
    body = {"model": "m", "prompt": "Count: one, two, three,", "raw": True, "options": options}
    return kvsup.client.stream("POST", "/api/generate", json=body)


def state_of(kvsup: RunningKvsup) -> str:
    """Return the state of model ``m``."""
    return str(kvsup.models()["m"]["state"])


def kill_child(kvsup: RunningKvsup) -> int:
    """Send SIGKILL to the llama-server of model ``m`` and return its pid."""
    pid = int(kvsup.models()["m"]["pid"])
    psutil.Process(pid).kill()
    return pid


def kill(kvsup: RunningKvsup) -> None:
    """Send SIGKILL to kvsup itself."""
    kvsup.process.kill()
    kvsup.process.wait()
    kvsup.client.close()


def starts_again(kvsup: RunningKvsup, model: Path) -> None:
    """Start one that was killed, and let it answer: nothing of the earlier one is in its way."""
    (kvsup.state / "kvsup.url").unlink()
    kvsup.write("m", real(model))
    kvsup.start()
    assert kvsup.children() == []
    assert list(run_dir(kvsup.state).glob("*.sock*")) == []
    chat(kvsup).raise_for_status()


def text_of(answer: "Future[httpx.Response]") -> str:
    """Return the text of a chat that must have been answered."""
    response = answer.result(timeout=50)
    assert response.status_code == 200, response.text
    return str(response.json()["message"]["content"])
