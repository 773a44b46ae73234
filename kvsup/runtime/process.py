"""Spawn one child in a session of its own, read its lines, and end it for certain."""

import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache

import anyio
import psutil
from anyio.abc import ByteReceiveStream, Process

from kvsup.llama import childmode
from kvsup.runtime.files import limit_child
from kvsup.runtime.flood import paced

FAREWELL_S = 2.0
"""How long a farewell may take; llama-server b11434 takes some 20 ms when no connection is open."""

KILL_S = 5.0
"""How long SIGKILL may take; much memory takes a while to be given back."""

QUIET_S = 0.2
"""After as long without output a child's flood is over."""

MAX_LINE_BYTES = 64 << 10
"""Longer lines of a child are cut."""


class Child:
    """One running child process; its owner alone may stop it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid
        self.create_time = _create_time(process.pid)

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._process.returncode

    def stdout_lines(self) -> AsyncIterator[bytes]:
        """Yield the lines of stdout, without their newline; events are never dropped."""
        return _lines(self._process.stdout, childmode.EVENT_MARK)

    def stderr_lines(self) -> AsyncIterator[bytes]:
        """Yield the lines of stderr, without their newline; not all of a flood."""
        return _lines(self._process.stderr, None)

    async def wait(self) -> int:
        """Return the exit code once the child has been reaped."""
        return await self._process.wait()

    async def stop(self, *, farewell: bytes | None, grace_s: float) -> bool:
        """End the child and return whether it had to be killed; a cancel does not end the wait.

        Nothing ends one that sleeps in the kernel: ``returncode`` is still None then.

        Args:
            farewell: a line for its stdin that ends it. Without one, or if it does nothing for
                ``FAREWELL_S``, the child gets one SIGTERM; never a second, on which llama-server
                aborts or hangs. b11434 loses a line that it reads right after it became ready.
            grace_s: seconds before SIGKILL to its whole session.
        """
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(grace_s):
                if farewell is not None:
                    await self._say(farewell)
                    with anyio.move_on_after(FAREWELL_S):
                        await self.wait()
                self._signal(signal.SIGTERM)
                await self.wait()
            was_killed = self.returncode is None
            self.kill()
            with anyio.move_on_after(KILL_S):
                await self.wait()
        return was_killed

    def kill(self) -> None:
        """Send SIGKILL to the child's session: whatever it started ends with it."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:  # macOS: the group holds only zombies
            pass

    async def aclose(self) -> None:
        """Close the pipes of a child that has ended, or that is left behind."""
        with anyio.CancelScope(shield=True):
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                if stream is not None:
                    await stream.aclose()

    async def _say(self, line: bytes) -> None:
        try:
            assert self._process.stdin is not None  # noqa: S101 - spawn asks for a pipe
            await self._process.stdin.send(line)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it is ending already

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            self._process.send_signal(number)


async def spawn(argv: Sequence[str], *, environment: Mapping[str, str]) -> Child:
    """Start ``argv`` with pipes on stdin, stdout and stderr.

    On Linux the child gets SIGKILL when kvsup dies, in a load too; its end of stdin is the second
    net. ``setpriv`` sets that and then becomes ``argv``, so that no Python runs between fork and
    exec. Call it from the main thread: the signal follows the thread that forked.

    Raises:
        OSError: the program cannot be executed.
    """
    if not os.access(argv[0], os.X_OK):
        raise FileNotFoundError(2, "no such program, or it may not be executed", argv[0])
    # A cancel between fork and return would lose the pid; spawning takes a millisecond or two.
    with anyio.CancelScope(shield=True):
        process = await anyio.open_process(
            [*_death_signal_prefix(), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
    limit_child(process.pid)
    return Child(process)


@lru_cache(maxsize=1)
def _death_signal_prefix() -> tuple[str, ...]:
    """Return the words that make a child die with us, where util-linux 2.33 or newer is there."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    known = subprocess.run([setpriv, "--help"], capture_output=True, text=True, check=False)
    return (setpriv, "--pdeathsig", "KILL", "--") if "--pdeathsig" in known.stdout else ()


def _create_time(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, OSError):  # it has ended, or no file can be opened to look
        return 0.0


async def _lines(stream: ByteReceiveStream | None, kept: bytes | None) -> AsyncIterator[bytes]:
    """Yield lines as they come; a line over the bound is cut, the rest of it dropped."""
    if stream is None:
        return
    rest, is_cut = b"", False
    async for n_dropped, part in paced(_received(stream), kept=kept, clock=time.monotonic):
        data = part
        if n_dropped:
            yield b"kvsup: %d lines dropped, they came too fast" % n_dropped
            data = data.partition(b"\n")[2]
            rest, is_cut = b"", False
        *lines, tail = (rest + data).split(b"\n")
        for line in lines:
            if not is_cut:
                yield line[:MAX_LINE_BYTES]
            is_cut = False
        if len(tail) > MAX_LINE_BYTES:
            if not is_cut:
                yield tail[:MAX_LINE_BYTES]
            tail, is_cut = b"", True
        rest = tail
    if rest and not is_cut:
        yield rest


async def _received(stream: ByteReceiveStream) -> AsyncIterator[bytes]:
    """Yield what comes, and once nothing where for a moment nothing comes."""
    is_quiet = False
    with suppress(anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
        while True:
            data = b""
            with anyio.move_on_after(math.inf if is_quiet else QUIET_S):
                data = await stream.receive()
            is_quiet = not data
            yield data
