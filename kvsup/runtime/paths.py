"""Where kvsup keeps things: what was fetched, what it remembers, and sockets."""

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from kvsup.errors import ConfigError

HOST_FILE = "kvsup.toml"
"""The file with the host's settings; every other TOML file of the folder is a model."""

FETCHED = "kvsup:"
"""Prefix of a path below the folder of fetched models."""


def cache_dir() -> Path:
    """Return the per-user folder for fetched binaries and models."""
    return _base("XDG_CACHE_HOME", ".cache") / "kvsup"


def state_dir(configured: str | None) -> Path:
    """Return the folder for what kvsup remembers, made if missing, mode 0700."""
    path = Path(configured) if configured else _base("XDG_STATE_HOME", ".local/state") / "kvsup"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def run_dir(state: Path) -> Path:
    """Return the folder of the sockets that belong to ``state``: private, and short.

    A UNIX socket's path has 107 bytes at most, so it lies below ``$XDG_RUNTIME_DIR`` or ``/tmp``.

    Raises:
        ConfigError: the folder is someone else's.
    """
    name = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK) and len(runtime) < 48:
        parent = Path(runtime) / "kvsup"
    else:
        parent = Path("/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir())  # noqa: S108 - checked below
        parent = parent / f"kvsup-{os.getuid()}"
    for folder in (parent, parent / name, parent / name / "none"):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise ConfigError(
                f"{folder} belongs to someone else; remove it, or set XDG_RUNTIME_DIR"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            folder.chmod(0o700)
    return parent / name


def config_dir(argument: str | None) -> Path:
    """Return the configuration folder: argument, environment, ``./configs``, user's folder."""
    if argument:
        return Path(argument)
    if configured := os.environ.get("KVSUP_CONFIG_DIR"):
        return Path(configured)
    here = Path("configs")
    return here if here.is_dir() else _base("XDG_CONFIG_HOME", ".config") / "kvsup"


def address_file(state: Path) -> Path:
    """Return the file that holds the address of the kvsup that runs on ``state``."""
    return state / "kvsup.url"


def url_of(host: str, port: int) -> str:
    """Return how a client on this machine reaches an address that is listened on."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a key, no bind
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _base(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default)
