"""Where kvsup keeps things: what was fetched, what it remembers, and sockets."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvsup.errors import ConfigError
from kvsup.llama.argv import EMPTY_CONFIG_DIR
from kvsup.runtime.privatefiles import make_folder

HOST_FILE = "kvsup.toml"
"""The file with the host's settings; every other TOML file of the folder is a model."""

LLAMA_CONFIG = Path("/etc/llama.cpp/config.ini")
"""Every llama-server reads it and no flag skips it (b11434); the command line wins over it."""

_OWN = frozenset(
    {
        "binaries", "binary_facts", "deleted", "evidence", "history", "kv", "kv_types", "kv_use",
        "kvsup.lock", "kvsup.url", "probes", "sizes", "sums", "templates", "tuned",
    }
)  # fmt: skip
"""What kvsup writes into its state folder."""

_MAX_RUNTIME_BYTES = 48

FETCHED = "kvsup:"
"""Prefix of a path below the folder of fetched models."""


def cache_dir() -> Path:
    """Return the per-user folder for fetched binaries and models."""
    return _base("XDG_CACHE_HOME", ".cache") / "kvsup"


def state_dir(configured: str | None) -> Path:
    """Return the folder for what kvsup remembers, made if missing, mode 0700.

    Raises:
        ConfigError: it cannot be made.
    """
    path = Path(configured) if configured else _base("XDG_STATE_HOME", ".local/state") / "kvsup"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"state_dir {path} cannot be made: {error}; name another") from error
    return path


def models_dir(configured: str | None) -> Path:
    """Return the folder of kvsup's own store of models; it is made once there are any."""
    return (
        Path(configured) if configured else _base("XDG_DATA_HOME", ".local/share") / "kvsup/models"
    )


def make_private(state: Path) -> bool:
    """Close a state folder to other users and return whether it is closed.

    One that was there before, open to others, stays as it is if it holds anything of someone else:
    ``state_dir = "/var/lib"`` must not take that folder away from every other program.
    """
    status = state.stat()
    if not status.st_mode & 0o077:
        return True
    if status.st_uid != os.getuid() or any(path.name not in _OWN for path in state.iterdir()):
        return False
    state.chmod(0o700)
    return True


def run_dir(state: Path) -> Path:
    """Return the folder of the sockets that belong to ``state``; ``made`` makes it.

    A UNIX socket's path has 107 bytes at most, so it lies below ``$XDG_RUNTIME_DIR`` or ``/tmp``.
    """
    name = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK) and len(runtime) < _MAX_RUNTIME_BYTES:
        return Path(runtime) / "kvsup" / name
    return Path("/tmp") / f"kvsup-{os.getuid()}" / name  # noqa: S108 - made checks it


def kv_dir(state: Path) -> Path:
    """Return the folder of saved slots; it is made once there are any."""
    return state / "kv"


def make_slot_dir(folder: Path) -> None:
    """Make the folder of a model's saved slots, closed to other users.

    Raises:
        OSError: it cannot be made.
    """
    folder.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_folder(folder.parent)
    make_folder(folder)


def make_run_dir(run: Path) -> None:
    """Make a ``run_dir``, private to this user; what is there already is kept.

    Raises:
        ConfigError: something of that name is someone else's, or no folder.
    """
    for folder in (run.parent, run, run / EMPTY_CONFIG_DIR):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made: {error}; set XDG_RUNTIME_DIR") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise ConfigError(f"{folder} is someone else's; remove it, or set XDG_RUNTIME_DIR")
        if stat.S_IMODE(status.st_mode) & 0o077:
            folder.chmod(0o700)


@contextmanager
def made(run: Path) -> Iterator[None]:
    """Hold a ``run_dir`` made, and remove it in the end if nothing is left in it.

    Raises:
        ConfigError: as ``make_run_dir``.
    """
    make_run_dir(run)
    try:
        yield
    finally:
        for folder in (run / EMPTY_CONFIG_DIR, run):
            with suppress(OSError):  # something is left in it
                folder.rmdir()


def config_dir(argument: str | None) -> Path:
    """Return the configuration folder: argument, environment, ``./configs``, user's folder.

    The last is made if missing: a first model may be pulled, and no file was needed for it.
    """
    if argument:
        return Path(argument)
    if configured := os.environ.get("KVSUP_CONFIG_DIR"):
        return Path(configured)
    here = Path("configs")
    if here.is_dir():
        return here
    own = _base("XDG_CONFIG_HOME", ".config") / "kvsup"
    with suppress(OSError):  # who reads it tells that it is not there
        own.mkdir(parents=True, exist_ok=True)
    return own


def address_file(state: Path) -> Path:
    """Return the file that holds the address of the kvsup that runs on ``state``."""
    return state / "kvsup.url"


def url_of(host: str, port: int) -> str:
    """Return how a client on this machine reaches an address that is listened on."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a key, no bind
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _base(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default)
