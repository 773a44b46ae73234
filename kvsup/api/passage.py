"""One answer on its way from as many llama-servers as it takes to one client.

Here is the loop that every token passes.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from kvsup.api.answers import Answer
from kvsup.api.exchange import SSE, Exchange
from kvsup.api.survival import Survival
from kvsup.errors import Diverged, EngineError, NotResumed, UpstreamError
from kvsup.events import Rescue
from kvsup.llama.attempts import Attempts
from kvsup.llama.defaults import with_members
from kvsup.llama.faults import is_callers_fault
from kvsup.llama.heartbeat import PING
from kvsup.llama.resume import Continue, Mode, Replay, choose, continued_body
from kvsup.llama.seam import Seam
from kvsup.llama.seeding import new_seed, seeded
from kvsup.llama.transcript import Transcript
from kvsup.llama.wire import error_message
from kvsup.runtime.instance import Instance
from kvsup.runtime.keeping import Kept
from kvsup.runtime.upstream import Response, Upstream


class Passage:
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
        self._slot: int | None = None
        """The slot that this attempt names."""
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
        if isinstance(self._how, Continue):
            members = continued_body(self._path, msgspec.json.decode(body), self._seam.transcript)
            body = msgspec.json.encode(members)
        if self._slot is not None:
            body = with_members(body, first={}, last={"id_slot": self._slot})
        return body

    async def _run_warm(self, upstream: Upstream, survival: Survival) -> tuple[Answer, bytes]:
        """Run it, with what is kept of its conversation taken up before, and kept again."""
        self._slot = None
        warmth = self._instance.warmth_of(upstream)
        warmed = warmth and await warmth.before(self._path, self._posted)
        if warmth and not (warmed and warmed.entry):
            self._slot = await warmth.seating.seat(self._path, self._posted)
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
            warmed = await warmth.checkpoint(warmed)
            self._seam.reopen(Replay(), spent_ms=1000 * (time.monotonic() - began_s))
            end = await self._run(upstream, survival)
        warmth.after(warmed, self._seam.transcript.cached_tokens if is_told else None)
        return end

    def _has_read_a_dear_prompt(self, data: bytes, *, began_s: float) -> bool:
        """Say whether the first token is here, of a prompt that must not be read again."""
        if self._is_prompt_dear is None:
            return False
        if self._how is not None or self._seam.has_delivered:
            self._is_prompt_dear = None
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
                error = engine_error(response.status, await response.read_all())
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
            self._answer = self._make_answer(response)
        answer = self._answer

        put = exchange.connection.put

        def delivered(data: bytes) -> bool:
            out = self._fed(data, answer, survival)
            return put(out) if out else True

        try:
            await self._begin(response, answer, survival)
            while await response.pour(delivered):
                paused_s = time.monotonic()
                await exchange.connection.drained()
                self._attempts.paused(time.monotonic() - paused_s)
        except Diverged:
            raise
        except UpstreamError:
            if not seam.is_complete:
                raise
        if not seam.is_complete:
            raise UpstreamError("llama-server ended its stream before its last event")
        return answer

    async def _begin(self, response: Response, answer: Answer, survival: Survival) -> None:
        """Send what comes until the client has a part of it, and the prompt is known to be read."""
        exchange = self._exchange
        began_s = time.monotonic()
        while not exchange.is_started or self._is_prompt_dear is not None:
            if not (data := await response.read()):
                return
            if self._has_read_a_dear_prompt(data, began_s=began_s):
                raise _PromptRead
            if out := self._fed(data, answer, survival):
                if not exchange.is_started:
                    await exchange.start(answer.content_type, headers=answer.headers)
                await exchange.write(out)

    def _fed(self, data: bytes, answer: Answer, survival: Survival) -> bytes:
        """Return what is to be sent for what came of llama-server."""
        if not (data := self._seam.feed(data)):
            return b""
        if data != PING:
            self._attempts.came_s = time.monotonic()
            if not self._attempts.goes_on:
                self._see_whether_it_goes_on(survival)
        try:
            return answer.feed(data)
        except UpstreamError as error:
            raise useless(error) from error

    async def _whole(self, response: Response, survival: Survival) -> tuple[Answer, bytes]:
        """Take an answer that is no stream, once it is there."""
        data = await response.read_all()
        survival.went_on("replayed", 0)
        answer = self._make_answer(response)
        try:
            return answer, answer.feed(data)
        except UpstreamError as error:
            raise useless(error) from error

    def _see_whether_it_goes_on(self, survival: Survival) -> None:
        """Tell that the answer goes on, once anything of it is new."""
        seam = self._seam
        if seam.has_gone_on:
            self._attempts.go_on(seam.n_delivered_tokens, self._attempts.came_s)
            if self._how is not None:
                survival.went_on(_rescue(self._how, seam.n_before), seam.n_before)
            survival.came_further()


class _PromptRead(Exception):  # noqa: N818 - it is no error
    """The prompt is read, and nothing is delivered of the answer: its slot may be saved."""


def _rescue(how: Replay | Continue | None, n_tokens: int) -> Rescue:
    if isinstance(how, Continue):
        return "continued"
    return "resumed" if n_tokens else "replayed"


def useless(error: UpstreamError) -> EngineError:
    """Return what a reader says of an answer that it cannot use: run again it would be the same."""
    return EngineError(str(error))


def engine_error(status: int, body: bytes) -> EngineError:
    """Return an error answer as an exception: some that are the client's have 500 (b11434)."""
    message = error_message(body)
    return EngineError(message, status=400 if is_callers_fault(message) else status, body=body)
