"""``/api/chat`` and ``/api/generate``: check, lease, build the prompt, relay."""

import time
from collections.abc import Callable

import msgspec

from kvsup.api.exchange import Exchange
from kvsup.api.jobs import ChatJob, GenerateJob, KeptCall
from kvsup.api.naming import check_grammar
from kvsup.api.relay import leased, relay
from kvsup.errors import EngineError, RequestError, UpstreamError
from kvsup.fitting import Asked
from kvsup.llama.wire import exceeds_context
from kvsup.ollama.options import load_time_options
from kvsup.ollama.pieces import BROKEN_OFF
from kvsup.ollama.requests import decode_chat, decode_generate
from kvsup.ollama.to_llama import LlamaCall
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.instance import Instance

_BROKEN = "an error was encountered while running the model"
"""Ollama's text for a stream that breaks (llm/llama_server.go, 2026-08)."""


class GenerationHandlers:
    """The endpoints that generate, on one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def chat(self, exchange: Exchange) -> None:
        """Answer ``POST /api/chat``."""
        await self._serve(exchange, _chat_job)

    async def generate(self, exchange: Exchange) -> None:
        """Answer ``POST /api/generate``."""
        await self._serve(exchange, _generate_job)

    async def _serve(
        self, exchange: Exchange, make_job: Callable[[bytes], ChatJob | GenerateJob]
    ) -> None:
        """Unload or load the model, or relay an answer, as the request asks.

        Hold nothing large here but ``job``, which forgets it: this waits in the queue, and while
        the answer streams.
        """
        started_ns = time.monotonic_ns()
        job = make_job(exchange.body)
        check_grammar(job.request.model)
        plan = self._fleet.instance(job.request.model).plan
        if job.request.is_unload:
            self._fleet.unload(job.request.model, "asked by a client")
            await exchange.answer(job.bare(done=True, done_reason="unload"))
            return
        job.check(plan)
        is_load_only, is_render_only = job.request.is_load_only, job.request.debug_render_only
        asked = Asked(**load_time_options(job.request.options))
        body = await exchange.keep(exchange.body)
        if body.is_on_disk:
            job.forget()
        async with leased(
            exchange,
            self._fleet,
            job.request.model,
            asked=asked,
            keep_alive_s=job.request.keep_alive_s,
            slots=0 if is_load_only or is_render_only else 1,
        ) as instance:
            load_ns = time.monotonic_ns() - started_ns
            if is_load_only:
                await exchange.answer(job.bare(done=True, done_reason="load"))
                return
            if body.is_on_disk:
                job = make_job(await body.read())
                job.check(plan)
            if is_render_only:
                await exchange.answer(await job.rendered(instance, await job.call(instance)))
                return

            async def post(call: KeptCall) -> None:
                await relay(
                    exchange,
                    instance,
                    path=call.path,
                    body=call.body,
                    make_answer=lambda _response: job.answer(
                        instance,
                        call,
                        started_ns=started_ns,
                        load_ns=load_ns,
                        beside=exchange.beside,
                    ),
                )

            call = await _kept(exchange, await job.call(instance))
            job.forget()
            try:
                try:
                    await post(call)
                except EngineError as error:
                    if exchange.is_started:
                        raise
                    await post(await _shorter(exchange, instance, job, call, error))
            except UpstreamError as error:
                text = _BROKEN if exchange.is_started else BROKEN_OFF
                raise UpstreamError(f"{text}: {error}") from error


def _generate_job(body: bytes) -> GenerateJob:
    return GenerateJob(decode_generate(body))


def _chat_job(body: bytes) -> ChatJob:
    request = decode_chat(body)
    if not request.model:
        raise RequestError("model is required")
    return ChatJob(request)


async def _kept(exchange: Exchange, call: LlamaCall) -> KeptCall:
    return KeptCall(call.path, await exchange.keep(msgspec.json.encode(call.body)))


async def _shorter(
    exchange: Exchange,
    instance: Instance,
    job: ChatJob | GenerateJob,
    call: KeptCall,
    error: EngineError,
) -> KeptCall:
    """Return what is left of a call whose prompt does not fit; raise any other ``error``."""
    is_too_long = error.body is not None and exceeds_context(error.body)
    shorter = await job.shorter(instance, call) if is_too_long else None
    if shorter is None:
        raise error
    n_ctx = instance.plan.model.num_ctx
    exchange.note(f"the prompt did not fit num_ctx {n_ctx}; a part of it was left out")
    return await _kept(exchange, shorter)
