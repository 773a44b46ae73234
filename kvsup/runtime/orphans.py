"""Leave no llama-server behind: what this kvsup spawned is recorded, leftovers are reaped.

A record is a file beside the socket, ``<socket>.json``, with pid and create time, because pids are
reused, and our own pid and create time, because a living kvsup's children are not orphans. Before
anything is killed the process must also carry our mark: the socket's path on its command line.
One that its kvsup did not live to record has the mark alone.
"""

import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import psutil

logger = logging.getLogger(__name__)

_KILL_S = 5.0
"""How long what was killed may take to be gone."""


class Record(msgspec.Struct, frozen=True):
    """One child that was started."""

    pid: int
    create_time: float
    owner_pid: int
    owner_create_time: float


def record(pid: int, create_time: float, socket: str) -> None:
    """Write down a child; called right after its spawn.

    Without its record, on a full disk, a child lives no longer: it dies with its kvsup by itself,
    and the record is only for systems where that fails.
    """
    try:
        me = psutil.Process()
        entry = Record(pid, create_time, me.pid, me.create_time())
        _path(socket).write_bytes(msgspec.json.encode(entry))
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): if kvsup is killed, pid %d may outlive it",
            _path(socket),
            error.strerror or error,
            pid,
        )


def forget(socket: str) -> None:
    """Remove the record and the socket of a child that has been reaped.

    What cannot be removed, since someone changed the folder, does no harm before the next start.
    """
    _remove(_path(socket))
    _remove(Path(socket))


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", path, error.strerror or error)


def clear_socket(socket: str) -> None:
    """Remove a socket file: llama-server leaves it at every exit and will not bind over it."""
    Path(socket).unlink(missing_ok=True)


def reap(run_dir: Path) -> list[int]:
    """Kill what an earlier kvsup left in ``run_dir``; return the pids of those that are gone."""
    left = []
    for path in run_dir.glob("*.sock.json"):
        socket = str(path)[: -len(".json")]
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            path.unlink(missing_ok=True)
            continue
        if _is(entry.owner_pid, entry.owner_create_time):
            continue
        if _is(entry.pid, entry.create_time) and _is_ours(entry.pid, socket):
            left.append(entry.pid)
        forget(socket)
    return _killed(left)


def reap_unrecorded(run_dir: Path) -> list[int]:
    """Kill what runs for ``run_dir`` and has no record; return the pids of those that are gone.

    An earlier kvsup did not live to record one that was still on its way to its program, which does
    not die with its kvsup either: the death signal is set by then for nobody. Nor does one that a
    wrapper script has started: the signal, and the record that ``reap`` removed, were the script's.
    The mark alone tells them, so only who holds the state of ``run_dir`` may call this, after
    ``reap`` and before it starts anything. Sockets of nobody go.
    """
    left = []
    for process in psutil.process_iter(["cmdline"]):
        socket = _socket_of(process.info["cmdline"] or [], run_dir)
        if socket and not _path(socket).exists():
            left.append(process.pid)
    for path in run_dir.glob("*.sock"):
        if not _path(str(path)).exists():
            clear_socket(str(path))
    return _killed(left)


def _socket_of(words: list[str], run_dir: Path) -> str:
    """Return the socket in ``run_dir`` that a command line tells to listen on, if it does."""
    for flag, value in pairwise(words):
        if flag == "--host" and Path(value).parent == run_dir and value.endswith(".sock"):
            return value
    return ""


def _path(socket: str) -> Path:
    return Path(f"{socket}.json")


def _is(pid: int, create_time: float) -> bool:
    try:
        process = psutil.Process(pid)
        return (
            abs(process.create_time() - create_time) < 0.02
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def _is_ours(pid: int, socket: str) -> bool:
    with suppress(psutil.Error):
        return socket in psutil.Process(pid).cmdline()
    return False


def _killed(pids: Sequence[int]) -> list[int]:
    """Kill processes, each with its group, and return the pids of those that are gone.

    An orphan is init's to reap. What a wrapper script has started leads no group of its own.
    """
    processes = []
    for pid in pids:
        with suppress(psutil.Error):
            processes.append(psutil.Process(pid))
        with suppress(ProcessLookupError, PermissionError):
            if (group := os.getpgid(pid)) != os.getpgrp():
                os.killpg(group, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=_KILL_S)
    alive = {process.pid for process in processes if _is(process.pid, process.create_time())}
    for pid in alive:
        logger.warning("pid %d of an earlier run does not end, and keeps its memory", pid)
    return [pid for pid in pids if pid not in alive]
