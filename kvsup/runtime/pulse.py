"""Looks at one llama-server from time to time and says when it hangs.

A look reads ``/proc`` by psutil and takes 0.1 ms. ``/health`` is asked, on a connection of its own,
only while nothing is awaited or nothing moves; ``/slots`` and ``/metrics`` never: asking them hides
clients that left from llama-server, and wakes one that sleeps.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import psutil

from kvsup import events
from kvsup.config import WatchdogConfig
from kvsup.errors import NotListening, UpstreamError
from kvsup.llama.health import Health, parse_health
from kvsup.plan import Plan
from kvsup.runtime.process import Child
from kvsup.runtime.upstream import Upstream
from kvsup.runtime.watch import Watch
from kvsup.watchdog import Answer, Limits, Probe, Silence, Standing, Verdict, listen, verdict

IDLE_INTERVALS = 10
"""While nothing is awaited, only each tenth look is taken."""

HEALTH_TIMEOUT_S = 2.0

_KEPT_PROBES = 30
"""The last looks, told with a verdict."""

_LETTERS = {
    psutil.STATUS_RUNNING: "R",
    psutil.STATUS_DISK_SLEEP: "D",
    psutil.STATUS_STOPPED: "T",
    psutil.STATUS_TRACING_STOP: "t",
    psutil.STATUS_ZOMBIE: "Z",
    psutil.STATUS_DEAD: "X",
}
_WORST_FIRST = "tTDRS"


class Pulse:
    """The probes of one process, and what they come to."""

    def __init__(
        self,
        plan: Plan,
        child: Child,
        upstream: Upstream,
        watch: Watch,
        *,
        emit: Callable[[events.Event], None],
        notify: Callable[[], None],
    ) -> None:
        """Look at ``child``.

        Args:
            plan: what it runs; its ``[watchdog]`` and ``batch_size`` say how long it may be silent.
            child: the process.
            upstream: the answers that are awaited of it.
            watch: the lines of its log, and whether it has loaded.
            emit: takes what is found.
            notify: called when its owner should look at ``verdict``.
        """
        self.verdict: Verdict | None = None
        """Set once it is to be ended."""
        self.config: Callable[[], WatchdogConfig] = lambda: plan.model.watchdog
        """Tells how to look at it; an edit of that keeps the process."""
        self._model = plan.model
        self._pid = child.pid
        self._upstream = upstream
        self._health = Upstream(plan.socket)
        self._watch = watch
        self._emit = emit
        self._notify = notify
        self._load: Silence | None = None
        self._silence: Silence | None = None
        self._probes: deque[Probe] = deque(maxlen=_KEPT_PROBES)
        self._has_told = False
        self._scope = anyio.CancelScope()

    @property
    def is_stopped(self) -> bool:
        """Say whether it was stopped by a signal when last looked at."""
        return bool(self._probes) and self._probes[-1].state == "T"

    @property
    def _limits(self) -> Limits:
        measured = self._watch.measured
        return Limits.of(
            self.config(),
            batch_tokens=self._model.batch_size or self._model.num_ctx,
            is_offloaded=bool(measured.offload_devices),
            prompt_tokens_per_s=measured.speeds[-1].prompt_tokens_per_s if measured.speeds else 0.0,
        )

    def close(self) -> None:
        """Look no more: it is being ended."""
        self._scope.cancel()

    async def run(self) -> None:
        """Look until it is to be ended, or ``close``."""
        n_skipped = 0
        with self._scope:
            while self.verdict is None:
                config = self.config()
                due_s = time.monotonic() + config.interval_s
                await anyio.sleep(config.interval_s)
                n_skipped += 1
                if not config.enabled:
                    self._load = self._silence = None
                    continue
                if self._upstream.is_awaited or self._is_watchful or n_skipped >= IDLE_INTERVALS:
                    n_skipped = 0
                    await self._look(late_s=time.monotonic() - due_s)

    @property
    def _is_watchful(self) -> bool:
        """Say whether it loads, or the last look was no good one."""
        if not self._watch.is_ready or self._silence is None:
            return True
        return verdict(self._limits, self._silence).standing is not Standing.ALIVE

    async def _look(self, *, late_s: float) -> None:
        try:
            probe = replace(self._probe(), late_s=late_s)
        except psutil.Error:
            return  # it has ended; its exit is seen elsewhere
        except OSError:  # no file is left to look with
            self._load = self._silence = None
            return
        if not self._watch.is_ready:
            self._look_at_load(probe)
            return
        silence = listen(self._silence, probe)
        if not probe.awaited_s or silence.still_s:
            probe = replace(probe, health=await self._ask_health())
            silence = listen(self._silence, probe)
        self._silence = silence
        self._probes.append(probe)
        self._judge(verdict(self._limits, silence))

    def _look_at_load(self, probe: Probe) -> None:
        """Let a load that reads from a disk or computes count as one that goes on.

        Reading counts without end, computing for ``busy_stall``: drivers compile for minutes
        without a line.
        """
        self._probes.append(probe)
        past = self._load
        self._load = listen(past, replace(probe, awaited_s=math.inf, n_reads=probe.read_bytes))
        is_going_on = self._load.still_s == 0 and probe.state != "T"
        if past and is_going_on and self._load.mute_s < self._limits.busy_stall_s:
            self._watch.progress_s = probe.at_s

    def _judge(self, found: Verdict) -> None:
        if not found.is_final:
            self._has_told = False
            return
        is_dry_run = self.config().dry_run
        if not self._has_told:
            self._has_told = True
            probes = tuple(probe.describe() for probe in self._probes)
            self._emit(events.Hung(self._model.name, found.reason, is_dry_run, probes))
        if not is_dry_run:
            self.verdict = found
            self._notify()

    def _probe(self) -> Probe:
        """Look at the process.

        Raises:
            psutil.Error: it is gone.
            OSError: this process has no file left.
        """
        cpu_s, read_bytes, states = 0.0, 0, set()
        for process in _tree(self._pid):
            with process.oneshot():
                times = process.cpu_times()
                cpu_s += times.user + times.system
                states.add(_LETTERS.get(process.status(), "S"))
                with suppress(psutil.AccessDenied, AttributeError):  # macOS does not tell
                    read_bytes += process.io_counters().read_bytes
        now_s = time.monotonic()
        return Probe(
            at_s=now_s,
            n_reads=self._upstream.n_reads,
            n_lines=self._watch.n_lines,
            cpu_s=cpu_s,
            read_bytes=read_bytes,
            state=next((letter for letter in _WORST_FIRST if letter in states), "Z"),
            awaited_s=self._upstream.awaited_s(now_s),
            slept_s=_slept_s(now_s),
        )

    async def _ask_health(self) -> Answer:
        with anyio.move_on_after(HEALTH_TIMEOUT_S):
            try:
                status, _ = await self._health.fetch("GET", "/health")
            except NotListening:
                return Answer.REFUSED
            except UpstreamError as error:
                return Answer.NOT_ASKED if isinstance(error.__cause__, OSError) else Answer.ERROR
            return Answer.OK if parse_health(status) is Health.READY else Answer.ERROR
        return Answer.TIMED_OUT


def _tree(pid: int) -> Iterator[psutil.Process]:
    """Yield the process and all below it: ``llama_server`` may be a script that starts one.

    Raises:
        psutil.Error: the process itself is gone.
    """
    yield psutil.Process(pid)
    below = _children(pid)
    while below:
        with suppress(psutil.Error):
            child = psutil.Process(below.pop())
            yield child
            below += _children(child.pid)


def _children(pid: int) -> list[int]:
    """Return the children of a process that its first thread has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # no Linux: there psutil asks the kernel once for all processes
        return [] if psutil.LINUX else [child.pid for child in psutil.Process(pid).children()]


def _slept_s(now_s: float) -> float:
    """Return how long the machine has been suspended; only Linux has a clock that tells."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.clock_gettime(clock) - now_s
