"""One llama-server process of an instance: spawned, watched, talked to and reaped."""

import errno
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from kvsup import events
from kvsup.errors import ConfigError, UpstreamError
from kvsup.llama.childmode import EXIT_LINE
from kvsup.plan import Plan
from kvsup.restart import Exit, ExitCause
from kvsup.runtime import kernel, orphans
from kvsup.runtime.ending import LOOKED_AT_LINES, explained
from kvsup.runtime.keepable import why_not_there
from kvsup.runtime.kvwarnings import Findings
from kvsup.runtime.logbook import Logbook
from kvsup.runtime.paths import make_run_dir, make_slot_dir
from kvsup.runtime.process import KILL_S, Child, spawn
from kvsup.runtime.pulse import Pulse
from kvsup.runtime.upstream import Upstream
from kvsup.runtime.warming import Store, Warmth
from kvsup.runtime.watch import Watch
from kvsup.watchdog import LATE_S, Standing

logger = logging.getLogger(__name__)

_LAST_LINES_S = 1.0
"""How long a dead child's pipes are read on: something it started may hold them open."""

_DEAF_S = 2.0
"""How long a llama-server that takes no connection is left alone: it was told to end."""

_HUNG_GRACE_S = 1.0
"""How long one that hangs may take to end politely; it seldom can."""

_UNTOLD = -1
"""What uvloop says where no descriptor is left for the pipe that would tell why."""

_BUSY = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT,
        errno.EIO, _UNTOLD,
    }
)  # fmt: skip
"""What a start meets where the host, and not the program, is at fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a process is to be ended that nobody asked to end."""

    cause: ExitCause
    detail: str = ""
    hears: bool = False
    """A polite word may end it; one that is stopped hears no signal but SIGKILL."""


