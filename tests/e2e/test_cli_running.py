"""What the commands of ``kvsup`` ask of a running one, and what it spawns."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kvsup.runtime.paths import address_file
from tests.e2e.commands import failure, json_of, out, run
from tests.running import RunningKvsup, eventually

SMOLLM2 = """
model = "{path}"
aliases = ["small"]
kv_cache_type = "q8_0:q5_1"
num_ctx = 1024
threads = 1
env = {{ KVSUP_TEST_MARK = "ours" }}

[variants.agent]
kv_cache_type = "f16"
"""

BROKEN = """
model = "{path}"
threads = 1
extra_args = ["--poll", "much"]
"""

ALIEN = {
    "LLAMA_ARG_CTX_SIZE": "7",
    "LLAMA_ARG_CACHE_TYPE_K": "q4_0",
    "LLAMA_API_KEY": "secret",
    "AIP_HTTP_PORT": "9",
    "OLLAMA_NOPRUNE": "1",
}
"""What a shell may hold for other programs."""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file, in an environment full of traps."""
    models = {"smollm2": SMOLLM2.format(path=smollm2), "broken": BROKEN.format(path=smollm2)}
    folder = tmp_path_factory.mktemp("cli") / "kvsup"
    with RunningKvsup(
        folder, models=models, llama_server=llama_server, environment=ALIEN
    ) as running:
        yield running
    assert running.process.returncode == 0
    assert running.children() == []


@pytest.fixture
def loaded(kvsup: RunningKvsup) -> RunningKvsup:
    """Return the running kvsup with smollm2 loaded."""
    kvsup.client.post("/api/generate", json={"model": "smollm2"}).raise_for_status()
    return kvsup


def _child(kvsup: RunningKvsup, model: str = "smollm2") -> psutil.Process:
    return psutil.Process(kvsup.models()[model]["pid"])


def test_command_finds_the_state_folder_that_is_relative_to_the_host_file(
    kvsup: RunningKvsup, tmp_path: Path
) -> None:
    """``run`` and the other commands read ``state_dir`` alike, wherever they are called."""
    for folder in ("configs", "state", "some/where"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "configs" / "kvsup.toml").write_text('state_dir = "../state"\n')
    address_file(tmp_path / "state").write_text(kvsup.url)

    done = run("ps", cwd=tmp_path / "some" / "where", KVSUP_CONFIG_DIR="../../configs")

    assert (done.returncode, done.stderr) == (0, "")
    assert "smollm2" in done.stdout


def test_argv_is_what_run_spawned(loaded: RunningKvsup) -> None:
    """Word by word, in both forms."""
    spawned = _child(loaded).cmdline()

    assert json_of(loaded, "argv", "smollm2")[1:] == spawned[1:]
    assert shlex.split(out(loaded, "argv", "SmolLM2:latest"))[1:] == spawned[1:]
    assert json_of(loaded, "argv", "small") == json_of(loaded, "argv", "smollm2")
    assert spawned[spawned.index("--cache-type-k") :][:2] == ["--cache-type-k", "q8_0"]
    assert spawned[spawned.index("--cache-type-v") :][:2] == ["--cache-type-v", "q5_1"]


def test_child_environment_is_built_and_not_inherited(loaded: RunningKvsup) -> None:
    """What kvsup's own environment holds for other programs does not reach its children."""
    own = psutil.Process(loaded.process.pid).environ()
    theirs = _child(loaded).environ()
    props = loaded.client.get("/upstream/smollm2/props").json()

    assert set(ALIEN) <= set(own)
    assert [name for name in theirs if name.startswith(("LLAMA_ARG_", "LLAMA_API", "AIP_"))] == []
    assert theirs["KVSUP_TEST_MARK"] == "ours"
    assert theirs["PATH"] == own["PATH"]
    assert props["default_generation_settings"]["n_ctx"] == 1024


def test_ps_shows_state_and_measured_bytes(loaded: RunningKvsup) -> None:
    """A loaded model with its pid; one that is not loaded with a dash."""
    models = {model["name"]: model for model in json_of(loaded, "ps")["models"]}
    rows = {row.split()[0]: row.split() for row in out(loaded, "ps").splitlines()[1:]}

    assert models["smollm2"]["state"] == "ready"
    assert models["smollm2"]["pid"] == int(rows["smollm2"][-1])
    assert rows["smollm2"][1:3] == ["ready", "q8_0:q5_1"]
    assert models["smollm2:agent"]["state"] == "stopped"
    assert rows["smollm2:agent"][-1] == "-"


