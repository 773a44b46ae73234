"""The floor to compare with: a TCP server that copies bytes to and from a UNIX socket, no more.

``python -m bench.bytecopy SOCKET`` prints the port that it listens on, and ends with its stdin.
"""

import asyncio
import sys
from typing import cast

import uvloop


class _End(asyncio.Protocol):
    """One end of a connection; what comes goes out at ``other``."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other._transport is None:  # noqa: SLF001 - its own kind
            self._early.append(data)
        else:
            self.other._transport.write(data)  # noqa: SLF001

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self.other is not None and self.other._transport is not None:  # noqa: SLF001
            self.other._transport.close()  # noqa: SLF001

    def pair_with(self, other: "_End") -> None:
        """Join both ends and pass on what came before."""
        self.other, other.other = other, self
        for data in self._early:
            self.data_received(data)


class _ClientEnd(_End):
    def __init__(self, socket: str) -> None:
        super().__init__()
        self._socket = socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._joining = asyncio.ensure_future(self._join())

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_unix_connection(_End, self._socket)
        self.pair_with(upstream)


async def _serve(socket: str) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _ClientEnd(socket), "127.0.0.1", 0, backlog=1024)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
