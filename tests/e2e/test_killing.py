"""Kill what can be killed, in every state: no request is lost, no process is left."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from kvsup.runtime import orphans
from kvsup.runtime.paths import run_dir
from tests.conftest import StartKvsup
from tests.e2e.killing import (
    HANGS,
    QUICK,
    chat,
    generate,
    kill,
    kill_child,
    real,
    scripted,
    starts_again,
    state_of,
    text_of,
)
from tests.running import eventually
from tests.standin.script import LOAD, Steps, make_gate, n_starts, open_gate, write_script


def test_kill_of_llama_server_in_its_load_answers_the_waiting_request(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """The request waits for the next start and is answered as if nothing had happened."""
    script = tmp_path / "s.json"
    line = write_script(script, starts=[HANGS, LOAD])
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})

    with ThreadPoolExecutor() as clients:
        answer = clients.submit(chat, kvsup)
        eventually(lambda: state_of(kvsup) == "loading" and n_starts(script) == 1)
        kill_child(kvsup)

        assert text_of(answer) == "Hello there"
    assert n_starts(script) == 2


def test_kill_of_llama_server_before_the_first_byte_answers_the_request(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """Nothing of the answer was seen, so it is asked again of the next process."""
    gate = make_gate(tmp_path / "gate")
    script = tmp_path / "s.json"
    good: Steps = [["head"], ["token", "Hello"], ["done"]]
    line = write_script(script, answers=[[["wait", str(gate)], ["die", "SIGKILL"]], good])
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})

    with ThreadPoolExecutor() as clients:
        answer = clients.submit(chat, kvsup)
        open_gate(gate)

        assert text_of(answer) == "Hello"
    assert n_starts(script) == 2


def test_kill_of_the_real_llama_server_under_requests_in_work_and_in_the_queue_answers_all(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """One slot, three requests that show nothing before their end: each gets its whole text."""
    kvsup = start_kvsup({"m": real(smollm2, QUICK)})
    wanted = chat(kvsup, n_predict=40).json()["message"]["content"]

    with ThreadPoolExecutor() as clients:
        answers = [clients.submit(chat, kvsup, n_predict=40) for _ in range(3)]
        eventually(lambda: kvsup.models()["m"]["in_flight"] == 1)
        kill_child(kvsup)

        texts = [text_of(answer) for answer in answers]

    assert texts == [wanted] * 3


def test_kill_of_llama_server_between_requests_is_not_seen(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """The next request is answered by the successor."""
    kvsup = start_kvsup({"m": real(smollm2, QUICK)})
    chat(kvsup).raise_for_status()
    pid = kill_child(kvsup)

    chat(kvsup).raise_for_status()

    assert kvsup.models()["m"]["pid"] != pid
    assert kvsup.models()["m"]["deaths"] == 1


def test_death_twice_in_the_same_stream_ends_it_with_an_error_line(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """Half an event is not delivered, and the request is not run a third time, nor again."""
    broken = [["head"], ["token", "Hello"], ["send", 'data: {"choices":[{"del'], ["die", "SIGSEGV"]]
    line = write_script(tmp_path / "s.json", answers=[broken] * 2)
    kvsup = start_kvsup({"m": scripted(smollm2, line, QUICK)})

    body = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}

    with kvsup.client.stream("POST", "/api/chat", json=body) as stream:
        lines = [msgspec.json.decode(line) for line in stream.iter_lines()]

    assert [line.get("message", {}).get("content") for line in lines] == ["Hello", None]
    assert "llama-server ended twice while it ran this request" in lines[-1]["error"]
    again = kvsup.client.post("/api/chat", json=body)
    assert again.status_code == 500
    assert "kvsup reset m" in again.text
    assert kvsup.models()["m"]["deaths"] == 0


@pytest.mark.parametrize("state", ["loading", "loading real", "ready", "streaming"])
def test_kill_of_kvsup_leaves_no_llama_server(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, state: str
) -> None:
    """In each state, a load that reads no stdin included; socket and lock bar no next start."""
    hangs = scripted(smollm2, write_script(tmp_path / "s.json", starts=[HANGS]), "preload = true")
    model = hangs if state == "loading" else real(smollm2, "preload = true")
    kvsup = start_kvsup({"m": model})
    eventually(lambda: state_of(kvsup) in ("loading", "ready"))
    if state == "ready":
        eventually(lambda: state_of(kvsup) == "ready")
    assert len(kvsup.children()) == 1

    if state == "streaming":
        with generate(kvsup) as stream:
            pieces = stream.iter_raw()
            next(pieces)
            kvsup.process.kill()
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
    kill(kvsup)

    eventually(lambda: kvsup.children() == [], timeout_s=2)
    starts_again(kvsup, smollm2)


def test_start_reaps_what_an_earlier_kvsup_left(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """Where the kernel did not kill it with its parent, the next start does."""
    kvsup = start_kvsup({"m": real(smollm2)})
    kvsup.stop()
    folder = run_dir(kvsup.state)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = str(folder / "0123456789abcdef.sock")
    argv = [sys.executable, "-c", "import signal; signal.pause()", mark]
    with subprocess.Popen(argv, start_new_session=True) as orphan, ThreadPoolExecutor() as init:
        created = psutil.Process(orphan.pid).create_time()
        record = orphans.Record(orphan.pid, created, owner_pid=2**22, owner_create_time=1.0)
        Path(f"{mark}.json").write_bytes(msgspec.json.encode(record))

        code = init.submit(orphan.wait)

        kvsup.start()

        assert code.result(timeout=20) == -signal.SIGKILL
    assert f"killed a llama-server of an earlier run (pid {orphan.pid})" in kvsup.log()
    assert not Path(f"{mark}.json").exists()


def test_sigint_in_a_stream_lets_it_end_and_exits_with_zero(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Running requests have ``shutdown_timeout``; then everything is reaped."""
    kvsup = start_kvsup({"m": real(smollm2)}, host='shutdown_timeout = "50s"')

    with generate(kvsup) as stream:
        lines = stream.iter_lines()
        next(lines)
        kvsup.process.send_signal(signal.SIGINT)
        last = [msgspec.json.decode(line) for line in lines][-1]

    assert last["done"] is True
    assert kvsup.process.wait(timeout=30) == 0
    assert kvsup.children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_when_idle_exits_with_zero_and_leaves_nothing(
    start_kvsup: StartKvsup, smollm2: Path, number: signal.Signals
) -> None:
    """No process, no socket, no folder of sockets, no address."""
    kvsup = start_kvsup({"m": real(smollm2)})
    chat(kvsup).raise_for_status()

    kvsup.process.send_signal(number)

    assert kvsup.process.wait(timeout=30) == 0
    assert kvsup.children() == []
    assert not run_dir(kvsup.state).exists()
    assert not (kvsup.state / "kvsup.url").exists()