def test_stop_unloads_and_says_so(loaded: RunningKvsup) -> None:
    """Once its requests have ended; asked again there is nothing to do."""
    first = out(loaded, "stop", "smollm2")
    eventually(lambda: loaded.models()["smollm2"]["state"] == "stopped")

    again = out(loaded, "stop", "smollm2")

    assert (first, again) == ("smollm2: stopping\n", "smollm2: was not loaded\n")


@pytest.mark.parametrize("command", ["stop", "reset", "logs", "argv", "show"])
def test_command_for_an_unknown_model_ends_with_1(kvsup: RunningKvsup, command: str) -> None:
    """The message names it."""
    code, text = failure(kvsup, command, "gone")

    assert code == 1
    assert text.startswith("kvsup: ")
    assert "'gone'" in text


def test_reset_lets_a_model_that_gave_up_start_again(kvsup: RunningKvsup) -> None:
    """A permanent cause gives up at once, and tells everyone why; ``reset`` tries again."""
    answer = kvsup.client.post("/api/generate", json={"model": "broken"})
    shown = out(kvsup, "ps")

    done = out(kvsup, "reset", "broken")
    state = kvsup.models()["broken"]
    again = kvsup.client.post("/api/generate", json={"model": "broken"})

    assert answer.status_code == again.status_code == 500
    assert "--poll" in answer.json()["error"]
    assert "--poll" in shown
    assert done == "broken: reset\n"
    assert (state["state"], state["failure"], state["deaths"]) == ("stopped", None, 0)


def test_logs_prints_the_last_lines_of_a_model(loaded: RunningKvsup) -> None:
    """What its llama-server wrote; it may write more between the two calls."""

    def read(*arguments: str) -> list[str]:
        return out(loaded, "logs", "smollm2", *arguments).splitlines()

    def last_are_those_of_the_whole() -> bool:
        last, whole = read("--lines", "3"), read("-n", "1000")
        assert len(last) == 3
        assert any("model loaded" in line for line in whole)
        return last == whole[-3:]

    eventually(last_are_those_of_the_whole)


