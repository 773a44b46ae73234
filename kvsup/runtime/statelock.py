"""Who owns a state folder: one kvsup, or one command that writes there while none runs."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvsup.errors import KvsupError
from kvsup.runtime import paths

logger = logging.getLogger("kvsup")


@contextmanager
def held(state: Path) -> Iterator[None]:
    """Hold the state folder: two supervisors on one would reap each other's children.

    Raises:
        KvsupError: another process holds it, or it cannot be used.
    """
    try:
        file = (state / "kvsup.lock").open("a+b", buffering=0)
    except OSError as error:
        raise KvsupError(f"state_dir {state} cannot be used: {error}; name another") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().decode().strip() or "unknown"
            raise KvsupError(
                f"another kvsup (pid {owner}) uses {state}; stop it, or set state_dir in kvsup.toml"
            ) from error
        with suppress(OSError):  # on a full disk it holds all the same, without a name
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        if not paths.make_private(state):
            logger.warning("others may look into state_dir %s; chmod it to 700", state)
        yield
