"""The one loop from a llama-server's answer to the client's, for every API."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from kvsup.api.exchange import JSON, Exchange, Header
from kvsup.errors import EngineError, UpstreamError
from kvsup.fitting import Asked, unmet
from kvsup.llama.faults import is_callers_fault
from kvsup.llama.wire import error_message
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.host import n_processors
from kvsup.runtime.instance import Instance
from kvsup.runtime.upstream import Response, Upstream

T = TypeVar("T")


class Answer(Protocol):
    """Turns upstream bytes into the client's; one object an attempt."""

    content_type: bytes
    headers: tuple[Header, ...]

    def feed(self, data: bytes) -> bytes:
        """Return what to send for ``data``, empty if nothing yet."""

    async def finish(self) -> bytes:
        """Return what to send at the end."""


@asynccontextmanager
async def leased(
    exchange: Exchange,
    fleet: Fleet,
    name: str,
    *,
    asked: Asked,
    keep_alive_s: float | None,
    slots: int,
) -> AsyncIterator[Instance]:
    """Yield the instance that serves a request once it is ready; note what it does not grant.

    Arguments and errors as for ``Fleet.lease``.
    """
    async with fleet.lease(name, asked=asked, keep_alive_s=keep_alive_s, slots=slots) as instance:
        await instance.ready()
        plan = instance.plan
        for note in unmet(
            plan.model, asked, trained_tokens=plan.trained_tokens, n_processors=n_processors()
        ):
            exchange.note(note)
        yield instance


async def relay(
    exchange: Exchange,
    instance: Instance,
    *,
    path: str,
    body: bytes,
    make_answer: Callable[[Response], Answer],
    content_type: bytes = JSON,
) -> None:
    """Post ``body`` to the leased ``instance`` and send its answer to the client.

    If the process dies before the client has had a byte, the request is posted once more to its
    successor, unseen by the client.

    Raises:
        EngineError: llama-server answered with an error.
        UpstreamError: it broke off.
        InstanceError: it does not come up.
    """
    await _replayed(
        instance,
        lambda upstream: _attempt(
            exchange, upstream, path, body, content_type=content_type, make_answer=make_answer
        ),
        may_repeat=lambda: not exchange.is_started,
    )


async def ask(instance: Instance, *, path: str, body: bytes) -> bytes:
    """Post ``body`` to the leased ``instance`` and return its whole answer.

    Repeated and raising as ``relay``.
    """
    status, answer = await _replayed(
        instance,
        lambda upstream: upstream.fetch("POST", path, body=body),
        may_repeat=lambda: True,
    )
    if status >= 400:
        raise _engine_error(status, answer)
    return answer


async def _replayed(
    instance: Instance,
    attempt: Callable[[Upstream], Awaitable[T]],
    *,
    may_repeat: Callable[[], bool],
) -> T:
    """Return what ``attempt`` does; if the process dies under it, try once on its successor."""
    upstream = await instance.ready()
    try:
        return await attempt(upstream)
    except UpstreamError:
        if not may_repeat():
            raise
        await instance.end_of(upstream)
        return await attempt(await instance.ready())


async def _attempt(
    exchange: Exchange,
    upstream: Upstream,
    path: str,
    body: bytes,
    *,
    content_type: bytes,
    make_answer: Callable[[Response], Answer],
) -> None:
    headers = ((b"content-type", content_type),)
    async with upstream.stream("POST", path, headers=headers, body=body) as response:
        if response.status >= 400:
            raise _engine_error(response.status, await response.read_all())
        await copy(exchange, response, make_answer(response))


async def copy(
    exchange: Exchange, response: Response, answer: Answer, *, status: int = 200
) -> None:
    """Send what ``answer`` makes of ``response``; events that came together leave together."""
    while data := await response.read():
        out = answer.feed(data)
        if out:
            if not exchange.is_started:
                await exchange.start(answer.content_type, status=status, headers=answer.headers)
            await exchange.write(out)
    rest = await answer.finish()
    if exchange.is_started:
        await exchange.end(rest)
    else:
        await exchange.answer(
            rest, status=status, content_type=answer.content_type, headers=answer.headers
        )


def _engine_error(status: int, body: bytes) -> EngineError:
    """Return an error answer as an exception: some that are the client's have 500 (b11434)."""
    message = error_message(body)
    return EngineError(message, status=400 if is_callers_fault(message) else status, body=body)
