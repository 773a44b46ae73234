"""``/kvsup/kv``: the conversations that are kept in files: listed, removed, packed and taken."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec
from anyio import CapacityLimiter, from_thread, move_on_after, to_thread

from kvsup.api.exchange import Body, Exchange
from kvsup.errors import KvsupError, ModelNotFound
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.keepable import models_by_identity
from kvsup.runtime.kvarchive import PIECE_BYTES, ArchiveError, Read, packed
from kvsup.runtime.kvfiles import described
from kvsup.runtime.kvimport import Desk, Outcome, take
from kvsup.runtime.warming import Store

TAR = b"application/x-tar"

_LOOK_S = 0.5
"""How often is looked whether kvsup stops, while a body does not come."""


class KeptHandlers:
    """What is told and done about the saved slots of one state folder."""

    def __init__(self, fleet: Fleet, kept: Store, *, is_stopping: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._is_stopping = is_stopping
        self._files = kept.files
        self._sums = kept.sums
        self._one_at_a_time = CapacityLimiter(1)
        """Of those that take conversations: each sees what the one before has left of the room."""

    async def all(self, exchange: Exchange) -> None:
        """Answer ``GET /kvsup/kv``: what is kept, of ``?model=NAME`` or of all."""
        entries = self._files.entries(self._model(exchange))
        answer = {
            "conversations": described(entries),
            "bytes": sum(entry.sidecar.size_bytes for entry in self._files.entries()),
            "max_bytes": self._files.max_bytes,
        }
        await exchange.answer(msgspec.json.encode(answer))

    async def clear(self, exchange: Exchange) -> None:
        """Answer ``DELETE /kvsup/kv``: remove what is kept, of ``?model=NAME`` or of all."""
        freed_bytes = self._files.clear(self._model(exchange))
        await exchange.answer(msgspec.json.encode({"freed_bytes": freed_bytes}))

    async def pack(self, exchange: Exchange) -> None:
        """Answer ``GET /kvsup/kv/archive``: a tar of what is kept, of ``?model=NAME`` or all."""
        names = exchange.request.query_params.getlist("model")
        for name in names:
            if not self._files.entries(name):
                raise ModelNotFound(name)
        entries = [e for e in self._files.entries() if not names or e.sidecar.model in names]
        pieces = packed(entries)
        await exchange.start(TAR)
        try:
            while piece := await to_thread.run_sync(next, pieces, b""):
                await exchange.write(piece)
        except OSError as error:
            raise KvsupError(f"what is kept cannot be read: {error}") from error
        await exchange.end()

    async def take(self, exchange: Exchange, body: Body) -> None:
        """Answer ``PUT /kvsup/kv/archive``: take what is good of such a tar, and tell of each."""
        instances = self._fleet.instances()
        models = await models_by_identity((one.plan for one in instances), self._sums)
        desk = Desk(self._files, models, from_thread.run_sync)
        outcomes: list[Outcome] = []
        try:
            problem = await to_thread.run_sync(
                partial(_taken, self._reading(body), desk, outcomes),
                abandon_on_cancel=True,
                limiter=self._one_at_a_time,
            )
        except ConnectionError:
            return
        answer = {"conversations": outcomes, "problem": problem}
        await exchange.answer(msgspec.json.encode(answer))

    def _reading(self, body: Body) -> Read:
        """Return what a thread reads a body with, while it comes and kvsup does not stop."""
        left = b""

        async def more() -> bytes:
            while not self._is_stopping():
                with move_on_after(_LOOK_S):
                    return await body.next()
            raise ArchiveError("kvsup is shutting down")

        def read(n_bytes: int) -> bytes:
            nonlocal left
            left = left or from_thread.run(more)
            taken, left = left[:n_bytes], left[n_bytes:]
            return taken

        return read

    def _model(self, exchange: Exchange) -> str | None:
        name = exchange.request.query_params.get("model")
        if name is not None and not self._files.entries(name):
            raise ModelNotFound(name)
        return name


def _taken(read: Read, desk: Desk, outcomes: list[Outcome]) -> str:
    """Add what becomes of each conversation; return why there are no more, if not for the end."""
    problem = ""
    try:
        outcomes.extend(take(read, desk))
    except ArchiveError as error:
        problem = str(error)
    with suppress(ArchiveError):
        while read(PIECE_BYTES):  # no client hears an answer before it has said all
            pass
    return problem
