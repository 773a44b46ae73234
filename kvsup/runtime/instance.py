"""One llama-server process and the task that owns it.

``run`` is the only writer of the state. Others ask (``ready``, ``stop``) and read
(``state``, ``measured``, ``snapshot``); ``leases``, ``busy_slots``, ``last_used_s`` and
``keep_alive_s`` belong to the fleet.
"""

import logging
import math
import time
from collections.abc import Callable
from functools import partial

import anyio

from kvsup import events
from kvsup.errors import InstanceError, InstanceFailed
from kvsup.kvchoice import Machine
from kvsup.lifecycle import ALIVE, Lifecycle, State
from kvsup.measures import SizesMeasured
from kvsup.plan import Plan
from kvsup.restart import Exit, ExitCause, GiveUp, Retry
from kvsup.runtime import footprint
from kvsup.runtime.descent import Descent, stepped_down
from kvsup.runtime.docket import Docket
from kvsup.runtime.ending import LOOKED_AT_LINES, died, with_last_lines
from kvsup.runtime.learning import sizes_of
from kvsup.runtime.logbook import Logbook
from kvsup.runtime.measured import Measured
from kvsup.runtime.news import News
from kvsup.runtime.snapshot import Snapshot
from kvsup.runtime.tenure import Tenure
from kvsup.runtime.toll import Toll
from kvsup.runtime.upstream import Upstream
from kvsup.runtime.warming import Store, Warmth

logger = logging.getLogger(__name__)

