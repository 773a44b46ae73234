"""The one loop from a llama-server's answer to the client's, for every API.

An answer outlives its process: what the client has of it is known (``llama/seam.py``), so it is run
again on the next one, and goes on where it stopped.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec

from kvsup.api.answers import Answer, Unretried, finish
from kvsup.api.exchange import JSON, SSE, Exchange
from kvsup.api.survival import Survival, fingerprint_of, surviving
from kvsup.errors import Diverged, EngineError, NotResumed, UpstreamError
from kvsup.events import Rescue
from kvsup.fitting import Asked, unmet
from kvsup.llama.attempts import Attempts
from kvsup.llama.faults import is_callers_fault
from kvsup.llama.heartbeat import PING
from kvsup.llama.resume import Continue, Mode, Replay, choose, continued_body, n_answers
from kvsup.llama.seam import Seam
from kvsup.llama.seeding import new_seed, seeded
from kvsup.llama.transcript import Transcript
from kvsup.llama.wire import error_message
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
    passage = _Passage(
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
    await finish(exchange, answer, rest + await answer.finish())


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
        raise _engine_error(status, answer)
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


class _Passage:
    """One answer on its way from as many processes as it takes to one client."""

    def __init__(
        self,
        exchange: Exchange,
        instance: Instance,
        *,
        path: str,
        body: Kept,
        n_ends: int,
        content_type: bytes,
        make_answer: Callable[[Response], Answer],
        mode: Mode,
    ) -> None:
        self._exchange = exchange
        self._instance = instance
        self._path = path
        self._kept = body
        self._n_ends = n_ends
        self._seed = new_seed()
        self._headers = ((b"content-type", content_type),)
        self._make_answer = make_answer
        self._mode = mode
        self._seam = self._new_seam()
        self._answer: Answer | None = None
        self._how: Replay | Continue | None = None
        self._attempts = Attempts()
        self._took_s = 0.0
        """How long the last attempt took until it broke off."""
        self._is_prompt_dear: Callable[..., bool] | None = None
        """Says whether a prompt that took so long is worth a file before the answer goes on."""

    def _new_seam(self) -> Seam:
        return Seam(self._path, n_answers=self._n_ends)

    def n_tokens(self) -> int:
        """Return how many tokens of the answer the client has."""
        return self._seam.n_delivered_tokens

    def is_whole(self) -> bool:
        """Say whether nothing more is needed of a llama-server."""
        return self._seam.is_complete

    async def attempt(self, upstream: Upstream, survival: Survival) -> tuple[Answer, bytes]:
        """Run it on ``upstream`` to its end; return its answer and what is to be sent of it yet."""
        began_s = time.monotonic()
        try:
            return await self._run_warm(upstream, survival)
        finally:
            self._took_s = time.monotonic() - began_s

    async def reopen(self, error: UpstreamError) -> bool:
        """Choose how it goes on after ``error``; return False if it cannot."""
        self._attempts.broke_off(self._how, error, self.n_tokens())
        known = self._attempts.facts(self._path, await self._asked(), self._seam.transcript)
        self._how = choose(self._mode, known)
        if self._how is not None:
            self._seam.reopen(self._how, spent_ms=1000 * self._took_s)
            return True
        if self._exchange.is_started:
            return False
        self._seam, self._answer = self._new_seam(), None
        return True

    async def _body(self) -> bytes:
        """Return the request with its seed: the same each time."""
        return seeded(self._path, await self._kept.read(), seed=self._seed)

    async def _asked(self) -> Mapping[str, Any]:
        """Return the request as far as it says how an answer goes on; a form says nothing."""
        transcript = self._seam.transcript
        if transcript.is_opaque or not transcript.has_delivered:
            return {}
        asked: Mapping[str, Any] = msgspec.json.decode(await self._body())
        return asked

    async def _posted(self) -> bytes:
        """Return what this attempt sends."""
        body = await self._body()
        if not isinstance(self._how, Continue):
            return body
        members = continued_body(self._path, msgspec.json.decode(body), self._seam.transcript)
        return msgspec.json.encode(members)

    async def _run_warm(self, upstream: Upstream, survival: Survival) -> tuple[Answer, bytes]:
        """Run it, with what is kept of its conversation taken up before, and kept again."""
        warmth = self._instance.warmth_of(upstream)
        warmed = warmth and await warmth.before(self._path, self._posted)
        if not warmth or not warmed:
            return await self._run(upstream, survival)
        if warmed.entry is not None:
            self._exchange.restored(warmed.n_expected)
        is_told = warmed.entry is not None and self._how is None
        began_s = time.monotonic()
        self._is_prompt_dear = partial(warmth.is_prompt_dear, warmed)
        try:
            end = await self._run(upstream, survival)
        except _PromptRead:
            await warmth.checkpoint(warmed)
            self._seam.reopen(Replay(), spent_ms=1000 * (time.monotonic() - began_s))
            end = await self._run(upstream, survival)
        warmth.after(warmed, self._seam.transcript.cached_tokens if is_told else None)
        return end

    def _has_read_a_dear_prompt(self, data: bytes, *, began_s: float) -> bool:
        """Say whether the first token is here, of a prompt that must not be read again."""
        if self._is_prompt_dear is None or self._how is not None or self._seam.has_delivered:
            return False
        first = Transcript(self._path)
        first.add(data)
        if not first.has_delivered:
            return False
        is_dear, self._is_prompt_dear = (
            self._is_prompt_dear(took_s=time.monotonic() - began_s),
            None,
        )
        return is_dear

    async def _run(self, upstream: Upstream, survival: Survival) -> tuple[Answer, bytes]:
        async with upstream.stream(
            "POST", self._path, headers=self._headers, body=self._posted
        ) as response:
            if response.status >= 400:
                error = _engine_error(response.status, await response.read_all())
                if self._how is not None and self._seam.has_delivered:
                    raise NotResumed(f"llama-server does not go on with this answer: {error}")
                raise error
            if dict(response.headers).get(b"content-type", b"").startswith(SSE):
                return await self._flow(response, survival), b""
            return await self._whole(response, survival)

    async def _flow(self, response: Response, survival: Survival) -> Answer:
        """Send the events of ``response``; those that came together leave together."""
        seam, exchange = self._seam, self._exchange
        if self._answer is None:
            self._answer = Unretried(self._make_answer(response))
        answer = self._answer
        began_s = time.monotonic()
        try:
            while data := await response.read():
                if self._has_read_a_dear_prompt(data, began_s=began_s):
                    raise _PromptRead
                if not (data := seam.feed(data)):
                    continue
                came_s = time.monotonic()
                if data != PING:
                    self._note(came_s, survival)
                if out := answer.feed(data):
                    if not exchange.is_started:
                        await exchange.start(answer.content_type, headers=answer.headers)
                    await exchange.write(out)
                    self._attempts.paused(time.monotonic() - came_s)
        except Diverged:
            raise
        except UpstreamError:
            if not seam.is_complete:
                raise
        if not seam.is_complete:
            raise UpstreamError("llama-server ended its stream before its last event")
        return answer

    async def _whole(self, response: Response, survival: Survival) -> tuple[Answer, bytes]:
        """Take an answer that is no stream, once it is there."""
        data = await response.read_all()
        survival.went_on("replayed", 0)
        answer = Unretried(self._make_answer(response))
        return answer, answer.feed(data)

    def _note(self, now_s: float, survival: Survival) -> None:
        """Note that more was delivered; tell that the answer goes on once any of it is new."""
        seam, attempts = self._seam, self._attempts
        if not attempts.goes_on and seam.has_gone_on:
            attempts.go_on(seam.n_delivered_tokens, now_s)
            if self._how is not None:
                survival.went_on(_rescue(self._how, seam.n_before), seam.n_before)
            survival.came_further()
        attempts.came(now_s)


class _PromptRead(Exception):  # noqa: N818 - it is no error
    """The prompt is read, and nothing is delivered of the answer: its slot may be saved."""


def _rescue(how: Replay | Continue | None, n_tokens: int) -> Rescue:
    if isinstance(how, Continue):
        return "continued"
    return "resumed" if n_tokens else "replayed"


def _engine_error(status: int, body: bytes) -> EngineError:
    """Return an error answer as an exception: some that are the client's have 500 (b11434)."""
    message = error_message(body)
    return EngineError(message, status=400 if is_callers_fault(message) else status, body=body)
