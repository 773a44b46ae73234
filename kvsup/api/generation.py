"""``/api/chat`` and ``/api/generate``: check, lease, build the prompt, relay."""

import time

import msgspec

from kvsup.api.exchange import Exchange
from kvsup.api.jobs import ChatJob, GenerateJob
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
        request = decode_chat(exchange.body)
        if not request.model:
            raise RequestError("model is required")
        await self._serve(exchange, ChatJob(request))

    async def generate(self, exchange: Exchange) -> None:
        """Answer ``POST /api/generate``."""
        await self._serve(exchange, GenerateJob(decode_generate(exchange.body)))

    async def _serve(self, exchange: Exchange, job: ChatJob | GenerateJob) -> None:
        """Unload or load the model, or relay an answer, as the request asks."""
        started_ns = time.monotonic_ns()
        request = job.request
        check_grammar(request.model)
        plan = self._fleet.instance(request.model).plan
        if request.is_unload:
            self._fleet.unload(request.model, "asked by a client")
            await exchange.answer(job.bare(done=True, done_reason="unload"))
            return
        job.check(plan)
        asked = Asked(**load_time_options(request.options))
        async with leased(
            exchange,
            self._fleet,
            request.model,
            asked=asked,
            keep_alive_s=request.keep_alive_s,
            slots=0 if request.is_load_only or request.debug_render_only else 1,
        ) as instance:
            load_ns = time.monotonic_ns() - started_ns
            if request.is_load_only:
                await exchange.answer(job.bare(done=True, done_reason="load"))
                return
            call = await job.call(instance)
            if request.debug_render_only:
                await exchange.answer(await job.rendered(instance, call))
                return

            async def post(call: LlamaCall) -> None:
                await relay(
                    exchange,
                    instance,
                    path=call.path,
                    body=msgspec.json.encode(call.body),
                    make_answer=lambda _response: job.answer(
                        instance,
                        call,
                        started_ns=started_ns,
                        load_ns=load_ns,
                        queued=exchange.queued,
                    ),
                )

            try:
                try:
                    await post(call)
                except EngineError as error:
                    await post(await _shorter(exchange, instance, job, call, error))
            except UpstreamError as error:
                text = _BROKEN if exchange.is_started else BROKEN_OFF
                raise UpstreamError(f"{text}: {error}") from error


async def _shorter(
    exchange: Exchange,
    instance: Instance,
    job: ChatJob | GenerateJob,
    call: LlamaCall,
    error: EngineError,
) -> LlamaCall:
    """Return what is left of a call whose prompt does not fit; raise any other ``error``."""
    is_too_long = error.body is not None and exceeds_context(error.body)
    shorter = await job.shorter(instance, call) if is_too_long else None
    if shorter is None:
        raise error
    n_ctx = instance.plan.model.num_ctx
    exchange.note(f"the prompt did not fit num_ctx {n_ctx}; a part of it was left out")
    return shorter
