"""A real kvsup in a process of its own, as a person would run it, for tests that talk to it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

from kvsup.runtime.paths import address_file, run_dir

START_TIMEOUT_S = 30.0


class RunningKvsup:
    """``kvsup run`` on a configuration folder of its own, on a free port, with its own state."""

    def __init__(
        self,
        folder: Path,
        *,
        models: Mapping[str, str],
        llama_server: Path,
        host: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.configs = folder / "configs"
        self.state = folder / "state"
        self.log_path = folder / "kvsup.log"
        self.configs.mkdir(parents=True)
        self.state.mkdir()
        for name, text in models.items():
            self.write(name, text)
        self.store = folder / "models"
        own = "" if "registries" in host else "registries = []\n"
        (self.configs / "kvsup.toml").write_text(
            f'port = 0\nllama_server = "{llama_server}"\nstate_dir = "{self.state}"\n'
            f'models_dir = "{self.store}"\n{own}' + textwrap.dedent(host)
        )
        self._environment = {**os.environ, **(environment or {})}
        self.start()

    def start(self) -> None:
        """Start the process and wait until it listens."""
        address = address_file(self.state)
        address.unlink(missing_ok=True)  # one that was killed has left its own
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kvsup", "run", str(self.configs)],
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (address.exists() and address.read_text()):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.01)
        self.url = address.read_text()
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def write(self, name: str, text: str) -> None:
        """Write the configuration file of a model."""
        (self.configs / f"{name}.toml").write_text(textwrap.dedent(text))

    def log(self) -> str:
        """Return everything it has printed."""
        return self.log_path.read_text()

    def models(self) -> dict[str, dict[str, Any]]:
        """Return the state of each model by name."""
        answer = self.client.get("/kvsup/models").raise_for_status().json()
        return {model["name"]: model for model in answer["models"]}

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of kvsup against this one."""
        return subprocess.run(
            [sys.executable, "-m", "kvsup", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**self._environment, "KVSUP_CONFIG_DIR": str(self.configs)},
        )

    def children(self) -> list[psutil.Process]:
        """Return every living llama-server whose socket is in this kvsup's folder."""
        mark = str(run_dir(self.state))
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if process.info["status"] != psutil.STATUS_ZOMBIE and any(mark in w for w in words):
                found.append(process)
        return found

    def stop(self) -> int:
        """End it as Ctrl-C does and return its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=30)
        finally:
            self.process.kill()

    def __enter__(self) -> "RunningKvsup":  # noqa: PYI034 - typing.Self is of Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def eventually(condition: Any, *, timeout_s: float = 20.0) -> None:
    """Wait until ``condition()`` is true; fail with what it last was."""
    deadline_s = time.monotonic() + timeout_s
    while not (last := condition()):
        assert time.monotonic() < deadline_s, f"still {last!r} after {timeout_s} s"
        time.sleep(0.01)
