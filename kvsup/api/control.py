"""kvsup's own endpoints, ``/kvsup/*``: what its command line asks a running kvsup.

They change what others see: ``auth.py`` asks for a key, or for a client on this machine.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from kvsup.api.exchange import Exchange
from kvsup.errors import RequestError
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.instance import Instance
from kvsup.runtime.warming import Store

_TEXT = b"text/plain; charset=utf-8"


class _Named(msgspec.Struct):
    model: str


class ControlHandlers:
    """Management of one fleet."""

    def __init__(
        self,
        fleet: Fleet,
        kept: Store,
        *,
        reload: Callable[[], Awaitable[None]],
        refusal: Callable[[], str | None],
    ) -> None:
        self._fleet = fleet
        self._kept = kept
        self._reload = reload
        self._refusal = refusal

    async def models(self, exchange: Exchange) -> None:
        """Answer ``GET /kvsup/models``: every model with its state, and who waits."""
        now_s = time.monotonic()
        waiting = self._fleet.waiting()
        n_waiting = Counter(request.instance.key for request in waiting)
        models = [
            {
                **_described(instance, now_s),
                **_kept_of(instance.plan.name, self._kept),
                "waiting": n_waiting[instance.key],
            }
            for instance in [*self._fleet.succeeded(), *self._fleet.instances()]
        ]
        queue = [
            {
                "position": position,
                "model": request.instance.plan.name,
                "waited_ms": round((now_s - request.arrived_s) * 1000),
                "priority": request.priority,
            }
            for position, request in enumerate(waiting, start=1)
        ]
        answer = {
            "models": models,
            "waiting": len(waiting),
            "queue": queue,
            "refused_configuration": self._refusal(),
        }
        await exchange.answer(msgspec.json.encode(answer))

    async def stop(self, exchange: Exchange) -> None:
        """Answer ``POST /kvsup/stop``: unload once idle."""
        stopping = self._fleet.unload(_name(exchange), "asked by kvsup stop")
        await exchange.answer(msgspec.json.encode({"stopping": stopping}))

    async def reset(self, exchange: Exchange) -> None:
        """Answer ``POST /kvsup/reset``: end FAILED, forget the deaths."""
        self._fleet.reset(_name(exchange))
        await exchange.answer(b"{}")

    async def reload(self, exchange: Exchange) -> None:
        """Answer ``POST /kvsup/reload``: read the configuration again; 400 with every problem."""
        await self._reload()
        await exchange.answer(b"{}")

    async def logs(self, exchange: Exchange) -> None:
        """Answer ``GET /kvsup/logs/NAME``: its last lines, with ``follow`` each new one too."""
        query = exchange.request.query_params
        logbook = self._fleet.instance(exchange.request.path_params["name"]).logbook
        asked = query.get("lines", "100")
        n_lines = int(asked) if re.fullmatch(r"[0-9]{1,9}", asked) else 100
        await exchange.start(_TEXT)
        if "follow" not in query:
            await exchange.end("".join(f"{line}\n" for line in logbook.tail(n_lines)).encode())
            return
        async for line in logbook.follow(n_lines):
            await exchange.write(f"{line}\n".encode())


def _described(instance: Instance, now_s: float) -> dict[str, object]:
    snapshot = instance.snapshot()
    left_s = snapshot.idle_until_s - now_s
    k_bytes, v_bytes = snapshot.kv_bytes or (None, None)
    return {
        "name": snapshot.name,
        "state": snapshot.state.value,
        "kv_cache_type": str(instance.plan.model.kv_cache_type),
        "num_ctx": instance.plan.model.num_ctx,
        "num_parallel": instance.plan.model.num_parallel,
        "in_flight": snapshot.leases,
        "pid": snapshot.pid,
        "deaths": snapshot.n_deaths,
        "failure": snapshot.failure,
        "size_bytes": snapshot.size_bytes,
        "size_vram_bytes": snapshot.vram_bytes,
        "k_bytes": k_bytes,
        "v_bytes": v_bytes,
        "kv_warnings": snapshot.kv_warnings,
        "given_up": snapshot.given_up,
        "idle_in_s": None if math.isinf(left_s) else round(left_s, 1),
        "source": instance.plan.model.source,
    }


def _kept_of(model: str, kept: Store) -> dict[str, object]:
    """Return what is kept of a model's conversations, and what came of its prompts."""
    tally, files = kept.tallies.of(model), kept.files.entries(model)
    return {
        "kept_conversations": len(files),
        "kept_bytes": sum(entry.sidecar.size_bytes for entry in files),
        "restored_tokens": tally.n_restored_tokens,
        "prompt_tokens": tally.n_prompt_tokens,
        "cache_hit_rate": tally.hit_rate,
    }


def _name(exchange: Exchange) -> str:
    try:
        return msgspec.json.decode(exchange.body, type=_Named).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f'{error}; write {{"model": "NAME"}}') from error