def test_sigint_after_its_timeout_cuts_the_stream_with_an_error_line(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """A request that never ends does not hold the exit up, and its client is told."""
    endless: Steps = [["head"], ["token", "Hello"], ["stall"]]
    line = write_script(tmp_path / "s.json", answers=[endless])
    kvsup = start_kvsup({"m": scripted(smollm2, line)}, host="shutdown_timeout = 0.1")

    with generate(kvsup) as stream:
        lines = stream.iter_lines()
        next(lines)
        kvsup.process.send_signal(signal.SIGINT)
        last = [msgspec.json.decode(line) for line in lines][-1]

    assert "error" in last
    assert kvsup.process.wait(timeout=30) == 0


def test_second_sigint_skips_the_drain_but_not_the_reap(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """The stream is cut, the llama-server ends, the exit code is still 0."""
    endless: Steps = [["head"], ["token", "Hello"], ["stall"]]
    line = write_script(tmp_path / "s.json", answers=[endless])
    kvsup = start_kvsup({"m": scripted(smollm2, line)}, host='shutdown_timeout = "1h"')

    with generate(kvsup) as stream:
        lines = stream.iter_lines()
        next(lines)
        kvsup.process.send_signal(signal.SIGINT)
        eventually(lambda: "SIGINT: shutting down" in kvsup.log())
        kvsup.process.send_signal(signal.SIGINT)
        last = [msgspec.json.decode(line) for line in lines][-1]

    assert "error" in last
    assert kvsup.process.wait(timeout=30) == 0
    assert kvsup.children() == []


def test_sigint_in_a_load_that_hangs_exits_with_zero(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """The load is ended by SIGTERM; its client gets an answer."""
    line = write_script(tmp_path / "s.json", starts=[HANGS])
    kvsup = start_kvsup({"m": scripted(smollm2, line)}, host="shutdown_timeout = 0.1")

    with ThreadPoolExecutor() as clients:
        answer = clients.submit(chat, kvsup)
        eventually(lambda: state_of(kvsup) == "loading")
        kvsup.process.send_signal(signal.SIGINT)

        assert answer.result(timeout=30).status_code in (500, 503)
    assert kvsup.process.wait(timeout=30) == 0
    assert kvsup.children() == []


def test_second_kvsup_on_the_same_state_is_refused_with_the_pid(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Two would reap each other's llama-servers; the first one serves on."""
    kvsup = start_kvsup({"m": real(smollm2)})
    chat(kvsup).raise_for_status()

    second = kvsup.cli("run", str(kvsup.configs))

    assert second.returncode == 1
    assert f"another kvsup (pid {kvsup.process.pid})" in second.stderr
    chat(kvsup).raise_for_status()


def test_port_in_use_names_its_holder(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """Exit code 1 before anything is spawned, with the program and its pid."""
    kvsup = start_kvsup({"m": real(smollm2)})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = (kvsup.configs / "kvsup.toml").read_text()
        text = text.replace("port = 0", f"port = {port}").replace("/state", "/other")
        (kvsup.configs / "kvsup.toml").write_text(text)

        second = kvsup.cli("run", str(kvsup.configs))

    me = psutil.Process()
    assert second.returncode == 1
    assert f"127.0.0.1:{port}" in second.stderr
    assert f"{me.name()} (pid {me.pid})" in second.stderr


def test_reload_of_a_bad_edit_changes_nothing_and_says_why(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """``kvsup reload`` prints the problems with exit code 1; SIGHUP logs them."""
    kvsup = start_kvsup({"m": real(smollm2)})
    chat(kvsup).raise_for_status()
    before = kvsup.models()["m"]
    kvsup.write("m", real(smollm2, 'kv_cache_type = "q8_0:q5_9"'))

    told = kvsup.cli("reload")
    kvsup.process.send_signal(signal.SIGHUP)

    eventually(lambda: "configuration not taken up" in kvsup.log())
    assert told.returncode == 1
    assert "m.toml:4: kv_cache_type: " in told.stderr
    assert "q5_9" in told.stderr
    assert "m.toml:4: kv_cache_type: " in kvsup.log()
    assert kvsup.models()["m"]["pid"] == before["pid"]
    chat(kvsup).raise_for_status()


@pytest.mark.parametrize("how", ["cli", "SIGHUP"])
def test_reload_of_a_good_edit_replaces_only_what_changed(
    start_kvsup: StartKvsup, smollm2: Path, how: str
) -> None:
    """A stream of the edited model goes on to its end, the untouched model keeps its process."""
    kvsup = start_kvsup({"m": real(smollm2), "other": real(smollm2)})
    kvsup.client.post("/api/generate", json={"model": "other"}).raise_for_status()
    other = kvsup.models()["other"]["pid"]

    with generate(kvsup) as stream:
        lines = stream.iter_lines()
        next(lines)
        kvsup.write("m", real(smollm2, 'kv_cache_type = "q8_0:q5_1"'))
        if how == "cli":
            assert kvsup.cli("reload").returncode == 0
        else:
            kvsup.process.send_signal(signal.SIGHUP)
            eventually(lambda: kvsup.models()["m"]["kv_cache_type"] == "q8_0:q5_1")
        chat(kvsup).raise_for_status()
        last = [msgspec.json.decode(line) for line in lines][-1]

    assert last["done"] is True
    assert kvsup.models()["m"]["kv_cache_type"] == "q8_0:q5_1"
    assert kvsup.models()["other"]["pid"] == other
    eventually(lambda: len(kvsup.children()) == 2)
