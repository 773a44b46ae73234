"""A real registry on loopback: Debian's ``docker-registry``."""

import json
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import httpx
import pytest

from kvsup.runtime.paths import cache_dir

PROGRAM = cache_dir() / "docker-registry" / "docker-registry"


class DockerRegistry:
    """One such process, with a folder of its own."""

    def __init__(self, folder: Path, *, htpasswd: str = "") -> None:
        self.folder = folder
        self.host = f"localhost:{_free_port()}"
        self._htpasswd = htpasswd

    def __enter__(self) -> "DockerRegistry":  # noqa: PYI034 - typing.Self is of Python 3.11
        if not PROGRAM.is_file():
            pytest.fail(f"{PROGRAM} is missing; run scripts/test")
        self.folder.mkdir(parents=True)
        settings = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "data")}},
            "http": {"addr": self.host.replace("localhost", "127.0.0.1")},
        }
        if self._htpasswd:
            path = self.folder / "htpasswd"
            path.write_text(self._htpasswd)
            settings["auth"] = {"htpasswd": {"realm": "test", "path": str(path)}}
        config = self.folder / "config.yml"
        config.write_text(json.dumps(settings))
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "serve", config], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        eventually_listens(self.host)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def has(self, path: str) -> bool:
        """Say whether ``/v2/PATH`` is there."""
        accept = {"accept": "application/vnd.docker.distribution.manifest.v2+json"}
        return httpx.get(f"http://{self.host}/v2/{path}", headers=accept).status_code == 200


def eventually_listens(host: str, *, timeout_s: float = 20.0) -> None:
    """Wait until something takes connections at ``HOST:PORT``."""
    deadline_s = time.monotonic() + timeout_s
    while not _listens(host):
        assert time.monotonic() < deadline_s, f"nothing listens at {host}"
        time.sleep(0.02)


def _listens(host: str) -> bool:
    name, _, port = host.rpartition(":")
    try:
        socket.create_connection((name, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
