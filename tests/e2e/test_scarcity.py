"""Too few file descriptors, and a disk without room: kvsup goes on and says so once."""

import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from kvsup.runtime.files import CHILD_FILES, max_connections
from tests.conftest import StartKvsup
from tests.e2e.sockets import connect, hear, request, say
from tests.running import RunningKvsup, eventually

MODEL = """
model = "{path}"
num_ctx = 512
threads = 1
"""

FEW_FILES = 120


def chat(kvsup: RunningKvsup, *, content: str = "Hi") -> httpx.Response:
    """Chat with the model, on a connection of its own."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": content}],
        "stream": False,
        "options": {"num_predict": 2},
    }
    return httpx.post(f"{kvsup.url}/api/chat", json=body, timeout=60, trust_env=False)


def limit_files(kvsup: RunningKvsup, n_files: int) -> None:
    """Let the running kvsup open no further files than ``n_files``."""
    _, hard = resource.prlimit(kvsup.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(kvsup.process.pid, resource.RLIMIT_NOFILE, (n_files, hard))


@contextmanager
def files_of_parent(n_files: int) -> Iterator[None]:
    """Start what is started within with a limit of open files, also a hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = ["prlimit", f"--nofile={n_files}:{n_files}"]
    real = subprocess.Popen

    class Limited(real):  # type: ignore[valid-type, misc]
        def __init__(self, arguments: list[str], **named: object) -> None:
            super().__init__([*words, *arguments], **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Limited)
        yield
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


# Connections


