"""Run commands of kvsup, and look at what they print and how they end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.running import RunningKvsup

ROOT = Path(__file__).parents[2]


def out(kvsup: RunningKvsup, *arguments: str) -> str:
    """Return what a command prints that must succeed."""
    done = kvsup.cli(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def json_of(kvsup: RunningKvsup, *arguments: str) -> Any:
    """Return the document that a command prints."""
    return json.loads(out(kvsup, *arguments, "--json"))


def failure(kvsup: RunningKvsup, *arguments: str) -> tuple[int, str]:
    """Return exit code and message of a command that must fail, with nothing on stdout."""
    done = kvsup.cli(*arguments)
    assert done.stdout == ""
    return done.returncode, done.stderr.strip()


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of its own, without what the tests' environment says."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "kvsup", *arguments],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