def test_logs_that_follow_print_each_line_as_it_comes(loaded: RunningKvsup) -> None:
    """Until Ctrl-C, which is exit code 130 and no traceback."""
    following = subprocess.Popen(
        [sys.executable, "-m", "kvsup", "logs", "smollm2", "-f"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KVSUP_CONFIG_DIR": str(loaded.configs)},
    )
    try:
        assert following.stdout is not None
        lines = iter(following.stdout)
        assert any("model loaded" in line for line in lines)

        body = {"model": "smollm2", "prompt": "x", "options": {"num_predict": 1}}
        loaded.client.post("/api/generate", json=body).raise_for_status()

        assert any("stop processing" in line for line in lines)
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate()
    finally:
        following.kill()
    assert following.returncode == 130
    assert "Traceback" not in errors


def test_reload_takes_up_an_edit_and_refuses_a_wrong_one(
    kvsup: RunningKvsup, smollm2: Path
) -> None:
    """A new model is there at once; a wrong file changes nothing and is told in full."""
    kvsup.write("new", f'model = "{smollm2}"\nthreads = 1\n')
    done = out(kvsup, "reload")
    with_new = set(kvsup.models())
    kvsup.write("new", 'model = "gone.gguf"\nnum_ctx = "x"\n')
    code, text = failure(kvsup, "reload")
    after_wrong = set(kvsup.models())

    (kvsup.configs / "new.toml").unlink()
    out(kvsup, "reload")

    assert done == "configuration read again\n"
    assert with_new == after_wrong == {"broken", "smollm2", "smollm2:agent", "new"}
    assert code == 1
    assert text.endswith('new.toml:2: num_ctx: expected int, got str; write a number or "auto"')
    assert set(kvsup.models()) == {"broken", "smollm2", "smollm2:agent"}


def test_doctor_lists_what_is_found_and_what_is_ignored(kvsup: RunningKvsup) -> None:
    """Binary, types, configuration, address, and the variables that mean nothing here."""
    found = {(row["what"], row["found"]): row["well"] for row in json_of(kvsup, "doctor")}
    texts: dict[str, str] = {}
    for what, text in found:
        texts[what] = f"{texts.get(what, '')}{text}\n"

    assert all(found.values())
    assert "q5_1" in texts["KV cache types"]
    assert "smollm2:agent" in texts["configuration"]
    assert f"{kvsup.url}, something listens there" in texts["address"]
    for name in ("OLLAMA_NOPRUNE", "LLAMA_ARG_CTX_SIZE", "AIP_HTTP_PORT"):
        assert name in texts["ignored variable"]


def test_reload_keeps_a_process_that_need_not_change_and_replaces_one_that_must(
    loaded: RunningKvsup, smollm2: Path
) -> None:
    """A system prompt is the request's business, a context the process's."""
    text = SMOLLM2.format(path=smollm2)
    before = loaded.models()["smollm2"]["pid"]

    loaded.write("smollm2", text.replace("threads = 1", 'threads = 1\nsystem = "Be brief."'))
    out(loaded, "reload")
    kept = loaded.models()["smollm2"]["pid"]
    system = loaded.client.post("/api/show", json={"model": "smollm2"}).json()["system"]
    loaded.write("smollm2", text.replace("num_ctx = 1024", "num_ctx = 512"))
    out(loaded, "reload")
    loaded.client.post("/api/generate", json={"model": "smollm2"}).raise_for_status()
    replaced = loaded.models()["smollm2"]

    loaded.write("smollm2", text)
    out(loaded, "reload")

    assert (kept, system) == (before, "Be brief.")
    assert replaced["pid"] not in {None, before}
    assert replaced["num_ctx"] == 512


def test_hangup_reads_the_configuration_again(kvsup: RunningKvsup, smollm2: Path) -> None:
    """SIGHUP is ``kvsup reload``; what is wrong is printed, and nothing changes."""
    kvsup.write("hup", f'model = "{smollm2}"\nthreads = 1\n')
    kvsup.process.send_signal(signal.SIGHUP)
    eventually(lambda: "hup" in kvsup.models())
    kvsup.write("hup", 'model = "gone.gguf"\n')
    kvsup.process.send_signal(signal.SIGHUP)
    eventually(lambda: "hup.toml:1: model: no such file" in kvsup.log())
    after_wrong = set(kvsup.models())

    (kvsup.configs / "hup.toml").unlink()
    kvsup.process.send_signal(signal.SIGHUP)

    eventually(lambda: "hup" not in kvsup.models())
    assert "hup" in after_wrong


def test_second_run_on_the_same_state_ends_with_1_and_names_the_first(kvsup: RunningKvsup) -> None:
    """Two supervisors on one folder would reap each other's children."""
    code, text = failure(kvsup, "run", str(kvsup.configs))

    assert code == 1
    assert text.startswith(f"kvsup: another kvsup (pid {kvsup.process.pid}) uses {kvsup.state}; ")
    assert kvsup.client.get("/api/version").status_code == 200


def test_run_on_a_port_in_use_ends_with_1_and_says_who_holds_it(
    kvsup: RunningKvsup, tmp_path: Path, smollm2: Path
) -> None:
    """The message has the program, its pid, and the mend."""
    port = kvsup.url.rpartition(":")[2]
    text = (kvsup.configs / "kvsup.toml").read_text("utf-8")
    text = text.replace("port = 0", f"port = {port}").replace(str(kvsup.state), str(tmp_path / "s"))
    (tmp_path / "kvsup.toml").write_text(text)
    (tmp_path / "m.toml").write_text(f'model = "{smollm2}"\n')

    code, message = failure(kvsup, "run", str(tmp_path))

    assert code == 1
    assert f"kvsup: cannot listen on 127.0.0.1:{port}: Address already in use by " in message
    assert f"(pid {kvsup.process.pid}); stop that program, or set port in kvsup.toml" in message


def test_run_prints_one_line_an_event(loaded: RunningKvsup) -> None:
    """Spawned with its pair, ready with its bytes: a person can follow."""
    log = loaded.log()

    assert "listening on http://127.0.0.1:" in log
    assert "KV q8_0:q5_1, 1 x 1024 tokens)" in log
    assert "(K q8_0 5.98 MiB, V q5_1 4.22 MiB)" in log
    assert "Traceback" not in log
