"""Requests with load-time options, which a test lets in and out of a fleet."""

import anyio
import msgspec

from kvsup import events
from kvsup.errors import KvsupError
from kvsup.fitting import NOTHING, Asked
from kvsup.plan import Plan
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.instance import Instance
from tests.runtime.supervised import Folder, Running
from tests.standin.script import write_script

ONE = "memory = '64GiB'\nmax_loaded_models = 1\n"
STREAM = b'{"prompt": "Count: 1 2 3", "stream": true, "n_predict": 60, "ignore_eos": true}'
LARGER = Asked(num_ctx=512)
LARGEST = Asked(num_ctx=1024)
OTHER_PAIR = Asked(kv_cache_type="q8_0:q5_1")


async def use(fleet: Fleet, asked: Asked = NOTHING, name: str = "a") -> Instance:
    """Take a lease, wait until it serves, leave, and return what served."""
    async with fleet.lease(name, asked=asked) as instance:
        await instance.ready()
    return instance


class Holder:
    """A request that keeps its lease until it is let go."""

    def __init__(self, fleet: Fleet, asked: Asked = NOTHING, name: str = "a") -> None:
        self.served: Instance | None = None
        self.error: KvsupError | None = None
        self.may_leave = anyio.Event()
        self._lease = (fleet, asked, name)

    async def run(self) -> None:
        """Take the lease, wait until it serves, hold, leave."""
        fleet, asked, name = self._lease
        try:
            async with fleet.lease(name, asked=asked) as instance:
                await instance.ready()
                self.served = instance
                await self.may_leave.wait()
        except KvsupError as error:
            self.error = error


def n_spawned(now: Running) -> int:
    """Return how many processes were started."""
    return len(now.of_kind(events.Spawned))


def size_bytes(plan: Plan, *, num_ctx: int) -> int:
    """Return the memory that is set aside for the model with another context."""
    return plan.configured_as(msgspec.structs.replace(plan.configured, num_ctx=num_ctx)).size_bytes


def standin_models(folder: Folder, *names: str, rest: str = "") -> None:
    """Write models that the stand-in loads at once; what they hold is what was estimated."""
    for name in names:
        line = write_script(folder.path / f"{name}.json")
        folder.write(**{name: folder.standin(line, rest)})
