"""Requests that a test lets in and out of a fleet."""

import anyio

from kvsup.errors import CapacityError, InstanceFailed, ModelNotFound
from kvsup.runtime.fleet import Fleet


class Client:
    """One request: it takes a lease, says so, and holds it until it is let go."""

    def __init__(self, fleet: Fleet, name: str, log: list[str] | None = None) -> None:
        self.has_lease = anyio.Event()
        self.may_leave = anyio.Event()
        self.error: Exception | None = None
        self._fleet = fleet
        self._name = name
        self._log = [] if log is None else log

    async def run(self) -> None:
        """Take the lease, wait until the model serves, hold, leave."""
        try:
            async with self._fleet.lease(self._name) as instance:
                await instance.ready()
                self._log.append(self._name)
                self.has_lease.set()
                await self.may_leave.wait()
        except (CapacityError, InstanceFailed, ModelNotFound) as error:
            self.error = error

    async def pass_by(self) -> None:
        """Take the lease and leave at once."""
        self.may_leave.set()
        await self.run()