def test_ten_thousand_idle_connections_cost_little_and_keep_nobody_out(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """As many as this machine allows; the one that asks is answered."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2)})
    assert chat(kvsup).status_code == 200
    process = psutil.Process(kvsup.process.pid)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_files, _ = resource.prlimit(kvsup.process.pid, resource.RLIMIT_NOFILE)
    assert n_files == min(hard, 65536)
    n_idle = min(10_000, max_connections(n_files) - 10, hard - 500)
    before_bytes = process.memory_info().rss

    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as stack:
            for _ in range(n_idle):
                stack.enter_context(closing(connect(kvsup)))
            eventually(lambda: process.num_fds() > n_idle)

            assert chat(kvsup).status_code == 200
            each_bytes = (process.memory_info().rss - before_bytes) / n_idle
        eventually(lambda: process.num_fds() < 100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert each_bytes < 12_000
    assert "no more are let in" not in kvsup.log()


def test_connections_over_the_limit_of_files_are_told_so_and_once_in_the_log(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """What is left of the files is for the requests of those that are in."""
    with files_of_parent(FEW_FILES):
        kvsup = start_kvsup({"m": MODEL.format(path=smollm2)})
    n_most = max_connections(FEW_FILES)
    with ExitStack() as stack:
        inside = stack.enter_context(httpx.Client(base_url=kvsup.url, timeout=60, trust_env=False))
        inside.get("/api/version").raise_for_status()
        for _ in range(n_most - 1):
            stack.enter_context(closing(connect(kvsup)))
        refused = [say(kvsup, request("GET /api/version")) for _ in range(20)]

        body = {"model": "m", "prompt": "Hi", "stream": False, "options": {"num_predict": 2}}
        assert inside.post("/api/generate", json=body).status_code == 200

    assert [heard.statuses for heard in refused] == [[503]] * 20
    assert b"too many connections" in refused[0].body
    assert kvsup.log().count("no more are let in") == 1
    assert f"may open {FEW_FILES} files" in kvsup.log()
    eventually(lambda: say(kvsup, request("GET /api/version")).statuses == [200])


def test_no_file_descriptor_left_ends_nothing(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """Neither the listener nor those that are served; afterwards all is as before.

    In the seconds without any the folder and the models are looked at, one model serves, and one is
    to be loaded.
    """
    model = MODEL.format(path=smollm2) + '[watchdog]\ninterval = "0.3s"\n'
    kvsup = start_kvsup({"m": model, "n": model})
    assert chat(kvsup).status_code == 200
    kvsup.client.get("/api/version").raise_for_status()
    waiting = connect(kvsup)
    process = psutil.Process(kvsup.process.pid)
    n_files, _ = resource.prlimit(kvsup.process.pid, resource.RLIMIT_NOFILE)
    limit_files(kvsup, process.num_fds() + 1)
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(closing(connect(kvsup)))
        assert kvsup.client.get("/api/version").status_code == 200
        assert kvsup.client.get("/api/ps").status_code == 200
        body = {"model": "n", "prompt": "Hi", "stream": False, "options": {"num_predict": 2}}
        content = httpx.Request("POST", kvsup.url, json=body).content
        waiting.sendall(request("POST /api/generate", content))
        time.sleep(3)
        eventually(lambda: "cannot be listed: Too many open files" in kvsup.log())
    limit_files(kvsup, n_files)
    with closing(waiting):
        heard = hear(waiting)
    assert heard.statuses == [200], (heard.data, kvsup.log())
    eventually(lambda: "configuration read again" in kvsup.log())

    eventually(lambda: say(kvsup, request("GET /api/version")).statuses == [200])
    assert chat(kvsup).status_code == 200
    assert "Traceback" not in kvsup.log()


def test_llama_server_that_cannot_be_started_for_want_of_files_is_started_later(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Its request waits, and the model is not given up."""
    model = MODEL.format(path=smollm2) + "[restart]\nmin_delay = 0.2\nmax_delay = 0.2\n"
    kvsup = start_kvsup({"m": model})
    kvsup.client.get("/api/version").raise_for_status()
    process = psutil.Process(kvsup.process.pid)
    n_files, _ = resource.prlimit(kvsup.process.pid, resource.RLIMIT_NOFILE)
    body = {"model": "m", "prompt": "Hi", "stream": False, "options": {"num_predict": 2}}
    with closing(connect(kvsup)) as waiting:
        eventually(lambda: say(kvsup, request("GET /api/version")).statuses == [200])
        limit_files(kvsup, process.num_fds() + 1)
        content = httpx.Request("POST", kvsup.url, json=body).content
        waiting.sendall(request("POST /api/generate", content))
        eventually(lambda: "Too many open files" in kvsup.log())
        limit_files(kvsup, n_files)
        heard = hear(waiting)

    assert heard.statuses == [200]
    assert kvsup.models()["m"]["state"] == "ready"
    assert "Traceback" not in kvsup.log()


def test_child_has_a_limit_of_its_own(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """What kvsup raised for its clients is not handed on."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2)})
    assert chat(kvsup).status_code == 200
    (child,) = kvsup.children()
    soft, hard = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)

    assert soft == min(hard, CHILD_FILES)


# Disks


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of 256 KiB over a folder and yield the file that fills it; needs root."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder / "filler"
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def fill(filler: Path) -> None:
    """Write until nothing more fits."""
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


def test_full_disk_below_state_and_sockets_ends_nothing_and_is_told_once(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Models load, requests are answered, large ones too; only what was measured is forgotten."""
    with ExitStack() as stack:
        runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="k", dir="/tmp"))
        kvsup = start_kvsup(
            {"m": MODEL.format(path=smollm2)}, environment={"XDG_RUNTIME_DIR": runtime}
        )
        kvsup.stop()
        fillers = [
            stack.enter_context(small_disk(folder)) for folder in (kvsup.state, Path(runtime))
        ]
        kvsup.start()
        for filler in fillers:
            fill(filler)

        assert chat(kvsup).status_code == 200
        assert chat(kvsup, content="x" * (2 << 20)).status_code in {200, 400}
        assert kvsup.cli("stop", "m").returncode == 0
        assert chat(kvsup).status_code == 200
        log = kvsup.log()
        for filler in fillers:
            filler.unlink()
        assert chat(kvsup).status_code == 200
        assert kvsup.stop() == 0

    assert log.count("what is measured is forgotten") == 1
    assert log.count("may outlive it") == 2  # one for each child
    assert "No space left on device" in log
    assert "Traceback" not in log


def test_start_on_a_full_disk_serves(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """Even its address cannot be written: whoever knows it is answered."""
    kvsup = start_kvsup({"m": MODEL.format(path=smollm2)})
    url = kvsup.url
    kvsup.stop()
    port = url.rpartition(":")[2]
    settings = kvsup.configs / "kvsup.toml"
    settings.write_text(settings.read_text().replace("port = 0", f"port = {port}"))
    with small_disk(kvsup.state) as filler:
        fill(filler)
        with kvsup.log_path.open("ab") as log:
            process = subprocess.Popen(["kvsup", "run", str(kvsup.configs)], stdout=log, stderr=log)
        try:

            def answers() -> bool:
                try:
                    return chat(kvsup).status_code == 200
                except httpx.TransportError:
                    assert process.poll() is None, kvsup.log()
                    return False

            eventually(answers)
        finally:
            process.terminate()
            process.wait(30)

    assert "will not find this one" in kvsup.log()
    assert "Traceback" not in kvsup.log()
