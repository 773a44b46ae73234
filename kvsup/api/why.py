"""``/kvsup/why``: why each model is as it is now, from its history and its present."""

import re
import time
from functools import partial

import msgspec
from anyio import CapacityLimiter, to_thread

from kvsup.api.exchange import Exchange
from kvsup.errors import ModelNotFound
from kvsup.lifecycle import ALIVE
from kvsup.runtime.chronicle import Chronicle
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.instance import Instance
from kvsup.stores.stored import editable
from kvsup.why import DEFAULT_LINES, Answer, Present, answer


class WhyHandlers:
    """What is told of the history of one fleet. Folding takes milliseconds, so it has a thread."""

    def __init__(self, fleet: Fleet, chronicle: Chronicle) -> None:
        self._fleet = fleet
        self._chronicle = chronicle
        self._one_at_a_time = CapacityLimiter(1)

    async def all(self, exchange: Exchange) -> None:
        """Answer ``GET /kvsup/why``: each model, without its timeline."""
        names = [plan.name for plan in self._fleet.plans()]
        answers = [await self._answer(name, n_lines=0) for name in names]
        await exchange.answer(msgspec.json.encode({"models": answers}))

    async def one(self, exchange: Exchange) -> None:
        """Answer ``GET /kvsup/why/NAME``: with the ``last`` lines of its timeline."""
        name = exchange.request.path_params["name"]
        try:
            name = self._fleet.instance(name).plan.name
        except ModelNotFound:
            if name not in self._chronicle.models():
                raise
        asked = exchange.request.query_params.get("last", "")
        n_lines = int(asked) if re.fullmatch(r"[0-9]{1,6}", asked) else DEFAULT_LINES
        await exchange.answer(msgspec.json.encode(await self._answer(name, n_lines=n_lines)))

    async def _answer(self, name: str, *, n_lines: int) -> Answer:
        own = [instance for instance in self._fleet.instances() if instance.plan.name == name]
        work = partial(
            answer,
            name,
            self._chronicle.of(name),
            _present(own, now_s=time.monotonic()),
            now_s=time.time(),
            n_lines=n_lines,
        )
        return await to_thread.run_sync(work, limiter=self._one_at_a_time)


def _present(own: list[Instance], *, now_s: float) -> Present:
    """Return what is true of a model: of the one of its instances that has a process, if any."""
    if not own:
        return Present("removed", is_configured=False)
    instance = next((i for i in own if i.state in ALIVE), own[0])
    return Present(
        state=instance.state.value,
        for_s=now_s - instance.snapshot().since_s,
        in_flight=sum(each.leases for each in own),
        failure=instance.failure,
        source=editable(instance.plan.model.source),
    )
