"""A request outlives its llama-server: where it runs again, and what it is told if it cannot."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256

from kvsup import events
from kvsup.errors import InstanceError, NotListening, NotResumed, Poisoned, UpstreamError
from kvsup.restart import Exit
from kvsup.runtime.docket import Case
from kvsup.runtime.instance import Instance
from kvsup.runtime.upstream import Upstream

MAX_BREAKS = 3
"""Attempts that a living process ends, with nothing new between, before a request is given up."""


def fingerprint_of(path: str, body: bytes) -> str:
    """Return by what a request is known again; it tells nothing of what stands in it."""
    return sha256(path.encode() + b"\0" + body).hexdigest()[:16]


@contextmanager
def surviving(
    instance: Instance,
    path: str,
    fingerprint: str,
    *,
    n_tokens: Callable[[], int],
    is_whole: Callable[[], bool],
) -> "Iterator[Survival]":
    """Yield the survival of one request on the leased ``instance``; tell if it was lost.

    ``fingerprint`` is as ``fingerprint_of`` returns it; the rest as for ``Docket.open``.

    Raises:
        Poisoned: one like it was convicted lately.
    """
    name = instance.plan.name
    case = instance.docket.open(fingerprint, route=path, n_tokens=n_tokens, is_whole=is_whole)
    survival = Survival(instance, case)
    try:
        yield survival
    except Poisoned:
        instance.emit(events.Poisoned(name, fingerprint, survival.why))
        raise
    except (UpstreamError, InstanceError) as error:
        instance.emit(events.Lost(name, str(error)))
        raise
    finally:
        instance.docket.close(case)


class Survival:
    """One request on one instance, whichever of its processes runs it."""

    def __init__(self, instance: Instance, case: Case) -> None:
        self._instance = instance
        self._case = case
        self._end: Exit | None = None
        self._broke_at_s: float | None = None
        self._n_breaks = 0

    @property
    def why(self) -> str:
        """Return what the last process ended of, in words."""
        return self._end.describe() if self._end else "its connection broke"

    async def upstream(self) -> Upstream:
        """Return where it may run now; raises as ``Instance.ready``.

        Raises:
            Poisoned: as ``see_end``, of a process that took its time to end.
        """
        return await self._instance.docket.turn(self._case, self._instance.ready)

    @contextmanager
    def on(self, upstream: Upstream) -> Iterator[None]:
        """Hold it for running on ``upstream``, and for a suspect if that dies under it.

        Cancelled it leaves, which is for the docket to see when its case is closed.
        """
        docket = self._instance.docket
        is_new = docket.starts(self._case, upstream)
        try:
            yield
        except UpstreamError as error:
            if is_new and isinstance(error, NotListening):  # it never ran there
                docket.ends(self._case, upstream)
            raise
        except Exception:
            docket.ends(self._case, upstream)
            raise
        docket.ends(self._case, upstream)

    async def see_end(self, error: UpstreamError, upstream: Upstream) -> None:
        """Learn how the process behind ``upstream`` ended, on which it broke off with ``error``.

        Raises:
            Poisoned: the process died of it.
            UpstreamError: it breaks off again and again although its process lives.
        """
        if self._broke_at_s is None:
            self._broke_at_s = time.monotonic()
        if not isinstance(error, NotResumed):  # which no death explains
            if isinstance(error, NotListening):
                self._instance.is_deaf(upstream)
            self._end = await self._instance.end_of(upstream)
            if self._case.verdict is not None:
                raise self._case.verdict
            if self._end is not None:
                return
        self._n_breaks += 1
        if self._n_breaks >= MAX_BREAKS:
            raise self.lost(error) from error

    def went_on(self, how: events.Rescue, n_tokens: int) -> None:
        """Tell that its answer goes on, of which the client had ``n_tokens``."""
        if self._broke_at_s is None:
            return
        took_s = time.monotonic() - self._broke_at_s
        self._broke_at_s, self._n_breaks = None, 0
        name = self._instance.plan.name
        self._instance.emit(events.Replayed(name, how, n_tokens, took_s, self.why))

    def came_further(self) -> None:
        """End the suspicion against it, if there is one."""
        if self._case.is_suspect:
            self._instance.docket.clear(self._case)

    def lost(self, error: UpstreamError) -> UpstreamError:
        """Return what a client is told whose answer cannot go on."""
        if self._end is None:
            return error
        then = f"; {error}" if isinstance(error, NotResumed) else ""
        return UpstreamError(f"llama-server ended in the middle of this answer: {self.why}{then}")
