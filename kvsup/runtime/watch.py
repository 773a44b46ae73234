"""Everything that one running llama-server tells: its events, its log, ``/health`` and its exit."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress

import anyio

from kvsup.errors import UpstreamError
from kvsup.llama.childmode import parse_event
from kvsup.llama.health import Health, parse_health
from kvsup.llama.heartbeat import is_line_of_the_loop
from kvsup.llama.logscan import (
    Fact,
    LoadFailure,
    PromptBegun,
    Released,
    Timing,
    is_own,
    scan,
    without_quote,
)
from kvsup.runtime.logbook import Logbook
from kvsup.runtime.measured import Measured
from kvsup.runtime.process import Child
from kvsup.runtime.upstream import Upstream

_QUOTE_S = 0.5
"""For so long after a client's text has begun, every line may be of it.

No longer for lines that look like a client's: llama-server prints such for each request, what it
samples with.
"""

_LOAD_LAG_S = 10.0
"""How long after it is ready the log may still tell of the load."""

HEALTH_INTERVAL_S = 0.015
"""Pause between two questions to a llama-server that sends no events."""


class Watch:
    """Notes what one child tells and calls ``notify`` when its owner should look."""

    def __init__(
        self, child: Child, *, socket: str, name: str, logbook: Logbook, notify: Callable[[], None]
    ) -> None:
        self.is_ready = False
        """It has said that it serves, by event or by ``/health``."""
        self.speaks_child_mode = False
        """It has sent an event, so it reads its stdin once it is ready."""
        self.progress_s = time.monotonic()
        """When it last told anything."""
        self.n_lines = 0
        """Lines of its log that its loop wrote."""
        self.measured = Measured()
        self.is_drained = anyio.Event()
        """Both its pipes have been read to their end."""
        self._child = child
        self._upstream = Upstream(socket)
        self._logbook = logbook
        self._logger = logging.getLogger(f"kvsup.llama.{name}")
        self._notify = notify
        self._ready_s: float | None = None
        self._quote_until_s = -math.inf
        self._has_quoted = False

    async def run(self) -> None:
        """Read until both pipes end; cancel it where something else holds them open."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._await_exit)
            tasks.start_soon(self._ask_health)
            async with anyio.create_task_group() as readers:
                readers.start_soon(self._read_events)
                readers.start_soon(self._read_log)
            self.is_drained.set()

    async def _read_events(self) -> None:
        async for line in self._child.stdout_lines():
            event = parse_event(line)
            if event is None:
                self._note(line)
                continue
            self.speaks_child_mode = True
            self.progress_s = time.monotonic()
            if event.state == "ready":
                self._become_ready()

    async def _read_log(self) -> None:
        async for line in self._child.stderr_lines():
            self._note(line)

    def _note(self, raw: bytes) -> None:
        line, goes_on = without_quote(raw.decode("utf-8", "replace").rstrip())
        if self._is_quoted(line, goes_on=goes_on):
            return
        self._logbook.append(line)
        self._logger.debug("%s", line)
        self.progress_s = time.monotonic()
        self.n_lines += is_line_of_the_loop(line)
        # Not only before it is ready: the log's own thread may lag behind the event on stdout.
        if (fact := scan(line)) is not None and self._may_tell(fact):
            self.measured.note(fact)
            self._notify()

    def _is_quoted(self, line: str, *, goes_on: bool) -> bool:
        """Say whether a line may be a client's text, which is neither kept nor believed.

        Args:
            line: as it came, without what it quotes.
            goes_on: the lines after it may be a client's.
        """
        now_s = time.monotonic()
        if now_s >= self._quote_until_s and is_own(line):
            self._quote_until_s = -math.inf
        is_quoted = self._quote_until_s > -math.inf
        if goes_on:
            self._quote_until_s, self._has_quoted = now_s + _QUOTE_S, True
        return is_quoted

    def _may_tell(self, fact: Fact) -> bool:
        """Say whether to believe a fact: one of the load only until a client's text has come."""
        if isinstance(fact, Timing | PromptBegun | Released | LoadFailure):
            return True
        is_late = self._ready_s is not None and time.monotonic() - self._ready_s > _LOAD_LAG_S
        return not (is_late or self._has_quoted)

    async def _ask_health(self) -> None:
        """Poll ``/health`` until it answers 200, unless the build announces itself by events."""
        while not self.speaks_child_mode and not self.is_ready:
            with suppress(UpstreamError):
                status, _ = await self._upstream.fetch("GET", "/health")
                if parse_health(status) is Health.READY:
                    self._become_ready()
            await anyio.sleep(HEALTH_INTERVAL_S)

    async def _await_exit(self) -> None:
        await self._child.wait()
        self._notify()

    def _become_ready(self) -> None:
        self.is_ready = True
        self._ready_s = self._ready_s or time.monotonic()
        self._notify()
