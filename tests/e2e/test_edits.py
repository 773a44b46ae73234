"""What is changed on disk under a kvsup that serves: edits, new llama-servers, new weights."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import StartKvsup
from tests.e2e.commands import failure, out
from tests.running import RunningKvsup, eventually

MODEL = 'model = "{path}"\nthreads = 1\nnum_ctx = {num_ctx}\n'
GATED = """\
#!/bin/sh
case "$1" in --model) while [ ! -e "{gate}" ]; do sleep 0.02; done ;; esac
exec "{llama_server}" "$@"
"""
"""A llama-server whose load takes as long as the test wants."""

LONG = {"num_predict": 400, "temperature": 0, "stop": [], "seed": 1}


def write(kvsup: RunningKvsup, model: Path, *, num_ctx: int = 512, rest: str = "") -> None:
    """Write the file of model ``m``, and nothing else."""
    kvsup.write("m", MODEL.format(path=model, num_ctx=num_ctx) + rest)


def begun(kvsup: RunningKvsup) -> Any:
    """Return a long stream of model ``m`` as a context manager."""
    body = {"model": "m", "prompt": "Count: one, two, three,", "raw": True, "options": LONG}
    return kvsup.client.stream("POST", "/api/generate", json=body)


def rest_of(lines: Iterator[str]) -> dict[str, Any]:
    """Return the last object of a stream that must be whole."""
    last: dict[str, Any] = json.loads(list(lines)[-1])
    assert last.get("done_reason") == "length", last
    return last


def ask(kvsup: RunningKvsup) -> httpx.Response:
    """Ask model ``m`` for a few tokens."""
    body = {"model": "m", "prompt": "Hi", "raw": True, "options": {"num_predict": 2}}
    return httpx.post(
        f"{kvsup.url}/api/generate", json=body | {"stream": False}, timeout=50, trust_env=False
    )


def the_pid(kvsup: RunningKvsup) -> int | None:
    """Return the process of the model ``m`` that is in force."""
    pid: int | None = kvsup.models()["m"]["pid"]
    return pid


def refusal(kvsup: RunningKvsup) -> str | None:
    """Return why the folder is not in force."""
    answer = kvsup.client.get("/kvsup/models").json()
    reason: str | None = answer["refused_configuration"]
    return reason


@pytest.fixture
def weights(tmp_path: Path, smollm2: Path) -> Path:
    """Return weights of the test's own, which it may spoil."""
    return Path(shutil.copy(smollm2, tmp_path / "weights.gguf"))