class Tenure:
    """A process and what there is of it; ``begin`` makes one, ``run`` sees it to its end."""

    def __init__(
        self,
        plan: Plan,
        child: Child,
        *,
        logbook: Logbook,
        emit: Callable[[events.Event], None],
        notify: Callable[[], None],
        on_overdue: Callable[[], None],
        store: Store | None,
    ) -> None:
        self.child = child
        self.upstream = Upstream(plan.socket)
        self.watch = Watch(
            child, socket=plan.socket, name=plan.name, logbook=logbook, notify=notify
        )
        self.measured = self.watch.measured
        if store is not None:
            self.measured.tally = store.tallies.of(plan.name)
        self.findings = Findings(plan, self.measured, emit=emit)
        self.pulse = Pulse(plan, child, self.upstream, self.watch, emit=emit, notify=notify)
        self.warmth = (
            Warmth(plan, self.upstream, self.measured, store=store, emit=emit) if store else None
        )
        """What keeps its conversations; None where nothing does."""
        self._deaf_until_s = math.inf
        self._is_overdue = False
        self._plan = plan
        self._logbook = logbook
        self._emit = emit
        self._notify = notify
        self._on_overdue = on_overdue
        self._n_facts_taken = 0
        self._oom = kernel.OomWatch(child.pid)

    @classmethod
    async def begin(
        cls,
        plan: Plan,
        *,
        has_run: bool,
        logbook: Logbook,
        emit: Callable[[events.Event], None],
        notify: Callable[[], None],
        on_overdue: Callable[[], None],
        store: Store | None = None,
    ) -> "Tenure | Exit":
        """Spawn the llama-server of ``plan``; return how that ended if none came up.

        Args:
            plan: what to run.
            has_run: one was started before, so what bars this one may pass, as an upgrade does.
            logbook: takes its lines.
            emit: takes what happens.
            notify: called when its owner should look.
            on_overdue: called when it turns out that it cannot be killed.
            store: where its conversations are kept.
        """
        try:
            make_run_dir(Path(plan.socket).parent)  # a cleaner of /tmp may have been there
            orphans.clear_socket(plan.socket)
            plan = _with_slot_dir(plan)
            child = await spawn(plan.argv, environment=plan.environment)
        except (OSError, ConfigError) as error:
            cause = _why_not_started(error, has_run=has_run)
            return Exit(cause, None, time.monotonic(), 0.0, str(error))
        emit(_spawned(plan, child))
        return cls(
            plan,
            child,
            logbook=logbook,
            emit=emit,
            notify=notify,
            on_overdue=on_overdue,
            store=store,
        )

    async def run(
        self, hold: Callable[[], Awaitable[Exit]], *, go_down: Callable[[], float]
    ) -> Exit:
        """Read what it tells while ``hold`` lasts; then reap it and return how it ended.

        Args:
            hold: sees it through; returns how it ended.
            go_down: called where a bug in kvsup ends it: hands it out no more, and returns for how
                many seconds it had been ready.
        """
        try:
            orphans.record(self.child.pid, self.child.create_time, self._plan.socket)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.watch.run)
                tasks.start_soon(self._sample)
                tasks.start_soon(self.pulse.run)
                if self.warmth is not None:
                    tasks.start_soon(self.warmth.run)
                end = await hold()
                with anyio.move_on_after(_LAST_LINES_S):
                    await self.watch.is_drained.wait()
                tasks.cancel_scope.cancel()
        except Exception as error:  # the crash barrier: it is restarted as after any other death
            logger.exception("%s: a bug in kvsup", self._plan.name)
            fault = Fault(ExitCause.BUG, repr(_innermost(error)))
            end = await self.end_for(fault, ready_for_s=go_down())
        finally:
            self.child.kill()
            await self.child.aclose()
            if self.child.returncode is not None:
                orphans.forget(self._plan.socket)
            oom_kill = self._oom.evidence()
            self._oom.close()
        tail = self._logbook.tail(LOOKED_AT_LINES)
        return explained(end, self.measured.failure, tail, oom_kill=oom_kill)

    def has_news_of_its_load(self) -> bool:
        """Say whether the log has told more of the load since the last call."""
        n_facts, self._n_facts_taken = self._n_facts_taken, self.measured.n_load_facts
        return self._n_facts_taken != n_facts

    def fault(self, *, patience_s: float) -> "Fault | None":
        """Return why it is to be ended now; None while it may go on.

        Args:
            patience_s: how long its load may tell nothing; infinity once it has loaded.
        """
        if found := self.pulse.verdict:
            if found.standing is Standing.FROZEN:
                return Fault(ExitCause.FROZEN, found.reason)
            cause = ExitCause.KILLED if found.is_from_outside else ExitCause.HUNG
            return Fault(cause, found.reason, hears=True)
        if time.monotonic() >= self._deaf_until_s:
            return Fault(ExitCause.KILLED)
        return self._fault_of_load(patience_s)

    def next_fault_s(self, *, patience_s: float) -> float:
        """Return when ``fault`` is to be asked again though nothing has happened."""
        return min(self._deaf_until_s, self.watch.progress_s + patience_s)

    def _fault_of_load(self, patience_s: float) -> "Fault | None":
        """Return why its load is to be ended.

        If it is late that this is asked, kvsup itself stood still, by Ctrl-Z or a frozen container:
        what the load has told meanwhile is not read yet, so its time begins anew.
        """
        late_s = time.monotonic() - (self.watch.progress_s + patience_s)
        if late_s < 0:
            return None
        if late_s > LATE_S:
            self.watch.progress_s = time.monotonic()
            return None
        return Fault(ExitCause.FROZEN if self.pulse.is_stopped else ExitCause.STALLED)

    def ended(self, code: int, *, ready_for_s: float) -> Exit:
        """Return its end, seen just now; close what is open to it and kill what it has left."""
        self.upstream.close_all()
        self.child.kill()  # what it started may hold its pipes open
        return Exit(ExitCause.ENDED, code, time.monotonic(), ready_for_s)

    async def end_for(self, fault: "Fault", *, ready_for_s: float) -> Exit:
        """End it, and return that as its end.

        Its connections stay open until it is dead, so that no request sees them break before.
        """
        self.pulse.close()
        if fault.hears:
            farewell = EXIT_LINE if self.watch.speaks_child_mode else None
            await self.child.stop(farewell=farewell, grace_s=_HUNG_GRACE_S)
        code = await self._killed()
        self.upstream.close_all()
        return Exit(fault.cause, code, time.monotonic(), ready_for_s, fault.detail)

    async def keep(self, *, limit_s: float, is_waited_for: bool) -> None:
        """Save what it holds of conversations, as far as that is worth a wait."""
        if self.warmth is not None:
            with suppress(UpstreamError):
                await self.warmth.save(limit_s=limit_s, is_waited_for=is_waited_for)

    async def stop(self, *, was_ready: bool, grace_s: float) -> bool:
        """End it politely; return whether it had to be killed, ``grace_s`` later."""
        self.pulse.close()
        self.upstream.close_all()
        speaks = was_ready and self.watch.speaks_child_mode
        farewell = EXIT_LINE if speaks else None
        was_killed = await self.child.stop(farewell=farewell, grace_s=grace_s)
        await self._killed()
        return was_killed

    @property
    def is_unkillable(self) -> bool:
        """Say whether it has not ended though SIGKILL was sent to it long ago."""
        return self._is_overdue and self.child.returncode is None

    async def _killed(self) -> int:
        """Kill it and return its exit code once it is reaped: its memory is not free before.

        One that a driver or a disk holds in the kernel may never be: its requests are let go.
        """
        self.child.kill()
        with anyio.move_on_after(KILL_S):
            return await self.child.wait()
        self._is_overdue = True
        self.upstream.close_all()
        self._emit(events.Unkillable(self._plan.name, self.child.pid))
        self._on_overdue()
        return await self.child.wait()

    def is_deaf(self) -> None:
        """Take note that it took no connection."""
        if self._deaf_until_s == math.inf:
            self._deaf_until_s = time.monotonic() + _DEAF_S
            self._notify()

    async def _sample(self) -> None:
        while True:
            await anyio.sleep(kernel.SAMPLE_S)
            self._oom.sample()


def _innermost(error: Exception) -> Exception:
    """Return what a task group's error is about; by its attribute, as Python 3.10 has no name."""
    while errors := getattr(error, "exceptions", ()):
        error = errors[0]
    return error


def _why_not_started(error: OSError | ConfigError, *, has_run: bool) -> ExitCause:
    beneath = error.__cause__ if isinstance(error, ConfigError) else error
    if isinstance(beneath, OSError) and beneath.errno in _BUSY:
        return ExitCause.BUSY_HOST
    return ExitCause.CANNOT_START_AGAIN if has_run else ExitCause.CANNOT_START


def _with_slot_dir(plan: Plan) -> Plan:
    """Return a plan whose folder for slots is there; one without where it cannot be made."""
    if plan.slot_dir is None:
        return plan
    if not (why := why_not_there(plan)):
        try:
            make_slot_dir(Path(plan.slot_dir))
        except OSError as error:
            why = str(error)
        else:
            return plan
    logger.warning("%s: no conversation is kept: %s", plan.name, why)
    return replace(plan, kv_dir=None)


def _spawned(plan: Plan, child: Child) -> events.Spawned:
    return events.Spawned(
        model=plan.name,
        pid=child.pid,
        binary=plan.binary.label,
        kv_cache_type=str(plan.model.kv_cache_type),
        num_ctx=plan.model.num_ctx,
        num_parallel=plan.model.num_parallel,
    )
