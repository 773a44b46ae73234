"""The management calls of llama.cpp's router, which its web UI and editors speak.

Shapes are those of tools/server/server-models.cpp (b11434): ``GET /models``, ``POST /models/load``
and ``/models/unload``, and the events of ``/models/sse``.
"""

from collections.abc import Mapping

import msgspec

from kvsup.api.exchange import SSE, SSE_HEADERS, Exchange
from kvsup.api.listing import capabilities
from kvsup.errors import ModelNotFound, RequestError
from kvsup.lifecycle import State
from kvsup.plan import Plan
from kvsup.runtime.fleet import Fleet

_NS_PER_S = 1_000_000_000

_LOADED = {State.READY, State.DRAINING, State.STOPPING}
_LOADING = {State.STARTING, State.LOADING, State.BACKOFF}

_INPUTS = {"completion": "text", "embedding": "text", "vision": "image", "audio": "audio"}
_OUTPUTS = {"completion": "text", "embedding": "embeddings"}


class _Named(msgspec.Struct):
    model: str = ""


class RouterHandlers:
    """``/models`` and below, on one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def models(self, exchange: Exchange) -> None:
        """Answer ``GET /models``: OpenAI's list, with the status of each model."""
        states = self._states()
        entries = [_entry(plan, *states[plan.name]) for plan in self._fleet.plans()]
        await exchange.answer(msgspec.json.encode({"data": entries, "object": "list"}))

    async def load(self, exchange: Exchange) -> None:
        """Answer ``POST /models/load`` at once; ``/models/sse`` tells how it goes on."""
        name = self._name(exchange)
        if self._states()[name][0] != "unloaded":
            raise RequestError("model is already running")
        self._fleet.load(name)
        await exchange.answer(b'{"success":true}')

    async def unload(self, exchange: Exchange) -> None:
        """Answer ``POST /models/unload``: unload once idle."""
        if not self._fleet.unload(self._name(exchange), "asked by a client"):
            raise RequestError("model is not running")
        await exchange.answer(b'{"success":true}')

    async def sse(self, exchange: Exchange) -> None:
        """Answer ``GET /models/sse``: each change of a status, until the client leaves."""
        await exchange.start(SSE, headers=SSE_HEADERS)
        told: Mapping[str, tuple[str, str | None]] = {}
        while True:
            states = self._states()
            if states == told:
                await self._fleet.changed()
                continue
            changed = {name: state for name, state in states.items() if told.get(name) != state}
            told = states
            await exchange.write(b"".join(_event(name, *state) for name, state in changed.items()))

    def _name(self, exchange: Exchange) -> str:
        try:
            name = msgspec.json.decode(exchange.body, type=_Named).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(f'{error}; write {{"model": "NAME"}}') from error
        try:
            return self._fleet.instance(name).plan.name
        except ModelNotFound as error:
            raise ModelNotFound(name, "model is not found") from error

    def _states(self) -> dict[str, tuple[str, str | None]]:
        """Return the router's word for each model's state, and why it failed."""
        states: dict[str, tuple[str, str | None]] = {}
        for instance in self._fleet.instances():
            word = "loading" if instance.state in _LOADING else "unloaded"
            word = "loaded" if instance.state in _LOADED else word
            before = states.get(instance.plan.name)
            if before is None or before[0] == "unloaded":
                states[instance.plan.name] = (word, instance.failure)
        return states


def _entry(plan: Plan, status: str, failure: str | None) -> dict[str, object]:
    can = capabilities(plan)
    described: dict[str, object] = {"value": status, "args": list(plan.argv)}
    if failure is not None:
        described |= {"failed": True, "exit_code": 1}
    return {
        "id": plan.name,
        "aliases": [plan.name, *plan.model.aliases],
        "tags": [],
        "object": "model",
        "owned_by": "llamacpp",
        "created": plan.file.modified_ns // _NS_PER_S,
        "status": described,
        "architecture": {
            "input_modalities": list(dict.fromkeys(_INPUTS[c] for c in can if c in _INPUTS)),
            "output_modalities": list(dict.fromkeys(_OUTPUTS[c] for c in can if c in _OUTPUTS)),
        },
        "source": "preset",
        "can_remove": False,
        "meta": {
            "n_ctx": plan.model.num_ctx,
            "n_ctx_train": plan.trained_tokens,
            "n_params": plan.file.n_params,
            "size": plan.file.size_bytes,
            "ftype": plan.file.metadata.file_type,
        },
    }


def _event(name: str, status: str, failure: str | None) -> bytes:
    change: dict[str, object] = {"status": status}
    if status == "unloaded":
        change["exit_code"] = 0 if failure is None else 1
    event = {"model": name, "event": "status_change", "data": change}
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
