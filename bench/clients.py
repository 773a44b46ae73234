"""Runs a client of the bench in a process of its own, so that it takes no time of a server's."""

import subprocess
import sys
from typing import TypeVar

import msgspec

T = TypeVar("T")
CLIENT_TIMEOUT_S = 60


class ClientError(Exception):
    """A client failed; the text is the last line of what it said."""


def ask(module: str, argument: msgspec.Struct, kind: type[T]) -> T:
    """Return what ``python -m bench.MODULE`` prints for ``argument``.

    Raises:
        ClientError: it failed, or did not end in time.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"bench.{module}", msgspec.json.encode(argument).decode()],
            capture_output=True,
            timeout=CLIENT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClientError(f"no answer in {CLIENT_TIMEOUT_S} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ClientError(said[-1] if said else f"exit code {done.returncode}")
    return msgspec.json.decode(done.stdout, type=kind)
