"""Kill kvsup itself where its llama-server is not there yet, or about to go: none is left."""

import os
import shutil
import signal
import stat
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from kvsup.runtime.paths import run_dir
from tests.conftest import StartKvsup
from tests.e2e.killing import (
    chat,
    generate,
    kill,
    real,
    scripted,
    starts_again,
    state_of,
)
from tests.running import eventually
from tests.standin.script import LOAD, write_script


@pytest.mark.parametrize("state", ["draining", "stopping", "backoff"])
def test_kill_of_kvsup_while_a_model_goes_leaves_no_llama_server(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, state: str
) -> None:
    """One that waits for its last stream, one that does not hear that it is to end, and none."""
    deaf = write_script(
        tmp_path / "s.json", starts=[[["ignore", "SIGTERM"], ["ignore", "exit line"], *LOAD]]
    )
    slowly = '[restart]\nmin_delay = 60\nmax_delay = 60\nmin_uptime = "1h"\n'
    model = scripted(smollm2, deaf, 'stop_timeout = "1h"') if state == "stopping" else None
    kvsup = start_kvsup({"m": model or real(smollm2, slowly)})

    with ExitStack() as streams:
        if state == "draining":
            pieces = streams.enter_context(generate(kvsup, n_predict=400)).iter_raw()
            next(pieces)
        else:
            chat(kvsup).raise_for_status()
        if state == "backoff":
            psutil.Process(int(kvsup.models()["m"]["pid"])).send_signal(signal.SIGSEGV)
        else:
            kvsup.client.post("/kvsup/stop", json={"model": "m"}).raise_for_status()
        eventually(lambda: state_of(kvsup) == state)
        kill(kvsup)

    eventually(lambda: kvsup.children() == [], timeout_s=2)
    starts_again(kvsup, smollm2)


def test_kill_of_kvsup_before_its_child_is_a_llama_server_leaves_none_to_the_next(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """Nothing ends that child by itself, and no record tells of it: it is known by its socket."""
    gate, reached, programs = tmp_path / "gate", tmp_path / "reached", tmp_path / "bin"
    programs.mkdir()
    (programs / "setpriv").write_text(
        f"""#!/bin/sh
case "$1" in --help) exec {shutil.which("setpriv")} --help ;; esac
touch {reached}; while [ ! -e {gate} ]; do sleep 0.02; done
exec {shutil.which("setpriv")} "$@"
"""
    )
    (programs / "setpriv").chmod(stat.S_IRWXU)
    line = write_script(tmp_path / "s.json", starts=[[["listen"], ["hang"]]])
    kvsup = start_kvsup(
        {"m": scripted(smollm2, line, "preload = true")},
        environment={"PATH": f"{programs}:{os.environ['PATH']}"},
    )
    eventually(reached.exists)
    (pid,) = [child.pid for child in kvsup.children()]
    for record in run_dir(kvsup.state).glob("*.json"):
        record.unlink()  # as if it had been killed just before it wrote that
    kill(kvsup)
    gate.touch()
    eventually(lambda: any(run_dir(kvsup.state).glob("*.sock")))
    assert [child.pid for child in kvsup.children()] == [pid]

    starts_again(kvsup, smollm2)

    assert f"killed a llama-server of an earlier run (pid {pid})" in kvsup.log()
