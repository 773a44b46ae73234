"""``kvsup why``: what happened to a model, as a person is told it, on real llama-servers."""

import json
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil

from kvsup.runtime.paths import address_file
from tests.conftest import StartKvsup
from tests.e2e.commands import failure, json_of, out
from tests.running import RunningKvsup, eventually

QUICK = "[restart]\nmin_delay = 0.05\nmax_delay = 0.1\n"
SECRET = "The password is swordfish."


def real(model: Path, rest: str = "") -> str:
    """Return the file of a small model."""
    return f'model = "{model}"\nthreads = 1\nnum_ctx = 512\n{rest}'


def ask(kvsup: RunningKvsup, model: str) -> httpx.Response:
    """Ask something that nobody else may read."""
    body = {"model": model, "prompt": SECRET, "stream": False, "options": {"num_predict": 4}}
    return kvsup.client.post("/api/generate", json=body)


def kill(kvsup: RunningKvsup, model: str) -> None:
    """Kill the llama-server of a model and wait for its successor to serve."""
    pid = int(kvsup.models()[model]["pid"])
    psutil.Process(pid).kill()
    eventually(lambda: kvsup.models()[model]["deaths"] and kvsup.models()[model]["pid"] != pid)
    eventually(lambda: kvsup.models()[model]["state"] == "ready")


