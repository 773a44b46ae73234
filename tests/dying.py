"""Real llama-servers that are killed in the middle of an answer, and their streams joined."""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from kvsup.errors import Diverged
from kvsup.llama.resume import Continue, Replay, continued_body, facts
from kvsup.llama.seam import Seam
from tests.running import eventually

SETTINGS = ("--threads", "1", "--poll", "0", "--no-warmup", "--cache-ram", "0", "-fit", "off")


class DyingServer:
    """One llama-server on a socket of its own; ``kill`` ends it as the kernel would."""

    def __init__(self, binary: Path, model: Path, *arguments: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kvsup-dying-")
        folder = Path(self._folder.name)
        self.log_path, self._socket = folder / "log", folder / "s.sock"
        command = [binary, "--model", model, "--host", self._socket, *SETTINGS, *arguments]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "XDG_CONFIG_HOME": "/nonexistent"},
            )
        transport = httpx.HTTPTransport(
            uds=str(self._socket), limits=httpx.Limits(max_keepalive_connections=0)
        )
        self.client = httpx.Client(transport=transport, base_url="http://x", timeout=120)
        eventually(self._is_ready, timeout_s=120)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log_path.read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self._socket)) != 0:
                return False
        return self.client.get("/health").status_code == 200

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """Yield the bytes of an answer until it ends or the process dies."""
        with self.client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                raise AssertionError(response.read().decode())
            try:
                yield from response.iter_raw()
            except httpx.TransportError:
                assert self.process.wait(timeout=10) == -signal.SIGKILL

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "DyingServer":  # noqa: PYI034 - typing.Self is of Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        self.kill()
        self._folder.cleanup()


def requested(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``body`` as kvsup posts it: streamed, with progress and counts."""
    return {
        **body,
        "stream": True,
        "return_progress": True,
        "stream_options": {"include_usage": True},
    }


def n_events(stream: bytes) -> int:
    """Return how many events a stream has, those about progress aside."""
    events = stream.split(b"\n\n")
    return sum(b"data: " in event and b'"prompt_progress":' not in event for event in events)


def until_killed(
    server: DyingServer, seam: Seam, path: str, body: Mapping[str, Any], *, after: int
) -> bytes:
    """Return what ``seam`` makes of an answer whose process is killed after so many events."""
    delivered = b""
    with closing(server.stream(path, body)) as stream:
        for data in stream:
            delivered += seam.feed(data)
            if n_events(delivered) >= after:
                server.kill()
                break
    return delivered


def resumed(
    server: DyingServer, seam: Seam, path: str, body: Mapping[str, Any], how: Sequence[str]
) -> bytes:
    """Return the rest of an answer from another process, by the first of ``how`` that goes."""
    known = facts(path, body, seam.transcript)
    for way in how:
        if way == "continue":
            body = continued_body(path, body, seam.transcript)
            seam.reopen(Continue(is_whole=known.is_whole))
        else:
            seam.reopen(Replay())
        try:
            return b"".join(seam.feed(data) for data in server.stream(path, body))
        except Diverged:
            if way == how[-1]:
                raise
    raise AssertionError("no way given")
