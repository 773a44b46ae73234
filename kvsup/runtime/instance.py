"""One llama-server process and the task that owns it.

``run`` is the only writer of the state. Others ask (``ready``, ``stop``) and read
(``state``, ``measured``, ``snapshot``); ``leases``, ``busy_slots``, ``last_used_s`` and
``keep_alive_s`` belong to the fleet.
"""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from kvsup import events
from kvsup.errors import ConfigError, InstanceError, InstanceFailed
from kvsup.kvchoice import Machine
from kvsup.lifecycle import ALIVE, Lifecycle, State
from kvsup.llama.childmode import EXIT_LINE
from kvsup.measures import SizesMeasured
from kvsup.plan import ALLOWANCE_BYTES, Plan
from kvsup.residency import RAM
from kvsup.restart import Exit, ExitCause, GiveUp, Retry, decide, draw_jitter
from kvsup.runtime import orphans
from kvsup.runtime.ending import LOOKED_AT_LINES, explained, with_last_lines
from kvsup.runtime.kvwarnings import Findings
from kvsup.runtime.learning import sizes_of
from kvsup.runtime.logbook import Logbook
from kvsup.runtime.measured import Measured
from kvsup.runtime.paths import make_run_dir
from kvsup.runtime.process import Child, spawn
from kvsup.runtime.snapshot import Snapshot
from kvsup.runtime.upstream import Upstream
from kvsup.runtime.watch import Watch

logger = logging.getLogger(__name__)

_LAST_LINES_S = 1.0
"""How long a dead child's pipes are read on: something it started may hold them open."""


