"""What is known when a llama-server ends unasked, kept for whoever looks into it.

Never a prompt, an answer, the environment or a key: of requests only their route, counts and
fingerprint; llama-server's log holds neither at the verbosity that kvsup gives it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import psutil

from kvsup import events
from kvsup.history import Record, record_of
from kvsup.runtime import docket
from kvsup.runtime.instance import Instance
from kvsup.runtime.kernel import n_oom_kills

LOG_LINES = 200
"""Of llama-server's log, kept with each end."""


class Memory(msgspec.Struct, frozen=True):
    """The machine's memory just after the end, and what the process had of it."""

    total_bytes: int
    available_bytes: int
    swap_used_bytes: int
    n_oom_kills: int
    """By the kernel, since it booted."""
    model_bytes_by_device: dict[str, int]
    """As the log of its load told."""


class Process(msgspec.Struct, frozen=True):
    """A process that lives but does nothing, before it is ended."""

    status: str
    """As psutil names it: running, sleeping, disk-sleep, stopped …"""
    rss_bytes: int
    cpu_s: float
    n_threads: int
    n_fds: int


class Running(msgspec.Struct, frozen=True):
    """One request that ran on it."""

    route: str
    fingerprint: str
    delivered_tokens: int
    """What its client had of the answer."""


class Verdict(msgspec.Struct, frozen=True):
    """What the watchdog told before it ended the process."""

    event: dict[str, Any]
    """With its probes."""
    process: Process | None
    """How the process was then."""


class Case(msgspec.Struct, frozen=True):
    """Everything that is kept of one end."""

    model: str
    at_s: float
    """Unix time."""
    event: Record
    """What was told of it: cause, exit code, seconds of service."""
    verdict: Verdict | None
    binary: str
    kv_cache_type: str
    num_ctx: int
    num_parallel: int
    pid: int | None
    in_flight: int
    requests: list[Running]
    memory: Memory | None
    """None where it could not be asked for."""
    log: list[str]


class Witness:
    """Looks at an instance when something ends it, and has that kept."""

    def __init__(self, keep: Callable[[str, msgspec.Struct], None]) -> None:
        """Hand what was seen to ``keep``, with the model's name; it does not block."""
        self._keep = keep
        self._verdicts: dict[str, Verdict] = {}

    def note(self, instance: Instance, event: events.Event) -> None:
        """Look at ``instance`` if ``event`` tells of an end, or of a hang."""
        if isinstance(event, events.Hung):
            verdict = Verdict(msgspec.to_builtins(event), _process(instance.snapshot().pid))
            if event.dry_run:
                self._keep(instance.plan.name, _case(instance, event, verdict, running=()))
            else:
                self._verdicts[instance.key] = verdict
        elif isinstance(event, events.Ready):
            self._verdicts.pop(instance.key, None)
        elif isinstance(event, events.Died):
            seen = self._verdicts.pop(instance.key, None)
            running = () if event.returncode is None else instance.docket.struck
            self._keep(instance.plan.name, _case(instance, event, seen, running=running))


def _case(
    instance: Instance,
    event: events.Event,
    verdict: Verdict | None,
    *,
    running: Sequence[docket.Case],
) -> Case:
    at_s = time.time()
    plan, snapshot = instance.plan, instance.snapshot()
    return Case(
        model=plan.name,
        at_s=at_s,
        event=record_of(event, at_s=at_s),
        verdict=verdict,
        binary=plan.binary.label,
        kv_cache_type=str(plan.model.kv_cache_type),
        num_ctx=plan.model.num_ctx,
        num_parallel=plan.model.num_parallel,
        pid=snapshot.pid,
        in_flight=snapshot.leases,
        requests=[Running(case.route, case.fingerprint, case.n_tokens()) for case in running],
        memory=_memory(instance),
        log=instance.logbook.tail(LOG_LINES),
    )


def _memory(instance: Instance) -> Memory | None:
    try:
        ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    except (OSError, RuntimeError):  # no file can be opened; or a container hides it
        return None
    return Memory(
        total_bytes=ram.total,
        available_bytes=ram.available,
        swap_used_bytes=swap.used,
        n_oom_kills=n_oom_kills(),
        model_bytes_by_device=dict(instance.measured.bytes_by_device),
    )


def _process(pid: int | None) -> Process | None:
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return Process(
                status=process.status(),
                rss_bytes=process.memory_info().rss,
                cpu_s=times.user + times.system,
                n_threads=process.num_threads(),
                n_fds=process.num_fds(),
            )
    except (psutil.Error, OSError):
        return None
