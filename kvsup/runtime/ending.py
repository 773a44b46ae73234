"""How the end of a process is explained: from its exit code and the end of its log."""

import signal
from collections.abc import Sequence
from dataclasses import replace

from kvsup import events
from kvsup.llama.logscan import LoadFailure, scan
from kvsup.restart import Exit, ExitCause

LOOKED_AT_LINES = 12
_LAST_LINES = 3
_WARMING_UP = "warming up the model"
_TOLD_TWICE = "Received second interrupt"
"""What it says before it exits with 1, told to end once more (server.cpp, b10435, b11434)."""


_SENT_BY_OTHERS = frozenset(
    -number
    for number in (
        signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT
    )
)  # fmt: skip
"""Exit codes of a process that did not bring its signal on itself."""

_SHELLS_OFFSET = 128
"""A shell ends with this and the number of the signal that its child died of; so do container
runtimes. llama-server itself ends with 0 or 1, or of a signal."""


def explained(
    end: Exit, failure: LoadFailure | None, tail: Sequence[str], *, oom_kill: str = ""
) -> Exit:
    """Return ``end`` with the cause that the log and the exit code tell.

    Args:
        end: as seen from outside.
        failure: what its log told of a load that fails.
        tail: the last lines of its log, ``LOOKED_AT_LINES`` of them.
        oom_kill: what tells that the kernel killed it for want of memory; "" where nothing does.
    """
    if end.cause is not ExitCause.ENDED:
        return end
    if (code := end.returncode or 0) - _SHELLS_OFFSET in signal.valid_signals():
        code = _SHELLS_OFFSET - code
        end = replace(end, returncode=code)
    if code == -signal.SIGKILL and oom_kill:
        return replace(end, cause=ExitCause.KERNEL_OOM, detail=oom_kill)
    # A llama-server that served ends with 0 when it is told to.
    is_told_twice = code == 1 and any(_TOLD_TWICE in line for line in tail)
    if code in _SENT_BY_OTHERS or is_told_twice or (code == 0 and end.ready_for_s):
        return replace(end, cause=ExitCause.KILLED)
    if end.ready_for_s:
        failure = _out_of_memory(tail)
    if failure is not None:
        return replace(end, cause=failure.cause, detail=failure.message)
    if code < 0:
        is_warmup = not end.ready_for_s and any(_WARMING_UP in line for line in tail)
        cause = ExitCause.CRASH_IN_WARMUP if is_warmup else ExitCause.CRASHED
        return replace(end, cause=cause, detail="")
    return replace(end, detail=tail[-1] if tail else "")


def died(name: str, end: Exit) -> events.Died:
    """Return the event that the process of a model has ended."""
    return events.Died(name, end.describe(), end.cause.name, end.returncode, end.ready_for_s)


def _out_of_memory(tail: Sequence[str]) -> LoadFailure | None:
    """Return what the last lines of one that served tell of an allocation that failed."""
    for line in tail:
        fact = scan(line)
        if isinstance(fact, LoadFailure) and fact.cause is ExitCause.DOES_NOT_FIT:
            return replace(fact, cause=ExitCause.OUT_OF_MEMORY)
    return None


def with_last_lines(reason: str, failure: LoadFailure | None, tail: Sequence[str]) -> str:
    """Return why it was given up with the end of its log, unless one line is known to say why."""
    if failure is not None:
        return reason
    lines = [line for line in tail[-_LAST_LINES:] if line and line not in reason]
    return f"{reason}; its last lines: {' | '.join(lines)}" if lines else reason