class Instance:
    """A plan, and the process that serves it while someone wants it."""

    def __init__(
        self,
        plan: Plan,
        *,
        emit: Callable[[events.Event], None],
        on_change: Callable[[], None],
        on_ready: "Callable[[Instance], None]" = lambda _: None,
        is_trial: bool = False,
        remembered: SizesMeasured | None = None,
    ) -> None:
        """Own what ``plan`` says.

        Args:
            plan: what to run.
            emit: takes what happens.
            on_change: called with every change of state.
            on_ready: called once it serves, and again if its log tells more of the load later.
            is_trial: it is given up if it dies before it ever served.
            remembered: what an earlier load of the same plan took.
        """
        self.plan = plan
        self.remembered = remembered
        self._is_trial = is_trial
        self.leases = 0
        self.busy_slots = 0
        self.last_used_s = 0.0
        self.keep_alive_s = plan.model.keep_alive_s
        self.is_retired = False
        self.failure: str | None = None
        self.measured = Measured()
        self.logbook = Logbook()
        self._findings = Findings(plan, self.measured, emit=emit)
        self._n_facts_taken = 0
        self._emit = emit
        self._on_change = on_change
        self._on_ready = on_ready
        self._life = Lifecycle(since_s=time.monotonic())
        self._deaths: list[Exit] = []
        self._child: Child | None = None
        self._upstream: Upstream | None = None
        self._stop_why: str | None = None
        self._drain_until_s = math.inf
        self._news = anyio.Event()

    # What everyone may ask.

    @property
    def key(self) -> str:
        """Return what tells this instance from one of the same name with another plan."""
        return self.plan.key

    @property
    def state(self) -> State:
        """Return the current state."""
        return self._life.state

    @property
    def is_leaving(self) -> bool:
        """Say whether it has been asked to stop."""
        return self._stop_why is not None

    @property
    def failure_error(self) -> InstanceFailed | None:
        """What a client is told while it has given up, in Ollama's words; None otherwise."""
        if self.failure is None:
            return None
        return InstanceFailed(f"llama-server process has terminated: {self.failure}")

    @property
    def size_by_device(self) -> dict[str, int]:
        """Return the bytes it takes of RAM and of each device: as in its last load, or planned."""
        known = self.remembered
        if known is None or known.num_ctx != self.plan.model.num_ctx:
            return self.plan.sizes
        sizes = known.bytes_by_device
        return {**sizes, RAM: sizes.get(RAM, 0) + ALLOWANCE_BYTES}

    @property
    def size_bytes(self) -> int:
        """Return its buffers in all memories, as in its last load; before it, what is set aside."""
        known = self.remembered
        if known is None or known.num_ctx != self.plan.model.num_ctx:
            return self.plan.size_bytes
        return sum(known.bytes_by_device.values())

    @property
    def kv_bytes(self) -> tuple[int, int] | None:
        """Bytes of K and of V as the log told; None until then."""
        return self._findings.kv_bytes

    @property
    def since_s(self) -> float:
        """Return when it came into its state."""
        return self._life.since_s

    @property
    def serving_since_s(self) -> float:
        """When it became ready; infinity while it is not."""
        return self._life.since_s if self.state is State.READY else math.inf

    @property
    def private_bytes(self) -> int:
        """The part of RAM that the operating system does not count as available: no mapped file."""
        in_ram = self.measured.bytes_by_device.get(RAM, 0) - self.measured.mapped_bytes
        return max(0, in_ram) if self._upstream else 0

    @property
    def idle_until_s(self) -> float:
        """Return when its keep_alive runs out; a load never counts as idle."""
        if self.state not in {State.READY, State.BACKOFF}:
            return math.inf
        return max(self.last_used_s, self._life.since_s) + self.keep_alive_s

    def snapshot(self) -> Snapshot:
        """Return what listings show."""
        return Snapshot(
            name=self.plan.name,
            state=self.state,
            since_s=self._life.since_s,
            leases=self.leases,
            busy_slots=self.busy_slots,
            pid=self._child.pid if self._child and self.state in ALIVE else None,
            n_deaths=len(self._deaths),
            failure=self.failure,
            size_bytes=self.size_bytes,
            vram_bytes=self.measured.vram_bytes,
            kv_bytes=self.kv_bytes,
            kv_warnings=self._findings.sentences if self._upstream else (),
            idle_until_s=self.idle_until_s,
        )

    async def ready(self, *, after: Upstream | None = None) -> Upstream:
        """Return the upstream once it serves; wait through a load, a crash and its backoff.

        Args:
            after: an upstream that broke; wait until that process is seen to be gone, at most 1 s.

        Raises:
            InstanceFailed: it has given up; the message says why.
            InstanceError: it was stopped while this waited.
        """
        if after is not None:
            with anyio.move_on_after(1.0):
                while self._upstream is after:
                    await self._news.wait()
        while True:
            if self._upstream is not None:
                return self._upstream
            if error := self.failure_error:
                raise error
            if self.is_leaving and self.state in {State.STOPPING, State.STOPPED}:
                raise InstanceError(f"{self.plan.name} was stopped: {self._stop_why}")
            await self._news.wait()

    def prepare(self) -> None:
        """Take back an earlier ``stop``; called in the same step that grants a lease and starts."""
        self._stop_why, self._drain_until_s = None, math.inf

    def stop(self, why: str, *, drain_s: float = math.inf) -> None:
        """Ask it to stop once its leases are gone, at the latest in ``drain_s`` seconds."""
        if self._stop_why is None:
            self._stop_why = why
        self._drain_until_s = min(self._drain_until_s, time.monotonic() + drain_s)
        self.notify()

    def take_up(self, machine: Machine) -> None:
        """Take up what is known now of running it here."""
        self.plan = self._findings.plan = self.plan.on(machine)
        self.notify()

    def reset(self) -> None:
        """Forget a failure and the deaths before it, so that the next request starts it again."""
        self._deaths.clear()
        if self.state is State.FAILED:
            self.failure = None
            self._enter(State.STOPPED)

    def notify(self) -> None:
        """Wake the owner and every waiter, to look at what has changed."""
        news, self._news = self._news, anyio.Event()
        news.set()

    # What the owner does.

    async def run(self) -> None:
        """Own the process from its start until it has been stopped as asked or has failed."""
        try:
            await self._run()
        except Exception as error:  # the crash barrier: one instance's bug must not end the others
            logger.exception("%s: a bug in kvsup", self.plan.name)
            self.failure = f"internal error: {error!r}"
            self._life = Lifecycle(State.FAILED, time.monotonic())
            self.notify()

    async def _run(self) -> None:
        while True:
            end = await self._run_process()
            if end.cause is ExitCause.ASKED:
                self._enter(State.STOPPED)
                return
            self._deaths.append(end)
            self._emit(events.Died(self.plan.name, end.describe()))
            now_s = time.monotonic()
            verdict: Retry | GiveUp = GiveUp(end.describe())
            if not self._is_trial:
                policy = self.plan.model.restart
                verdict = decide(policy, self._deaths, now_s=now_s, jitter=draw_jitter())
            if isinstance(verdict, GiveUp):
                self.failure = with_last_lines(
                    verdict.reason, self.measured.failure, self.logbook.tail(LOOKED_AT_LINES)
                )
                self._enter(State.FAILED)
                self._emit(events.GaveUp(self.plan.name, self.failure))
                return
            self._enter(State.BACKOFF)
            self._emit(events.Restarting(self.plan.name, verdict.at_s - now_s))
            if not await self._wait_for_turn(verdict.at_s):
                self._enter(State.STOPPED)
                return

    async def _wait_for_turn(self, at_s: float) -> bool:
        """Wait until ``at_s``; return False if it is asked to stop before, with no one waiting."""
        while not self._may_stop() and (now_s := time.monotonic()) < at_s:
            with anyio.move_on_after(min(at_s, self._drain_until_s) - now_s):
                await self._news.wait()
        return not self._may_stop()

    def _may_stop(self) -> bool:
        if self._stop_why is None:
            return False
        return self.leases == 0 or time.monotonic() >= self._drain_until_s

    async def _run_process(self) -> Exit:
        """Spawn, hold, and reap one process; return how it ended."""
        self._enter(State.STARTING)
        try:
            make_run_dir(Path(self.plan.socket).parent)  # a cleaner of /tmp may have been there
            orphans.clear_socket(self.plan.socket)
            self._child = child = await spawn(self.plan.argv, environment=self.plan.environment)
        except (OSError, ConfigError) as error:
            return Exit(ExitCause.CANNOT_START, None, time.monotonic(), 0.0, str(error))
        watch = Watch(
            child,
            socket=self.plan.socket,
            name=self.plan.name,
            logbook=self.logbook,
            notify=self.notify,
        )
        self.measured, self._n_facts_taken = watch.measured, 0
        self._findings = Findings(self.plan, self.measured, emit=self._emit)
        try:
            orphans.record(child.pid, child.create_time, self.plan.socket)
            self._enter(State.LOADING)
            self._emit(_spawned(self.plan, child))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.run)
                end = await self._hold(child, watch)
                with anyio.move_on_after(_LAST_LINES_S):
                    await watch.is_drained.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._upstream = None
            child.kill()
            await child.aclose()
            orphans.forget(self.plan.socket)
        return explained(end, self.measured.failure, self.logbook.tail(LOOKED_AT_LINES))

    async def _hold(self, child: Child, watch: Watch) -> Exit:
        """Look at every piece of news until the process has ended or has been stopped."""
        upstream = Upstream(self.plan.socket)
        while True:
            now_s = time.monotonic()
            if child.returncode is not None:
                was_ready_s = now_s - self._life.since_s if self._upstream else 0.0
                self._upstream = None
                self.notify()
                upstream.close_all()
                child.kill()  # what it started may hold its pipes open
                return Exit(ExitCause.ENDED, child.returncode, now_s, was_ready_s)
            if self._may_stop():
                return await self._stop(child, upstream, watch)
            if self.state is State.LOADING and watch.is_ready:
                self._become_ready(upstream)
            if self.state is State.READY:
                self._take_in()
            if self.state is State.READY and self.is_leaving:
                self._enter(State.DRAINING)
                continue
            patience_s = self.plan.model.load_timeout_s or math.inf  # 0 is for ever, as in Ollama
            stall_s = watch.progress_s + patience_s
            if self.state is State.LOADING and now_s >= stall_s:
                child.kill()
                code = await child.wait()
                return Exit(ExitCause.STALLED, code, now_s, 0.0)
            deadline_s = stall_s if self.state is State.LOADING else math.inf
            if self.is_leaving:
                deadline_s = min(deadline_s, self._drain_until_s)
            with anyio.move_on_after(deadline_s - now_s):
                await self._news.wait()

    def _become_ready(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._is_trial = False
        load_s = self._enter(State.READY)
        pair = str(self.plan.model.kv_cache_type)
        self._emit(events.Ready(self.plan.name, load_s, self.kv_bytes, pair))

    def _take_in(self) -> None:
        """Take up what the log has told since; it may come later than the event that it serves."""
        self._findings.tell()
        if self.measured.n_load_facts != self._n_facts_taken:
            self._n_facts_taken = self.measured.n_load_facts
            if self.measured.total_bytes:
                self.remembered = sizes_of(self.plan, self.measured)
            self._on_ready(self)

    async def _stop(self, child: Child, upstream: Upstream, watch: Watch) -> Exit:
        if self.state is State.READY:
            self._enter(State.DRAINING)
        self._upstream = None
        was_ready = self.state is State.DRAINING
        self._enter(State.STOPPING)
        self._emit(events.Stopping(self.plan.name, self._stop_why or ""))
        upstream.close_all()
        was_killed = await child.stop(
            farewell=EXIT_LINE if was_ready and watch.speaks_child_mode else None,
            grace_s=self.plan.model.stop_timeout_s,
        )
        took_s = time.monotonic() - self._life.since_s
        self._emit(events.Stopped(self.plan.name, took_s, was_killed))
        return Exit(ExitCause.ASKED, child.returncode, time.monotonic(), 0.0)

    def _enter(self, state: State) -> float:
        spent_s = self._life.enter(state, now_s=time.monotonic())
        self.notify()
        self._on_change()
        return spent_s


def _spawned(plan: Plan, child: Child) -> events.Spawned:
    return events.Spawned(
        model=plan.name,
        pid=child.pid,
        binary=plan.binary.label,
        kv_cache_type=str(plan.model.kv_cache_type),
        num_ctx=plan.model.num_ctx,
        num_parallel=plan.model.num_parallel,
    )
