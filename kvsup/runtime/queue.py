"""Requests that want an instance: what each asked for, its place in the queue, how it ended."""

import time
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field

import anyio

from kvsup.errors import KvsupError
from kvsup.fitting import Asked
from kvsup.runtime.instance import Instance
from kvsup.scheduling import Ticket


@dataclass(frozen=True, slots=True)
class Queued:
    """How a request came through the queue."""

    position: int
    """Place at its arrival, 1 the first; 0: it did not wait."""
    waited_s: float

    @property
    def waited_ms(self) -> int:
        """Return the time until its slots were granted; a load is not in it."""
        return round(self.waited_s * 1000)


@dataclass(slots=True, eq=False)
class Request:
    """One request: in the queue until it is granted or refused."""

    number: int
    name: str
    asked: Asked
    instance: Instance
    slots: int
    keep_alive_s: float | None
    priority: int
    """Its model's and its key's together."""
    is_for_newest: bool
    """It is never served by an instance that a newer one is to replace."""
    arrived_s: float
    position: int = 0
    settled: anyio.Event = field(default_factory=anyio.Event)
    granted_s: float | None = None
    refusal: KvsupError | None = None

    @property
    def ticket(self) -> Ticket:
        """Return it as the scheduler sees it."""
        return Ticket(self.number, self.instance.key, self.arrived_s, self.slots, self.priority)

    @property
    def queued(self) -> Queued:
        """Return how it came through the queue, or how it stands there now."""
        if not self.position:
            return Queued(0, 0.0)
        until_s = time.monotonic() if self.granted_s is None else self.granted_s
        return Queued(self.position, until_s - self.arrived_s)

    def give_back(self, *, now_s: float) -> None:
        """Give back what it was granted."""
        self.instance.leases -= 1
        self.instance.busy_slots -= self.slots
        self.instance.last_used_s = now_s
        self.instance.notify()


class Queue:
    """All that wait, by rank: the first is the first to be served."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._n_arrived = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: Request) -> bool:
        return request in self._waiting

    def __iter__(self) -> Iterator[Request]:
        """Yield those that wait now, whatever becomes of them meanwhile."""
        return iter(list(self._waiting))

    def add(
        self,
        name: str,
        asked: Asked,
        instance: Instance,
        *,
        slots: int,
        keep_alive_s: float | None,
        priority: int,
        is_for_newest: bool = False,
    ) -> Request:
        """Return a new request, which waits at its place."""
        self._n_arrived += 1
        request = Request(
            number=self._n_arrived,
            name=name,
            asked=asked,
            instance=instance,
            slots=slots,
            keep_alive_s=keep_alive_s,
            priority=priority,
            is_for_newest=is_for_newest,
            arrived_s=time.monotonic(),
        )
        insort(self._waiting, request, key=lambda r: r.ticket.rank)
        return request

    def position(self, request: Request) -> int:
        """Return the place of one that waits, 1 for the first."""
        return self._waiting.index(request) + 1

    def grant(self, request: Request) -> None:
        """Let it out of the queue, to its instance, which is leased to it from now on."""
        request.granted_s = time.monotonic()
        instance = request.instance
        instance.leases += 1
        instance.busy_slots += request.slots
        instance.last_used_s = request.granted_s
        if request.keep_alive_s is not None:
            instance.keep_alive_s = request.keep_alive_s
        self._settle(request)

    def refuse(self, request: Request, error: KvsupError) -> None:
        """Let it out of the queue with an error."""
        request.refusal = error
        self._settle(request)

    def drop(self, request: Request) -> None:
        """Forget one whose client left, if it still waits."""
        if request in self._waiting:
            self._waiting.remove(request)

    def _settle(self, request: Request) -> None:
        self._waiting.remove(request)
        request.settled.set()