_END_S = 3.0
"""Time in which the end of a process is seen once its connections have broken."""


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
        store: Store | None = None,
    ) -> None:
        """Own what ``plan`` says.

        Args:
            plan: what to run.
            emit: takes what happens.
            on_change: called with every change of state.
            on_ready: called once it serves, and again if its log tells more of the load later.
            is_trial: it is given up if it dies before it ever served.
            remembered: what an earlier load of the same plan took.
            store: where its conversations are kept.
        """
        self.plan = plan
        self.descent = Descent(plan, remembered)
        self._is_trial = is_trial
        self._store = store
        self.leases = 0
        self.busy_slots = 0
        self.last_used_s = 0.0
        self.keep_alive_s = plan.model.keep_alive_s
        self.is_retired = self.is_removed = False
        self.failure: str | None = None
        self.logbook = Logbook()
        self.docket = Docket(plan.name)
        self.emit = emit
        self._on_change = on_change
        self._on_ready = on_ready
        self._life = Lifecycle(since_s=time.monotonic())
        self._toll = Toll(self.docket, self.descent)
        self._tenure: Tenure | None = None
        self._upstream: Upstream | None = None
        self._stop_why: str | None = None
        self._room_for: str | None = None
        self._drain_until_s = math.inf
        self._down_since_s = math.inf
        self._news = News()

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
    def is_unkillable(self) -> bool:
        """Say whether its process has not ended though SIGKILL was sent to it long ago."""
        return self._tenure is not None and self._tenure.is_unkillable

    @property
    def failure_error(self) -> InstanceFailed | None:
        """What a client is told while it has given up, in Ollama's words; None otherwise."""
        if self.failure is None:
            return None
        return InstanceFailed(f"llama-server process has terminated: {self.failure}")

    @property
    def size_by_device(self) -> dict[str, int]:
        """Return the bytes it takes of RAM and of each device: as in its last load, or planned."""
        return footprint.size_by_device(self.plan, self.descent.known(self.plan))

    @property
    def size_bytes(self) -> int:
        """Return its buffers in all memories, as in its last load; before it, what is set aside."""
        return footprint.size_bytes(self.plan, self.descent.known(self.plan))

    @property
    def measured(self) -> Measured:
        """Return what its log has told of its last load, and of requests since."""
        return self._tenure.measured if self._tenure else Measured()

    @property
    def kv_bytes(self) -> tuple[int, int] | None:
        """Bytes of K and of V as the log told; None until then."""
        return self._tenure.findings.kv_bytes if self._tenure else None

    @property
    def since_s(self) -> float:
        """Return when it came into its state."""
        return self._life.since_s

    @property
    def private_bytes(self) -> int:
        """The part of RAM that the operating system does not count as available: no mapped file."""
        return footprint.private_bytes(self.measured) if self._upstream else 0

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
            pid=self._tenure.child.pid if self._tenure and self.state in ALIVE else None,
            n_deaths=self._toll.n_deaths,
            failure=self.failure,
            size_bytes=self.size_bytes,
            vram_bytes=self.measured.vram_bytes,
            kv_bytes=self.kv_bytes,
            given_up=self.plan.given_up,
            kv_warnings=self._tenure.findings.sentences if self._tenure and self._upstream else (),
            idle_until_s=self.idle_until_s,
        )

    async def ready(self) -> Upstream:
        """Return the upstream once it serves; wait through a load, a crash and its backoff.

        Raises:
            InstanceFailed: it has given up; the message says why.
            InstanceError: it was stopped while this waited, or has been down for ``restart_wait``.
        """
        waits_since_s = time.monotonic()
        while self._upstream is None:
            if error := self.failure_error:
                raise error
            if self.is_leaving and self.state in {State.STOPPING, State.STOPPED}:
                raise InstanceError(f"{self.plan.name} was stopped: {self._stop_why}")
            wait_s = self.plan.model.restart_wait_s or math.inf
            until_s = max(waits_since_s, self._down_since_s) + wait_s
            if time.monotonic() >= until_s:
                raise InstanceError(
                    f"{self.plan.name} did not come back within {wait_s:g} s (restart_wait)"
                    + self._toll.last_words
                )
            await self._news.wait(until_s=until_s)
        return self._upstream

    def warmth_of(self, upstream: Upstream) -> Warmth | None:
        """Return what keeps the conversations of the process behind ``upstream``, if it lives."""
        tenure = self._tenure
        return tenure.warmth if tenure is not None and tenure.upstream is upstream else None

    async def end_of(self, upstream: Upstream) -> Exit | None:
        """Return how the process behind ``upstream`` ended; None if it seems to live on."""
        with anyio.move_on_after(_END_S):
            while upstream.end is None:
                await self._news.wait()
        return upstream.end

    def is_deaf(self, upstream: Upstream) -> None:
        """Take note that nobody took a connection to ``upstream``; it is ended before long."""
        if self._tenure is not None and self._tenure.upstream is upstream:
            self._tenure.is_deaf()

    def prepare(self) -> None:
        """Take back an earlier ``stop``; called in the same step that grants a lease and starts."""
        self._stop_why, self._drain_until_s, self._down_since_s = None, math.inf, math.inf

    def stop(self, why: str, *, drain_s: float = math.inf, room_for: str | None = None) -> None:
        """Ask it to stop once its leases are gone, at the latest in ``drain_s`` seconds.

        ``room_for`` is the model that needs its memory, where that is why.
        """
        if self._stop_why is None:
            self._stop_why, self._room_for = why, room_for
        self._drain_until_s = min(self._drain_until_s, time.monotonic() + drain_s)
        self.notify()

    def take_up(self, machine: Machine) -> None:
        """Take up what is known now of running it here."""
        self.plan = self.plan.on(machine)
        if self._tenure is not None:
            self._tenure.findings.plan = self.plan
        self.notify()

    def reset(self) -> None:
        """Forget a failure and the deaths before it, so that the next request starts it again."""
        self._toll.reset()
        if self.state is State.FAILED:
            self.failure, self._stop_why = None, "it was reset"
            self._enter(State.STOPPED)

    def notify(self) -> None:
        """Wake the owner and every waiter, to look at what has changed."""
        self._news.tell()

    # What the owner does.

    async def run(self) -> None:
        """Own the process from its start until it has been stopped as asked or has failed."""
        try:
            await self._run()
        except Exception as error:  # the last barrier: one instance's bug must not end the others
            logger.exception("%s: a bug in kvsup", self.plan.name)
            self.failure = f"internal error: {error!r}"
            self._life = Lifecycle(State.FAILED, time.monotonic())
            self.emit(events.GaveUp(self.plan.name, self.failure))
            self._go_down()

    async def _run(self) -> None:
        self.descent.tell(self.plan, self.emit)
        while True:
            step = self.plan.step
            end = await self._run_process()
            if self.state is State.STOPPING:
                self._enter(State.STOPPED)
                return
            now_s = time.monotonic()
            self._down_since_s = min(self._down_since_s, now_s)
            self.emit(died(self.plan.name, end))
            verdict: Retry | GiveUp = Retry(now_s)
            if self.plan.step > step:
                self.emit(stepped_down(self.plan, end.describe()))
            else:
                verdict = self._toll.verdict(end, self.plan, is_trial=self._is_trial, now_s=now_s)
            if isinstance(verdict, GiveUp):
                self.failure = with_last_lines(
                    verdict.reason, self.measured.failure, self.logbook.tail(LOOKED_AT_LINES)
                )
                self._enter(State.FAILED)
                self.emit(events.GaveUp(self.plan.name, self.failure))
                return
            self._enter(State.BACKOFF)
            self.emit(events.Restarting(self.plan.name, verdict.at_s - now_s))
            if not await self._wait_for_turn(verdict.at_s):
                self._enter(State.STOPPED)
                return

    async def _wait_for_turn(self, at_s: float) -> bool:
        """Wait until ``at_s``; return False if it is asked to stop before, with no one waiting."""
        while not self._may_stop() and time.monotonic() < at_s:
            await self._news.wait(until_s=min(at_s, self._drain_until_s))
        return not self._may_stop()

    def _may_stop(self) -> bool:
        if self._stop_why is None:
            return False
        return self.leases == 0 or time.monotonic() >= self._drain_until_s

    async def _run_process(self) -> Exit:
        """Spawn, hold, and reap one process; return how it ended."""
        self._enter(State.STARTING)
        tenure = await Tenure.begin(
            self.plan,
            has_run=self._tenure is not None,
            logbook=self.logbook,
            emit=self.emit,
            notify=self.notify,
            on_overdue=self._on_change,
            store=self._store,
        )
        if isinstance(tenure, Exit):
            self.plan = self._toll.take(tenure, self.plan)
            return tenure
        tenure.pulse.config = lambda: self.plan.model.watchdog
        self._tenure = tenure
        self._enter(State.LOADING)
        end = await tenure.run(partial(self._hold, tenure), go_down=self._go_down)
        if end.cause is not ExitCause.ASKED:
            self.plan = self._toll.take(end, self.plan, tenure.upstream)
        tenure.upstream.end = end
        self.notify()
        return end

    async def _hold(self, tenure: Tenure) -> Exit:
        """Look at every piece of news until the process has ended or has been stopped."""
        while True:
            if (code := tenure.child.returncode) is not None:
                return tenure.ended(code, ready_for_s=self._go_down())
            if self._may_stop():
                return await self._stop(tenure)
            if self.state is State.LOADING and tenure.watch.is_ready:
                self._become_ready(tenure)
            if self.state is State.READY:
                self._take_in(tenure)
            if self.state is State.READY and self.is_leaving:
                self._enter(State.DRAINING)
                continue
            patience_s = math.inf
            if self.state is State.LOADING:  # 0 is for ever, as in Ollama
                patience_s = self.plan.model.load_timeout_s or math.inf
            if fault := tenure.fault(patience_s=patience_s):
                return await tenure.end_for(fault, ready_for_s=self._go_down())
            deadline_s = tenure.next_fault_s(patience_s=patience_s)
            if self.is_leaving:
                deadline_s = min(deadline_s, self._drain_until_s)
            await self._news.wait(until_s=deadline_s)

    def _go_down(self) -> float:
        """Hand its upstream out no more; return how many seconds it had been ready."""
        now_s = time.monotonic()
        ready_for_s = now_s - self._life.since_s if self._upstream else 0.0
        self._upstream = None
        self._down_since_s = min(self._down_since_s, now_s)
        self.notify()
        return ready_for_s

    def _become_ready(self, tenure: Tenure) -> None:
        self._upstream = tenure.upstream
        self._is_trial = False
        self._down_since_s = math.inf
        load_s = tenure.measured.load_s = self._enter(State.READY)
        pair = str(self.plan.model.kv_cache_type)
        self.emit(events.Ready(self.plan.name, load_s, self.kv_bytes, pair))

    def _take_in(self, tenure: Tenure) -> None:
        """Take up what the log has told since; it may come later than the event that it serves."""
        tenure.findings.tell()
        if tenure.has_news_of_its_load():
            if self.measured.total_bytes:
                self.descent.keep(self.plan, sizes_of(self.plan, self.measured))
            self._on_ready(self)

    async def _stop(self, tenure: Tenure) -> Exit:
        if self.state is State.READY:
            self._enter(State.DRAINING)
        self._upstream = None
        was_ready = self.state is State.DRAINING
        self._enter(State.STOPPING)
        self.emit(events.Stopping(self.plan.name, self._stop_why or "", self._room_for))
        grace_s = self.plan.model.stop_timeout_s
        if was_ready and not self.is_removed:
            await tenure.keep(limit_s=grace_s, is_waited_for=self._room_for is not None)
        was_killed = await tenure.stop(was_ready=was_ready, grace_s=grace_s)
        now_s = time.monotonic()
        self.emit(events.Stopped(self.plan.name, now_s - self._life.since_s, was_killed))
        return Exit(ExitCause.ASKED, tenure.child.returncode, now_s, 0.0)

    def _enter(self, state: State) -> float:
        spent_s = self._life.enter(state, now_s=time.monotonic())
        self.notify()
        self._on_change()
        return spent_s
