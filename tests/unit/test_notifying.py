"""What systemd is told, by a real datagram socket."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from kvsup.runtime.notifying import Notifier


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(20)

    def heard(self) -> dict[str, str]:
        """Return the fields of the next message."""
        text = self.socket.recv(4096).decode()
        return dict(line.split("=", 1) for line in text.split("\n"))


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Manager]]:
    """Return each form of ``NOTIFY_SOCKET``, and who listens there."""
    path = str(tmp_path / "notify")
    name = f"@kvsup/test/{os.getpid()}"
    address = path if request.param == "path" else name.replace("@", "\0")
    listening = Manager(address)
    yield (path if request.param == "path" else name), listening
    listening.socket.close()


def test_each_state_is_one_datagram_of_assignments(manager: tuple[str, Manager]) -> None:
    """A reload carries the monotonic time at which it began."""
    named, listening = manager
    notifier = Notifier({"NOTIFY_SOCKET": named})
    before_us = time.monotonic_ns() // 1000

    notifier.ready("serving 2 models\nand more")
    notifier.reloading()
    notifier.stopping()

    assert listening.heard() == {"READY": "1", "STATUS": "serving 2 models and more"}
    reloading = listening.heard()
    assert reloading["RELOADING"] == "1"
    assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert listening.heard()["STOPPING"] == "1"


@pytest.mark.parametrize("pid", [None, os.getpid()])
async def test_watchdog_is_told_again_and_again(
    manager: tuple[str, Manager], pid: int | None
) -> None:
    """Twice in the time that it allows."""
    named, listening = manager
    watchdog = {"WATCHDOG_USEC": "20000", **({"WATCHDOG_PID": str(pid)} if pid else {})}
    notifier = Notifier({"NOTIFY_SOCKET": named, **watchdog})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(notifier.keep_alive)
        heard = [await anyio.to_thread.run_sync(listening.heard) for _ in range(3)]
        tasks.cancel_scope.cancel()

    assert heard == [{"WATCHDOG": "1"}] * 3


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "vsock:2:9999", "WATCHDOG_USEC": "10"},
        {"WATCHDOG_USEC": "10"},
        {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "0"},
    ],
)
async def test_watchdog_that_is_not_ours_is_told_nothing(environ: dict[str, str]) -> None:
    """There is none, it is another process's, or its time is none."""
    with anyio.fail_after(20):
        await Notifier(environ).keep_alive()


def test_manager_that_is_gone_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It must not end what serves."""
    Notifier({"NOTIFY_SOCKET": "/nowhere/notify"}).ready("")

    assert "systemd cannot be told READY=1" in caplog.text


def test_without_a_manager_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """As on most machines."""
    Notifier({}).ready("")

    assert caplog.text == ""