def test_why_of_a_killed_process_says_so_with_its_evidence(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Signal, how often, that it serves again; evidence is there, private, and holds no prompt."""
    kvsup = start_kvsup({"m": real(smollm2, QUICK)})
    ask(kvsup, "m").raise_for_status()
    kill(kvsup, "m")
    kill(kvsup, "m")

    eventually(lambda: json_of(kvsup, "why", "m")["evidence"])
    text, told = out(kvsup, "why", "m"), json_of(kvsup, "why", "m", "--last", "1")

    assert text.startswith("m has been ready for ")
    assert "because" in text
    assert "SIGKILL" in told["because"]
    assert "SIGKILL" in told["lately"]
    (line,) = told["timeline"]
    assert line["n_times"] == 2
    assert line["text"].startswith("2 times in ")
    assert "started again each time" in line["text"]
    evidence = Path(told["evidence"])
    case = json.loads(evidence.read_text())
    assert str(evidence) in text
    assert case["event"]["facts"]["returncode"] == -9
    assert case["log"]
    assert case["memory"]["model_bytes_by_device"]
    for kept in (*(kvsup.state / "history").rglob("*"), *(kvsup.state / "evidence").rglob("*")):
        assert stat.S_IMODE(kept.stat().st_mode) == (0o700 if kept.is_dir() else 0o600)
        assert kept.is_dir() or "swordfish" not in kept.read_text()


def test_why_after_a_death_in_mid_answer_counts_the_request_that_went_on(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """One resumed, none lost; the evidence has its route and what its client had, no text."""
    kvsup = start_kvsup({"m": real(smollm2, QUICK)})
    body = {"model": "m", "prompt": SECRET, "options": {"num_predict": 200, "stop": []}}

    with kvsup.client.stream("POST", "/api/generate", json=body) as stream:
        lines = stream.iter_lines()
        for _ in range(3):
            next(lines)
        kill(kvsup, "m")
        last = [json.loads(line) for line in lines][-1]

    assert last["done"] is True
    eventually(lambda: json_of(kvsup, "why", "m")["evidence"])
    told = json_of(kvsup, "why", "m")
    assert told["because"].endswith("; 1 request resumed, none lost")
    case = json.loads(Path(told["evidence"]).read_text())
    (request,) = case["requests"]
    assert request["route"].startswith("/")
    assert request["delivered_tokens"] >= 3
    assert request["fingerprint"]
    assert set(request) == {"route", "fingerprint", "delivered_tokens"}


def test_why_of_an_evicted_model_names_the_one_that_needed_its_room(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """And when it is asked for again, why it had not been there."""
    models = {"small": real(smollm2), "other": real(smollm2)}
    kvsup = start_kvsup(models, host="max_loaded_models = 1")
    ask(kvsup, "small").raise_for_status()
    ask(kvsup, "other").raise_for_status()
    eventually(lambda: kvsup.models()["small"]["state"] == "stopped")

    told = json_of(kvsup, "why", "small")
    every = out(kvsup, "why").splitlines()

    assert told["state"] == "stopped"
    assert told["because"].startswith("it was evicted to make room for other, ")
    assert "max_loaded_models" in told["mend"]
    assert "evicted once for other" in told["lately"]
    assert [line.split()[0] for line in every] == ["other", "small"]
    assert "evicted to make room for other" in every[1]

    ask(kvsup, "small").raise_for_status()

    again = json_of(kvsup, "why", "small")
    assert again["because"].startswith("it had been evicted to make room for other, ")
    assert again["because"].endswith("then asked for again")


def test_why_of_a_model_that_was_given_up_names_the_cause_and_the_mend(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """A file that is cut off under kvsup is no model: what failed, and how to go on."""
    cut = tmp_path / "cut.gguf"
    shutil.copy(smollm2, cut)
    kvsup = start_kvsup({"bad": real(cut)})
    os.truncate(cut, cut.stat().st_size // 2)
    assert ask(kvsup, "bad").status_code == 500

    told, text = json_of(kvsup, "why", "bad"), out(kvsup, "why", "bad")

    assert text.startswith("bad has given up")
    assert "the model file cannot be used" in told["because"]
    assert told["mend"].startswith("fetch the model file again, or name another in ")
    assert told["mend"].endswith("; then run kvsup reset bad")
    (text,) = (each["text"] for each in told["timeline"] if each["text"].endswith("; given up"))
    assert text.startswith("the model file cannot be used; ")


def test_why_without_a_running_kvsup_reads_what_the_last_one_kept(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """After an end in order, and after a kill, which is told as one; history outlives both."""
    kvsup = start_kvsup({"m": real(smollm2, 'aliases = ["nick"]')})
    ask(kvsup, "m").raise_for_status()
    kvsup.stop()

    ended = json_of(kvsup, "why", "M:latest")
    line = out(kvsup, "why")
    unknown = failure(kvsup, "why", "gone")

    assert ended["now"] == "m is not loaded: no kvsup runs"
    assert "kvsup is shutting down" in ended["because"]
    assert line.startswith("m is not loaded: no kvsup runs: ")
    assert unknown[0] == 1
    assert "nothing is kept of 'gone'; there is history of m" in unknown[1]

    kvsup.start()
    ask(kvsup, "nick").raise_for_status()
    eventually(lambda: '"Ready"' in "".join(p.read_text() for p in kvsup.state.rglob("m-*.jsonl")))
    kvsup.client.close()
    kvsup.process.kill()
    kvsup.process.wait()
    killed = json_of(kvsup, "why", "m")
    eventually(lambda: kvsup.children() == [])
    (kvsup.state / "kvsup.url").unlink()
    kvsup.start()

    assert killed["because"].startswith("kvsup ended without stopping it")
    texts = [line["text"] for line in json_of(kvsup, "why", "m")["timeline"]]
    assert any("the one before did not end in order" in text for text in texts)


class NotKvsup(BaseHTTPRequestHandler):
    """Some other server, such as Ollama, where kvsup would listen."""

    def do_GET(self) -> None:
        """Answer as Ollama does to a path that it does not know."""
        self.send_response(404)
        self.send_header("content-type", "text/plain")
        self.end_headers()
        self.wfile.write(b"404 page not found")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is there
        """Print nothing."""


def test_why_where_another_program_answers_reads_what_is_kept(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """The address of a kvsup that was killed may be anybody's by now."""
    kvsup = start_kvsup({"m": real(smollm2)})
    ask(kvsup, "m").raise_for_status()
    kvsup.stop()

    with ThreadingHTTPServer(("127.0.0.1", 0), NotKvsup) as server, ThreadPoolExecutor() as pool:
        pool.submit(server.serve_forever)
        address_file(kvsup.state).write_text(f"http://127.0.0.1:{server.server_port}")
        try:
            told = json_of(kvsup, "why", "m")
        finally:
            server.shutdown()

    assert told["now"] == "m is not loaded: no kvsup runs"


def test_why_of_what_is_unknown_or_was_never_asked_for(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """An error that names it; a sentence that says there is nothing to say."""
    kvsup = start_kvsup({"m": real(smollm2)})

    code, text = failure(kvsup, "why", "gone")
    told = json_of(kvsup, "why", "m")
    odd = kvsup.client.get("/kvsup/why/m", params={"last": "-1"})

    assert (code, text) == (1, "kvsup: model 'gone' not found")
    assert kvsup.client.get("/kvsup/why/gone").status_code == 404
    assert odd.json()["timeline"] == told["timeline"]
    assert told["now"].startswith("m has been stopped for ")
    assert told["because"].startswith("nobody has asked for it since kvsup started")
