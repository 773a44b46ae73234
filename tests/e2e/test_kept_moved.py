"""Conversations that move to another kvsup, in one file."""

import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import StartKvsup
from tests.e2e.test_warm_swaps import chat, model, saved, unload
from tests.running import RunningKvsup, eventually
from tests.runtime.test_kvfiles import TOKENS, opened, written

pytestmark = pytest.mark.timeout(240)

ASKED = "Which item is last?"


def conversation(kvsup: RunningKvsup, name: str = "m") -> tuple[str, str]:
    """Have two turns, and unload the model; return what it said in each."""
    said, _ = chat(kvsup, name)
    calm, _ = chat(kvsup, name, said, ASKED)
    unload(kvsup, name)
    return said, calm


def imported(kvsup: RunningKvsup, file: Path) -> dict[str, str]:
    """Return by model why its conversation was not taken; empty where it was."""
    done = kvsup.cli("kv", "import", str(file), "--json")
    assert done.returncode == 0, done.stderr
    return {one["model"]: one["why_not"] for one in json.loads(done.stdout)["conversations"]}


@pytest.mark.parametrize("is_running", [True, False])
def test_conversation_goes_on_at_another_kvsup_as_it_would_have_at_its_own(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, *, is_running: bool
) -> None:
    """Nearly nothing is read there, and the text is the same; the model has another name."""
    file = tmp_path / "kept.tar"
    here = start_kvsup({"m": model(smollm2), "other": model(smollm2, "num_parallel = 2\n")})
    said, calm = conversation(here)
    conversation(here, "other")
    there = start_kvsup({"m2": model(smollm2)})
    if not is_running:
        here.stop()
        there.stop()

    done = here.cli("kv", "export", str(file))
    taken = imported(there, file)
    twice = imported(there, file)
    if not is_running:
        there.start()
    again, told = chat(there, "m2", said, ASKED)

    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["m", "other"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert taken["m2"] == ""
    assert "no model here has its weights" in taken["other"]
    assert twice["m2"] == "it is here already"
    assert told["restored_tokens"] > 300
    assert again == calm
    assert all(path.stat().st_mode & 0o077 == 0 for path in (there.state / "kv").rglob("*"))


def test_export_of_one_model_holds_no_other_and_replaces_no_file(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """What is kept of nobody is said, and nothing is left of the attempt."""
    kvsup = start_kvsup({"a": model(smollm2), "b": model(smollm2)})
    for name in ("a", "b"):
        chat(kvsup, name)
        unload(kvsup, name)

    done = kvsup.cli("kv", "export", str(tmp_path / "b.tar"), "b")
    again = kvsup.cli("kv", "export", str(tmp_path / "b.tar"), "a")
    nobody = kvsup.cli("kv", "export", str(tmp_path / "n.tar"), "nobody")

    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["b"]
    assert (again.returncode, "is there already" in again.stderr) == (1, True)
    assert (nobody.returncode, "nothing is kept of 'nobody'" in nobody.stderr) == (1, True)
    assert [path.name for path in tmp_path.glob("*.tar*")] == ["b.tar"]
    assert kvsup.client.get("/kvsup/kv/archive", params={"model": "nobody"}).status_code == 404


@pytest.mark.parametrize("n_beyond_bytes", [0, 1])
async def test_export_of_the_kvsup_that_runs_is_whole_whatever_the_sizes_are(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path, n_beyond_bytes: int
) -> None:
    """A conversation that fills the last block of the tar ends nothing."""
    kvsup = start_kvsup({"m": model(smollm2)})
    kvsup.stop()
    files = opened(kvsup.state / "kv")
    for first in (7, 8):
        part = written(files, [first, *TOKENS], model="m")
        path = files.folder_of("m") / part
        with path.open("ab") as file:
            file.write(bytes(-path.stat().st_size % 512 + n_beyond_bytes))
        assert await files.keep(part, model="m", identity="0" * 32, reread_s=1.0)
    kvsup.start()

    done = kvsup.cli("kv", "export", str(tmp_path / "kept.tar"))

    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["m", "m"]


def test_file_that_breaks_off_or_is_another_is_told_and_what_came_before_it_stays(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """By the running kvsup, which serves on; a larger body than it keeps is no matter."""
    kvsup = start_kvsup({"m": model(smollm2)}, host='max_body = "1MiB"\n')
    conversation(kvsup)
    whole, broken, noise = (tmp_path / name for name in ("whole", "broken", "noise"))
    assert kvsup.cli("kv", "export", str(whole)).returncode == 0
    data = whole.read_bytes()
    broken.write_bytes(data[:-1024] + data[:2048])
    noise.write_bytes(b"\x55" * (8 << 20))
    kvsup.cli("kv", "clear")

    first, second = (kvsup.cli("kv", "import", str(file)) for file in (broken, noise))

    assert (first.returncode, "it breaks off" in first.stderr) == (1, True)
    assert (second.returncode, "it is no file of kvsup kv export" in second.stderr) == (1, True)
    assert len(saved(kvsup)) == 1
    assert not list((kvsup.state / "kv").rglob("*.part"))
    assert chat(kvsup, "m")[1]["restored_tokens"] > 300


def test_command_that_cannot_reach_the_kvsup_that_runs_touches_nothing(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """It holds the state folder; who would write there beside it would be in its way."""
    kvsup = start_kvsup({"m": model(smollm2)})
    conversation(kvsup)
    address = kvsup.state / "kvsup.url"
    url = address.read_text()
    address.write_text("http://127.0.0.1:9")

    for command in (["export", str(tmp_path / "x.tar")], ["import", str(address)], ["clear"]):
        done = kvsup.cli("kv", *command)
        assert (done.returncode, "another kvsup (pid" in done.stderr) == (1, True), done

    address.write_text(url)
    assert len(saved(kvsup)) == 1
    assert not (tmp_path / "x.tar").exists()


def half_sent(kvsup: RunningKvsup, data: bytes) -> socket.socket:
    """Send all but the end of an import, and wait until a part of it lies on disk."""
    url = urlsplit(kvsup.url)
    client = socket.create_connection((url.hostname, url.port))
    head = f"PUT /kvsup/kv/archive HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    client.sendall(head.replace("Host: x", f"Host: {url.netloc}").encode() + data[:-4096])
    eventually(lambda: list((kvsup.state / "kv").rglob("*.part")))
    return client


def test_import_whose_client_leaves_or_stalls_holds_nothing_up(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """Nothing is left of it; the next import is taken; kvsup ends beside one that stands still."""
    kvsup = start_kvsup({"m": model(smollm2)})
    conversation(kvsup)
    file = tmp_path / "kept.tar"
    assert kvsup.cli("kv", "export", str(file)).returncode == 0
    kvsup.cli("kv", "clear")

    half_sent(kvsup, file.read_bytes()).close()
    eventually(lambda: not list((kvsup.state / "kv").rglob("*.part")))
    assert imported(kvsup, file) == {"m": ""}
    kvsup.cli("kv", "clear")
    with half_sent(kvsup, file.read_bytes()):
        assert kvsup.stop() == 0

    kvsup.start()
    assert saved(kvsup) == []
    assert not list((kvsup.state / "kv").rglob("*.part"))
    assert "Traceback" not in kvsup.log()
