"""A kvsup as systemd runs it: what its manager is told, and who else may run on its state."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartKvsup
from tests.e2e.commands import failure, out


class Manager:
    """The service manager's socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(30)

    def hear(self, state: str) -> dict[str, str]:
        """Return the fields of the next message but the watchdog's, which must be of ``state``."""
        while True:
            text = self._socket.recv(4096).decode()
            if text == "WATCHDOG=1" != state:
                continue
            assert text.startswith(state), text
            return dict(line.split("=", 1) for line in text.split("\n"))

    def close(self) -> None:
        """Go away."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """Return a manager that listens."""
    listening = Manager(tmp_path / "notify")
    yield listening
    listening.close()


def test_manager_is_told_of_start_reload_refusal_and_stop(
    start_kvsup: StartKvsup, smollm2: Path, manager: Manager
) -> None:
    """As Type=notify-reload wants it; no llama-server learns of the socket."""
    text = f'model = "{smollm2}"\nthreads = 1\n'
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"}
    kvsup = start_kvsup({"m": text}, environment=environment)

    assert manager.hear("READY=1")["STATUS"] == "serving 1 model"
    manager.hear("WATCHDOG=1")
    before_us = time.monotonic_ns() // 1000
    kvsup.process.send_signal(signal.SIGHUP)
    assert int(manager.hear("RELOADING=1")["MONOTONIC_USEC"]) >= before_us
    assert manager.hear("READY=1")["STATUS"] == "serving 1 model"
    kvsup.write("m", text + "num_context = 7\n")
    manager.hear("RELOADING=1")
    status = manager.hear("READY=1")["STATUS"]
    kvsup.client.post("/api/generate", json={"model": "m"}).raise_for_status()
    (child,) = kvsup.children()
    theirs = child.environ()
    kvsup.process.send_signal(signal.SIGTERM)
    manager.hear("STOPPING=1")

    assert kvsup.process.wait(30) == 0
    assert status.startswith("serving 1 model; configuration not taken up: ")
    assert status.endswith("m.toml:3: num_context: unknown key; did you mean num_ctx?")
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(theirs)


def test_second_kvsup_is_refused_with_the_owners_pid_and_runs_when_that_was_killed(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """The lock is the kernel's: it ends with its owner, whatever the file still says."""
    kvsup = start_kvsup({"m": f'model = "{smollm2}"\nthreads = 1\n'})

    code, text = failure(kvsup, "run", str(kvsup.configs))
    first = kvsup.process.pid
    kvsup.process.kill()
    kvsup.process.wait()
    (kvsup.state / "kvsup.url").unlink()
    kvsup.start()

    assert code == 1
    assert text.startswith(f"kvsup: another kvsup (pid {first}) uses {kvsup.state}; stop it")
    assert kvsup.process.pid != first
    assert out(kvsup, "reload") == "configuration read again\n"


def test_reload_without_a_kvsup_ends_with_3(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """A unit can tell it from a refusal, which is 1."""
    kvsup = start_kvsup({"m": f'model = "{smollm2}"\nthreads = 1\n'})
    kvsup.stop()

    code, text = failure(kvsup, "reload")

    assert code == 3
    assert "no kvsup answers on " in text
