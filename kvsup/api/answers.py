"""What turns llama-server's bytes into the client's, and how they are sent."""

from typing import Protocol

from kvsup.api.exchange import Exchange, Header
from kvsup.runtime.upstream import Response


class Answer(Protocol):
    """Turns upstream bytes into the client's; one object an answer."""

    content_type: bytes
    headers: tuple[Header, ...]

    def feed(self, data: bytes) -> bytes:
        """Return what to send for ``data``, empty if nothing yet."""

    async def finish(self) -> bytes:
        """Return what to send at the end."""


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
