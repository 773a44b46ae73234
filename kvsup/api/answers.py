"""What turns llama-server's bytes into the client's, and how they are sent."""

from typing import Protocol

from kvsup.api.exchange import Exchange, Header
from kvsup.errors import EngineError, UpstreamError
from kvsup.runtime.upstream import Response


class Answer(Protocol):
    """Turns upstream bytes into the client's; one object an answer."""

    content_type: bytes
    headers: tuple[Header, ...]

    def feed(self, data: bytes) -> bytes:
        """Return what to send for ``data``, empty if nothing yet."""

    async def finish(self) -> bytes:
        """Return what to send at the end."""


class Unretried:
    """An answer that its reader cannot use: an error of llama-server, and no broken connection.

    Run again it would be the same; and what was fed to a reader once is not fed to it twice.
    """

    def __init__(self, answer: Answer) -> None:
        self.content_type = answer.content_type
        self.headers = answer.headers
        self._answer = answer

    def feed(self, data: bytes) -> bytes:
        """Return what to send for ``data``; raises ``EngineError``."""
        try:
            return self._answer.feed(data)
        except UpstreamError as error:
            raise EngineError(str(error)) from error

    async def finish(self) -> bytes:
        """Return what to send at the end; raises ``EngineError``."""
        try:
            return await self._answer.finish()
        except UpstreamError as error:
            raise EngineError(str(error)) from error


async def copy(
    exchange: Exchange, response: Response, answer: Answer, *, status: int = 200
) -> None:
    """Send what ``answer`` makes of ``response``, as it comes."""
    while data := await response.read():
        out = answer.feed(data)
        if out:
            if not exchange.is_started:
                await exchange.start(answer.content_type, status=status, headers=answer.headers)
            await exchange.write(out)
    await finish(exchange, answer, await answer.finish(), status=status)


async def finish(exchange: Exchange, answer: Answer, rest: bytes, *, status: int = 200) -> None:
    """Send the end of an answer, which may be all of it."""
    if exchange.is_started:
        await exchange.end(rest)
    else:
        await exchange.answer(
            rest, status=status, content_type=answer.content_type, headers=answer.headers
        )
