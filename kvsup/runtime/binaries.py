"""Find llama-server binaries, and ask each once what it takes."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kvsup.llama.argv import build_environment
from kvsup.llama.binary import Binary, parse_binary
from kvsup.runtime.filestamps import stamp_or_none
from kvsup.runtime.remembered import Remembered

_TIMEOUT_S = 20.0


def default_binary(cache: Path) -> str | None:
    """Return the llama-server that ``kvsup setup`` fetched, else one on PATH, else None."""
    fetched = current(cache).parent.resolve() / "llama-server"
    return str(fetched) if os.access(fetched, os.X_OK) else shutil.which("llama-server")


def current(cache: Path) -> Path:
    """Return the path of the llama-server in use, by the link that ``kvsup setup`` moves."""
    return cache / "llama-server" / "current" / "llama-server"


def files_of(path: str) -> list[Path]:
    """Return the program at ``path`` and the libraries beside it, which a build replaces with it.

    Raises:
        OSError: there is no such program.
    """
    real = Path(path).resolve(strict=True)
    return [real, *sorted(real.parent.glob("lib*.so*"))]


def probe(path: str, *, state: Path, inherited: Mapping[str, str]) -> Binary:
    """Return what the binary at ``path`` is and takes.

    Asked by ``--help``, ``--version`` and ``--list-devices``; remembered below ``state`` until the
    file changes. It runs in an environment as its serving process has it, made of ``inherited``.

    Raises:
        ValueError: there is no such program, or it is no llama-server; the message says the mend.
    """
    if not os.access(path, os.X_OK) or not Path(path).is_file():
        raise ValueError(f"no such program: {path}; run kvsup setup, or set llama_server")
    try:
        store, key = Remembered(state), _identity(path)
    except OSError as error:  # moved away just now
        raise ValueError(f"{path} cannot be looked at: {error}; run kvsup setup") from error
    known = store.read("binaries", key, Binary)
    if known is not None:
        return msgspec.structs.replace(known, stamp=key)
    environment = build_environment(inherited, {}, config_home="/nonexistent")
    binary = parse_binary(
        path,
        help_text=_output(path, "--help", environment),
        version_text=_output(path, "--version", environment),
        devices_text=_output(path, "--list-devices", environment),
    )
    store.write("binaries", key, binary)
    return msgspec.structs.replace(binary, stamp=key)


def help_of(path: str, *, inherited: Mapping[str, str]) -> str:
    """Return what the binary at ``path`` prints for ``--help``.

    Raises:
        ValueError: it cannot be run, or fails.
    """
    return _output(path, "--help", build_environment(inherited, {}, config_home="/nonexistent"))


def _identity(path: str) -> str:
    """Return a name that changes when the program, or a library beside it, changes."""
    facts = [path, *(f"{file} {stamp_or_none(file)}" for file in files_of(path))]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _output(path: str, flag: str, environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            [path, flag],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{path} {flag} cannot be run: {error}; run kvsup setup") from error
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    if done.returncode != 0:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
        raise ValueError(
            f"{path} {flag} failed with exit code {done.returncode}: {last}; run kvsup setup"
        )
    return text
