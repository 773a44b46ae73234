"""``/kvsup/kv``: the conversations that are kept in files, and removing them."""

import msgspec

from kvsup.api.exchange import Exchange
from kvsup.errors import ModelNotFound
from kvsup.runtime.kvfiles import KVFiles, described


class KeptHandlers:
    """What is told and done about the saved slots of one state folder."""

    def __init__(self, files: KVFiles) -> None:
        self._files = files

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

    def _model(self, exchange: Exchange) -> str | None:
        name = exchange.request.query_params.get("model")
        if name is not None and not self._files.entries(name):
            raise ModelNotFound(name)
        return name