def test_edit_under_a_stream_lets_it_end_and_gives_the_next_request_the_new_plan(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Nobody says anything to kvsup: it sees the file."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2, num_ctx=512)})

    with begun(kvsup) as stream:
        lines = stream.iter_lines()
        next(lines)
        old = the_pid(kvsup)
        write(kvsup, smollm2, num_ctx=768)
        eventually(lambda: kvsup.models()["m"]["num_ctx"] == 768)
        answer = ask(kvsup)
        new = the_pid(kvsup)
        last = rest_of(lines)

    assert answer.status_code == 200, answer.text
    assert new not in {None, old}
    assert last["eval_count"] == LONG["num_predict"]
    eventually(lambda: len(kvsup.children()) == 1)


def test_edit_in_a_load_leaves_it_to_who_waits_for_it(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, llama_server: Path
) -> None:
    """Whoever caused it is answered by it; who comes later does not wait for it."""
    gate, slow = tmp_path / "gate", tmp_path / "slow-llama-server"
    slow.write_text(GATED.format(gate=gate, llama_server=llama_server))
    slow.chmod(0o755)
    text = MODEL.format(path=smollm2, num_ctx=512)
    kvsup = start_kvsup({"m": f'{text}llama_server = "{slow}"\n'})

    with ThreadPoolExecutor() as threads:
        first = threads.submit(ask, kvsup)
        eventually(lambda: kvsup.models()["m"]["state"] == "loading")
        write(kvsup, smollm2, num_ctx=768)
        eventually(lambda: kvsup.models()["m"]["num_ctx"] == 768)
        second = ask(kvsup)
        was_waiting = not first.done()
        gate.touch()
        answer = first.result(timeout=50)

    assert second.status_code == 200, second.text
    assert was_waiting
    assert answer.status_code == 200, answer.text
    eventually(lambda: len(kvsup.children()) == 1)


def test_bad_edit_changes_nothing_says_where_and_a_mended_one_is_taken_up(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """File, line, key and mend are in the log and in ``kvsup ps``, once."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2, num_ctx=512)})
    ask(kvsup).raise_for_status()
    pid = the_pid(kvsup)

    kvsup.write("m", MODEL.format(path=smollm2, num_ctx=512) + "num_context = 7\n")
    eventually(lambda: refusal(kvsup))
    shown = out(kvsup, "ps")
    code, printed = failure(kvsup, "reload")
    still = ask(kvsup)

    where = "m.toml:4: num_context: unknown key; did you mean num_ctx?"
    assert where in (refusal(kvsup) or "")
    assert where in shown
    assert "configuration not taken up" in shown
    assert where in printed
    assert code == 1
    assert still.status_code == 200
    assert the_pid(kvsup) == pid
    write(kvsup, smollm2, num_ctx=640)
    eventually(lambda: kvsup.models()["m"]["num_ctx"] == 640)
    assert refusal(kvsup) is None
    assert kvsup.log().count(where) == 1
    assert "configuration not taken up" not in out(kvsup, "ps")
    assert out(kvsup, "reload") == "configuration read again\n"


def test_file_that_is_written_bit_by_bit_is_read_when_it_is_whole(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """What stands there in between would be refused, and nobody is told of it."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2, num_ctx=512)})

    with (kvsup.configs / "m.toml").open("w") as file:
        for letter in MODEL.format(path=smollm2, num_ctx=896):
            file.write(letter)
            file.flush()
            refused = refusal(kvsup)
            assert refused is None

    eventually(lambda: kvsup.models()["m"]["num_ctx"] == 896)
    assert "not taken up" not in kvsup.log()


def test_models_come_and_go_with_their_files(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """Renamed into place, as editors do, or removed; an editor's lock beside them is no model."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2, num_ctx=512)})
    (kvsup.configs / ".#m.toml").symlink_to("ada@host.1234")

    draft = kvsup.configs / "draft"
    draft.write_text(MODEL.format(path=smollm2, num_ctx=256))
    draft.rename(kvsup.configs / "new.toml")
    eventually(lambda: set(kvsup.models()) == {"m", "new"})
    (kvsup.configs / "m.toml").unlink()

    eventually(lambda: set(kvsup.models()) == {"new"})
    assert refusal(kvsup) is None


def test_watch_that_is_off_leaves_edits_to_reload(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """And is on again once the host's file says so and is read."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2, num_ctx=512)}, host="watch = false\n")
    host = kvsup.configs / "kvsup.toml"

    write(kvsup, smollm2, num_ctx=640)
    host.write_text(host.read_text().replace("watch = false", "watch = true"))
    kvsup.client.post("/api/generate", json={"model": "m"}).raise_for_status()
    before = kvsup.models()["m"]["num_ctx"]
    out(kvsup, "reload")
    after = kvsup.models()["m"]["num_ctx"]
    write(kvsup, smollm2, num_ctx=704)

    eventually(lambda: kvsup.models()["m"]["num_ctx"] == 704)
    assert (before, after) == (512, 640)


def test_link_moved_to_another_build_is_taken_up_under_a_stream(
    start_kvsup: StartKvsup,
    smollm2: Path,
    tmp_path: Path,
    llama_server: Path,
    older_llama_server: Path,
) -> None:
    """As ``kvsup setup`` moves ``current``: the stream ends on the old build, the next is new."""
    link = tmp_path / "current"
    link.symlink_to(older_llama_server.parent)
    models = {"m": MODEL.format(path=smollm2, num_ctx=512)}
    kvsup = start_kvsup(models, llama_server=link / "llama-server")

    with begun(kvsup) as stream:
        lines = stream.iter_lines()
        next(lines)
        old = the_pid(kvsup)
        other = tmp_path / "other"
        other.symlink_to(llama_server.parent)
        other.rename(link)
        eventually(lambda: the_pid(kvsup) != old)
        answer = ask(kvsup)
        new = the_pid(kvsup)
        rest_of(lines)

    assert answer.status_code == 200, answer.text
    assert new not in {None, old}
    exe = Path(f"/proc/{new}/exe").readlink()
    assert exe == llama_server.resolve()
    eventually(lambda: len(kvsup.children()) == 1)


def test_program_replaced_in_place_is_taken_up_once_it_answers(
    start_kvsup: StartKvsup,
    smollm2: Path,
    tmp_path: Path,
    llama_server: Path,
    older_llama_server: Path,
) -> None:
    """A half of it changes nothing; what is loaded goes on."""
    program = Path(shutil.copy(older_llama_server, tmp_path / "llama-server"))
    models = {"m": MODEL.format(path=smollm2, num_ctx=512)}
    kvsup = start_kvsup(models, llama_server=program)
    ask(kvsup).raise_for_status()
    old = the_pid(kvsup)

    half = tmp_path / "half"
    half.write_bytes(llama_server.read_bytes()[: llama_server.stat().st_size // 2])
    half.chmod(0o755)
    half.rename(program)
    eventually(lambda: "llama-server --help" in (refusal(kvsup) or ""))
    meanwhile = ask(kvsup)
    kept = the_pid(kvsup)
    Path(shutil.copy(llama_server, tmp_path / "whole")).rename(program)

    eventually(lambda: the_pid(kvsup) != old)
    answer = ask(kvsup)
    assert (meanwhile.status_code, kept) == (200, old)
    assert answer.status_code == 200, answer.text
    assert refusal(kvsup) is None


def test_weights_replaced_by_rename_are_loaded_and_their_header_read_again(
    start_kvsup: StartKvsup, weights: Path, gemma3: Path, tmp_path: Path
) -> None:
    """Another model under the same name: the stream ends on the old weights."""
    kvsup = start_kvsup({"m": MODEL.format(path=weights, num_ctx=512)})

    with begun(kvsup) as stream:
        lines = stream.iter_lines()
        next(lines)
        old = the_pid(kvsup)
        Path(shutil.copy(gemma3, tmp_path / "new.gguf")).rename(weights)
        eventually(lambda: the_pid(kvsup) != old)
        details = kvsup.client.post("/api/show", json={"model": "m"}).json()["details"]
        answer = ask(kvsup)
        rest_of(lines)

    assert details["family"] == "gemma3"
    assert answer.status_code == 200, answer.text
    assert "may answer nonsense" not in kvsup.log()
    eventually(lambda: len(kvsup.children()) == 1)


def test_weights_written_in_place_are_warned_of_and_loaded_again_once_they_are_whole(
    start_kvsup: StartKvsup, weights: Path, smollm2: Path
) -> None:
    """Half of them is refused; the llama-server that has them mapped is ended while it is idle."""
    kvsup = start_kvsup({"m": MODEL.format(path=weights, num_ctx=512)})
    ask(kvsup).raise_for_status()
    old = the_pid(kvsup)

    whole = smollm2.read_bytes()
    os.truncate(weights, len(whole) // 2)
    eventually(lambda: the_pid(kvsup) is None)
    eventually(lambda: "it is truncated; fetch it again" in (refusal(kvsup) or ""))
    with weights.open("r+b") as file:
        file.write(whole)
    eventually(lambda: refusal(kvsup) is None)
    answer = ask(kvsup)

    assert answer.status_code == 200, answer.text
    assert the_pid(kvsup) not in {None, old}
    assert kvsup.log().count(f"m: {weights} was written to while a llama-server has it mapped") == 1


def test_weights_truncated_under_a_stream_never_end_it_as_if_it_were_whole(
    start_kvsup: StartKvsup, weights: Path, smollm2: Path
) -> None:
    """The llama-server may die of SIGBUS at the next page; kvsup says so, and serves again."""
    kvsup = start_kvsup({"m": MODEL.format(path=weights, num_ctx=512)})

    with begun(kvsup) as stream:
        lines = stream.iter_lines()
        next(lines)
        os.truncate(weights, 4096)
        last = json.loads(list(lines)[-1])
    eventually(lambda: f"m: {weights} was written to while a llama-server has it" in kvsup.log())
    shutil.copy(smollm2, weights)

    assert "error" in last or last["done_reason"] == "length", last
    eventually(lambda: refusal(kvsup) is None)
    eventually(lambda: ask(kvsup).status_code == 200)


def test_weights_deleted_leave_the_loaded_model_alone_and_are_warned_of(
    start_kvsup: StartKvsup, weights: Path, tmp_path: Path
) -> None:
    """Moved back, all is as it was, even for a load that failed in the meantime."""
    kvsup = start_kvsup({"m": MODEL.format(path=weights, num_ctx=512)})
    ask(kvsup).raise_for_status()
    pid = the_pid(kvsup)

    weights.rename(tmp_path / "elsewhere.gguf")
    eventually(lambda: f"m: {weights} was deleted; the llama-server" in kvsup.log())
    meanwhile = ask(kvsup)
    kept = the_pid(kvsup)
    out(kvsup, "stop", "m")
    eventually(lambda: the_pid(kvsup) is None)
    failed = ask(kvsup)
    (tmp_path / "elsewhere.gguf").rename(weights)
    eventually(lambda: refusal(kvsup) is None)
    eventually(lambda: kvsup.models()["m"]["failure"] is None)
    again = ask(kvsup)

    assert (meanwhile.status_code, kept) == (200, pid)
    assert failed.status_code == 500
    assert again.status_code == 200, again.text
    assert f"m.toml:1: model: no such file: {weights}" in kvsup.log()
