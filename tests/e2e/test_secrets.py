"""What others on the machine may see of a kvsup that runs: modes, command lines, environments."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from kvsup.runtime.paths import run_dir
from tests.conftest import StartKvsup
from tests.running import eventually

KEY = "kvsup-secret-of-this-test-0123456789"
OWN_KEYS = {
    "KVSUP_API_KEY": "k1-" + KEY,
    "OPENAI_API_KEY": "k2-" + KEY,
    "ANTHROPIC_API_KEY": "k3-" + KEY,
    "OLLAMA_API_KEY": "k4-" + KEY,
    "HF_TOKEN": "k5-" + KEY,
    "LLAMA_API_KEY": "k6-" + KEY,
    "LLAMA_ARG_API_KEY": "k7-" + KEY,
    "AWS_SECRET_ACCESS_KEY": "k8-" + KEY,
}
MODEL = """
model = "{path}"
num_ctx = 256
threads = 1
"""
KEYS = f"""
[ada]
key = "{KEY}"
scope = "manage"
"""


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Start what is started within under this umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes_in(folder: Path) -> dict[str, int]:
    """Return the permissions of a folder and of everything in it, as they are open to others."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): stat.S_IMODE(path.lstat().st_mode) & 0o077 for path in paths}


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_what_kvsup_keeps_is_its_user_s_alone_whatever_the_umask(
    start_kvsup: StartKvsup, smollm2: Path, mask: int
) -> None:
    """State, sockets and records, after a load, an answer, a copy and a deletion."""
    with umask(mask):
        kvsup = start_kvsup({"m": MODEL.format(path=smollm2)})
    kvsup.client.post("/api/generate", json={"model": "m", "prompt": "Hi"}).raise_for_status()
    copy = {"source": "m", "destination": "n"}
    kvsup.client.post("/api/copy", json=copy).raise_for_status()
    kvsup.client.request("DELETE", "/api/delete", json={"model": "n"}).raise_for_status()

    kept = {**modes_in(kvsup.state), **modes_in(run_dir(kvsup.state))}

    assert len(kept) > 8
    assert {path: oct(mode) for path, mode in kept.items() if mode} == {}


def test_state_folder_with_something_of_others_is_left_open_and_told(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """A folder that is not kvsup's alone is not taken away from whoever uses it."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2)})
    kvsup.stop()
    kvsup.state.chmod(0o755)
    (kvsup.state / "of-another-program").touch()

    kvsup.start()

    assert stat.S_IMODE(kvsup.state.stat().st_mode) == 0o755
    assert "chmod it to 700" in kvsup.log()
    own = [path for path in kvsup.state.rglob("*.json") if path.is_file()]
    assert own
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in own)


def test_keys_are_in_no_command_line_no_environment_of_a_child_no_log_and_no_answer(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """Neither those of kvsup's clients nor those that its own environment happens to hold."""
    keys = tmp_path / "keys.toml"
    keys.touch(mode=0o600)
    keys.write_text(KEYS)
    kvsup = start_kvsup(
        {"m": MODEL.format(path=smollm2)},
        host=f'api_keys = "{keys}"\nlog_level = "debug"\n',
        environment=OWN_KEYS,
    )
    answers = []
    for path, headers in (
        ("/api/show", {"Authorization": f"Bearer {KEY}"}),
        ("/api/chat", {"X-Api-Key": KEY}),
        ("/v1/chat/completions", {"Authorization": f"Bearer {KEY}"}),
        ("/v1/chat/completions", {"Authorization": f"Bearer {KEY}x"}),
        ("/v1/messages", {"X-Api-Key": KEY, "Authorization": "Bearer"}),
        ("/upstream/m/props", {"X-Api-Key": KEY}),
        ("/nothing", {"X-Api-Key": KEY}),
    ):
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        answers.append(kvsup.client.post(path, json=body, headers=headers).text)
    loaded = kvsup.client.get("/kvsup/logs/m?lines=10000", headers={"X-Api-Key": KEY})
    props = kvsup.client.get("/upstream/m/props", headers={"X-Api-Key": KEY})
    (child,) = kvsup.children()

    assert "loaded" in loaded.text or "model" in loaded.text
    seen = [
        *answers, loaded.text, props.text, kvsup.log(), *child.cmdline(),
        *psutil.Process(kvsup.process.pid).cmdline(), repr(child.environ()),
        *(path.read_text() for path in kvsup.state.rglob("*") if path.is_file()),
    ]  # fmt: skip
    assert not [text for text in seen if KEY in text]


def test_what_llama_server_quotes_of_a_client_is_neither_believed_nor_kept(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """It prints what it cannot use into its log, with the client's line ends."""
    lines = (
        "CPU KV buffer size = 1.2.3 MiB",
        "CPU model buffer size = 99999999.00 MiB",
        "I llama_context: CPU compute buffer size = 99999999.00 MiB",
        "my private text",
    )
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2)})
    ask = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    kvsup.client.post("/v1/chat/completions", json=ask).raise_for_status()
    before = kvsup.models()["m"]

    text = "\n".join(lines)
    schema = {"type": "string", "pattern": f"^(?<!{text}$"}
    statuses = [
        kvsup.client.post("/v1/chat/completions", json=ask | wrong).status_code
        for wrong in (
            {"grammar": f"root ::= nonsense\n{text}"},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
            {"samplers": [text]},
            {"tool_choice": f"{text} CPU model buffer size = 99999999.00 MiB"},
        )
    ]
    kvsup.client.post("/v1/chat/completions", json=ask).raise_for_status()

    assert statuses == [400, 200, 200, 400]
    now = kvsup.models()["m"]
    assert (now["state"], now["pid"]) == ("ready", before["pid"])
    assert now["size_bytes"] == before["size_bytes"]
    logged = kvsup.client.get("/kvsup/logs/m").text
    assert "all slots are idle" in logged
    assert "private" not in logged + kvsup.log()


def test_long_text_that_is_quoted_is_not_believed_and_behind_it_the_log_goes_on(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Lines like its own end what is taken for a client's; requests come all the time."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2)})
    ask = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}

    def logged() -> str:
        return kvsup.client.get("/kvsup/logs/m?lines=99999").text

    def n_answers_logged() -> int:
        kvsup.client.post("/v1/chat/completions", json=ask).raise_for_status()
        return logged().count("stop processing")

    n_before, before = n_answers_logged(), kvsup.models()["m"]
    lines = ["my private text"] * 300_000
    lines += ["I llama_context: CPU model buffer size = 99999999.00 MiB"] * 2
    wrong = ask | {"grammar": "root ::= nonsense\n" + "\n".join(lines)}
    assert kvsup.client.post("/v1/chat/completions", json=wrong).status_code == 400
    eventually(lambda: n_answers_logged() > n_before + 1)

    assert kvsup.models()["m"]["size_bytes"] == before["size_bytes"]
    assert "private" not in logged()
