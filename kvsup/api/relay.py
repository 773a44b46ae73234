"""The one way from a request to its answer, for every API.

An answer outlives its process: what the client has of it is known (``llama/seam.py``), so it is run
again on the next one, and goes on where it stopped (``api/passage.py``).
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from kvsup.api.answers import Answer, finish
from kvsup.api.exchange import JSON, Exchange
from kvsup.api.passage import Passage, engine_error, useless
from kvsup.api.survival import Survival, fingerprint_of, surviving
from kvsup.errors import UpstreamError
from kvsup.fitting import Asked, unmet
from kvsup.llama.resume import n_answers
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.host import n_processors
from kvsup.runtime.instance import Instance
from kvsup.runtime.keeping import Kept
from kvsup.runtime.upstream import Response, Upstream

T = TypeVar("T")


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
    async with fleet.lease(
        name,
        asked=asked,
        keep_alive_s=keep_alive_s,
        slots=slots,
        priority=exchange.priority,
        tell=exchange.came_through,
    ) as instance:
        await instance.ready()
        plan = instance.plan
        for note in unmet(
            plan.model, asked, trained_tokens=plan.trained_tokens, n_processors=n_processors()
        ):
            exchange.note(note)
        for note in plan.given_up:
            exchange.note(f"memory was short: {note}")
        yield instance


async def relay(
    exchange: Exchange,
    instance: Instance,
    *,
    path: str,
    body: Kept,
    make_answer: Callable[[Response], Answer],
    content_type: bytes = JSON,
) -> None:
    """Post ``body`` to the leased ``instance`` and send its answer to the client.

    It is read again for each attempt: a large one is not in memory while it is answered. A seed is
    added where it has none. If the process dies, the request goes on in its successor,
    unseen by the client but for a pause, as ``resume`` of the model says.

    Raises:
        EngineError: llama-server answered with an error.
        Poisoned: the process dies of it.
        UpstreamError: it broke off and cannot go on.
        InstanceError: no process comes up.
    """
    fingerprint, n_ends = await _known(path, body)
    passage = Passage(
        exchange,
        instance,
        path=path,
        body=body,
        n_ends=n_ends,
        content_type=content_type,
        make_answer=make_answer,
        mode=instance.plan.model.resume,
    )
    answer, rest = await _carried(
        instance,
        path,
        fingerprint,
        passage.attempt,
        reopen=passage.reopen,
        n_tokens=passage.n_tokens,
        is_whole=passage.is_whole,
    )
    # It runs no more: what it asks for its end, and a client that takes its time, is another thing.
    try:
        rest += await answer.finish()
    except UpstreamError as error:
        raise useless(error) from error
    await finish(exchange, answer, rest)


async def pass_on(
    instance: Instance, *, target: str, body: bytes, send: Callable[[Upstream], Awaitable[None]]
) -> None:
    """Let ``send`` ask as it likes; it is not run again, but known if the process dies of it.

    ``target`` is a path with its query.

    Raises:
        Poisoned: the process dies of it.
        UpstreamError: it broke off.
        InstanceError: no process comes up.
    """

    async def attempt(upstream: Upstream, _survival: Survival) -> None:
        await send(upstream)

    path, _, _ = target.partition("?")
    await _carried(instance, path, fingerprint_of(target, body), attempt, reopen=_never)


async def ask(instance: Instance, *, path: str, body: bytes) -> bytes:
    """Post ``body`` to the leased ``instance`` and return its whole answer; raises as ``relay``."""

    async def attempt(upstream: Upstream, _survival: Survival) -> tuple[int, bytes]:
        return await upstream.fetch("POST", path, body=body)

    status, answer = await _carried(instance, path, fingerprint_of(path, body), attempt)
    if status >= 400:
        raise engine_error(status, answer)
    return answer


async def _known(path: str, body: Kept) -> tuple[str, int]:
    """Return the fingerprint of a request, and how many ends its stream will have."""
    data = await body.read()
    return fingerprint_of(path, data), n_answers(path, data)


async def _always(_error: UpstreamError) -> bool:
    return True


async def _never(_error: UpstreamError) -> bool:
    return False


async def _carried(
    instance: Instance,
    path: str,
    fingerprint: str,
    attempt: Callable[[Upstream, Survival], Awaitable[T]],
    *,
    reopen: Callable[[UpstreamError], Awaitable[bool]] = _always,
    n_tokens: Callable[[], int] = lambda: 0,
    is_whole: Callable[[], bool] = lambda: False,
) -> T:
    """Return what ``attempt`` does, on as many processes as it takes; ``reopen`` says if it may."""
    with surviving(instance, path, fingerprint, n_tokens=n_tokens, is_whole=is_whole) as survival:
        upstream = await survival.upstream()
        while True:
            try:
                with survival.on(upstream):
                    return await attempt(upstream, survival)
            except UpstreamError as error:  # noqa: PERF203 - once a process
                await survival.see_end(error, upstream)
                if not await reopen(error):
                    raise survival.lost(error) from error
                upstream = await survival.upstream()
