"""OpenAI's, Anthropic's and llama-server's own APIs: bytes pass through to the model's instance.

Of a request only the model's name and what kvsup owns are read (``api/wishes.py``); members are
put before and behind its own where the model has settings, or the answer must be steered or
mended. Streams of chats and completions stay the bytes that llama-server sent.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote, unquote

import msgspec

from kvsup.anthropic import requests as anthropic_requests
from kvsup.api import listing
from kvsup.api.answers import copy
from kvsup.api.errors import ANTHROPIC, OPENAI, ErrorShape
from kvsup.api.exchange import JSON, SSE, SSE_HEADERS, Exchange
from kvsup.api.relay import leased, pass_on, relay
from kvsup.api.wishes import Wishes, read_wishes
from kvsup.errors import ModelNotFound, RequestError
from kvsup.llama.defaults import sampling_members, with_defaults, with_members, with_prelude
from kvsup.llama.steering import PassAnswer, Steered, steer
from kvsup.mending import Mend, Prepared
from kvsup.ollama import catalog
from kvsup.ollama.names import full_name
from kvsup.ollama.options import given_fields
from kvsup.openai import forms, transcriptions
from kvsup.openai import requests as openai_requests
from kvsup.openai.addresses import Addressed, Image, names_an_address
from kvsup.plan import Plan
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.keeping import Kept
from kvsup.runtime.upstream import Response, Upstream

FetchImage = Callable[[str], Awaitable[Image]]
"""Returns the image at an address."""

_MAX_IMAGES = 16
"""Addresses in one request."""

_UPSTREAM = "/upstream/"

_FORWARDED = frozenset({b"content-type", b"accept", b"anthropic-version", b"anthropic-beta"})
"""Request headers that go on; others are the hop's own, steer the engine, or are secret."""

_NO_ADDRESSES = "image URLs are not currently supported, please use base64 encoded data instead"
"""Ollama's text (openai/openai.go, 2026-08)."""

_GENERATING = frozenset(
    {
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/completion", "/completions",
        "/infill",
    }
)  # fmt: skip

_EMBEDDING = ("/v1/embeddings", "/embeddings", "/embedding")

_SLOTLESS = ("/tokenize", "/detokenize", "/apply-template", "/input_tokens")
"""Ends of paths whose requests take no slot."""

CANONICAL = {
    path.removeprefix("/v1"): path
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/audio/transcriptions")
}
"""Paths that clients use whose base URL lacks ``/v1``, and which mean the same."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one request asks of which model, and how its answer is mended."""

    path: str
    name: str
    wishes: Wishes
    form_type: str
    """Its content type if it is a form, else empty."""
    body: Kept
    """As ``dialect.prepare`` wants it, with its images; without the model's settings."""
    make_mend: Callable[[int], Mend] | None
    is_folded: bool


@dataclass(frozen=True, slots=True)
class Dialect:
    """An API that llama-server speaks: how it says errors, and what kvsup checks and mends."""

    shape: ErrorShape
    prepare: Callable[[str, bytes], Prepared]
    """Of a path and a body."""


def _prepare_openai(path: str, body: bytes) -> Prepared:
    return openai_requests.prepare(path, body, now_s=int(time.time()))


def _prepare_native(_path: str, _body: bytes) -> Prepared:
    return Prepared()


OPENAI_DIALECT = Dialect(OPENAI, _prepare_openai)
ANTHROPIC_DIALECT = Dialect(ANTHROPIC, anthropic_requests.prepare)
NATIVE_DIALECT = Dialect(OPENAI, _prepare_native)


class PassthroughHandlers:
    """llama-server's own APIs on one fleet; images by address where ``fetch`` is given."""

    def __init__(self, fleet: Fleet, *, fetch: FetchImage | None) -> None:
        self._fleet = fleet
        self._fetch = fetch

    def of(self, dialect: Dialect) -> Callable[[Exchange], Awaitable[None]]:
        """Return what answers a POST of ``dialect`` from the model that its body names."""

        async def passed(exchange: Exchange) -> None:
            await self._pass(exchange, dialect)

        return passed

    async def models(self, exchange: Exchange) -> None:
        """Answer ``GET /v1/models``."""
        entries = [listing.catalog_entry(plan) for plan in self._fleet.plans()]
        await exchange.answer(msgspec.json.encode(catalog.openai_models(entries)))

    async def model(self, exchange: Exchange) -> None:
        """Answer ``GET /v1/models/NAME``."""
        name = exchange.request.path_params["name"]
        entry = listing.catalog_entry(self._fleet.instance(name).plan)
        answer = {**catalog.openai_model(entry), "id": name}
        await exchange.answer(msgspec.json.encode(answer))

    async def upstream(self, exchange: Exchange) -> None:
        """Answer ``/upstream/MODEL/PATH`` by the instance's own ``/PATH``."""
        request = exchange.request
        name, path = self._split(_raw_path(exchange).removeprefix(_UPSTREAM))
        target = f"{path}?{request.url.query}" if request.url.query else path
        headers = [(k, v) for k, v in request.headers.raw if k in _FORWARDED]
        is_post = request.method == "POST"
        slots = 1 if is_post and not path.startswith("/slots/") else 0
        body = exchange.body
        if is_post and not forms.is_form(request.headers.get("content-type", "")):
            body = await self._with_images(body)
        steered = steer(path, body) if is_post else None
        body = steered.body if steered else body
        async with self._fleet.lease(
            name, slots=slots, priority=exchange.priority, tell=exchange.came_through
        ) as instance:

            async def send(upstream: Upstream) -> None:
                async with upstream.stream(
                    request.method, target, headers=headers, body=body
                ) as response:
                    mended = steered.make_answer() if steered and response.status == 200 else None
                    passed = _Passed(response, mended)
                    await copy(exchange, response, passed, status=response.status)

            if is_post:
                await pass_on(instance, target=target, body=body, send=send)
            else:
                await send(await instance.ready())

    async def _pass(self, exchange: Exchange, dialect: Dialect) -> None:
        """Hold nothing large here: this waits in the queue, and while the answer streams."""
        asked = await self._asked(exchange, dialect)
        plan = self._fleet.instance(asked.name).plan
        slots = min(asked.wishes.n_answers, plan.model.num_parallel)
        async with leased(
            exchange,
            self._fleet,
            asked.name,
            asked=asked.wishes.asked,
            keep_alive_s=asked.wishes.keep_alive_s,
            slots=0 if asked.path.endswith(_SLOTLESS) else slots,
        ) as instance:
            body, make_steered = await _settled(exchange, asked, instance.plan)
            await relay(
                exchange,
                instance,
                path=quote(asked.path),
                body=body,
                content_type=asked.form_type.encode("latin-1") or JSON,
                make_answer=lambda response: _Passed(
                    response,
                    None if make_steered is None else make_steered(),
                    None if asked.make_mend is None else asked.make_mend(instance.plan.slot_tokens),
                    is_folded=asked.is_folded,
                ),
            )

    async def _asked(self, exchange: Exchange, dialect: Dialect) -> "_Asked":
        """Return what a request asks, checked; keep its body."""
        path: str = exchange.request.scope["path"]
        path = CANONICAL.get(path, path)
        content_type = exchange.request.headers.get("content-type", "")
        form_type = content_type if forms.is_form(content_type) else ""
        wishes = read_wishes(exchange.body, exchange.request.headers)
        name = self._name(wishes.model, is_native=dialect is NATIVE_DIALECT)
        body, prepare = exchange.body, _prepare_native if form_type else dialect.prepare
        prepared = prepare(path, body)
        if prepared.instead is not None:
            path, body = prepared.instead.path, prepared.instead.body
        _check_can(path, self._fleet.instance(name).plan, wishes)
        if not form_type:
            body = await self._with_images(body)
        return _Asked(
            path,
            name=name,
            wishes=wishes,
            form_type=form_type,
            body=await exchange.keep(with_members(body, first={}, last=prepared.forced)),
            make_mend=prepared.make_mend,
            is_folded=prepared.instead is not None and prepared.instead.is_folded,
        )

    async def _with_images(self, body: bytes) -> bytes:
        """Return ``body`` with the images in it that it names by address, if any."""
        if not names_an_address(body):
            return body
        if self._fetch is None:
            raise RequestError(_NO_ADDRESSES)
        addressed = Addressed(body)
        if len(addressed.addresses) > _MAX_IMAGES:
            raise RequestError(f"a request may name {_MAX_IMAGES} images by URL")
        fetched = {address: await self._fetch(address) for address in addressed.addresses}
        return addressed.with_images(fetched)

    def _name(self, name: str | None, *, is_native: bool) -> str:
        """Return a model's name; llama-server's own clients may leave out the only one."""
        if name:
            return name
        plans = self._fleet.plans()
        if is_native and len(plans) == 1:
            return plans[0].name
        raise RequestError("model is required")

    def _split(self, rest: str) -> tuple[str, str]:
        """Return model and path; a model's name may itself hold slashes."""
        parts = rest.split("/")
        for count in range(1, len(parts) + 1):
            name = unquote("/".join(parts[:count]))
            try:
                self._fleet.instance(name)
            except ModelNotFound:
                continue
            return name, "/" + "/".join(parts[count:])
        raise ModelNotFound(unquote(parts[0]))


class _Passed:
    """An answer whose bytes go on as they came, or as the steering and the mend change them."""

    def __init__(
        self,
        response: Response,
        steered: PassAnswer | None,
        mend: Mend | None = None,
        *,
        is_folded: bool = False,
    ) -> None:
        fields = dict(response.headers)
        mended_type = JSON if is_folded else steered.content_type if steered else None
        self.content_type = mended_type or fields.get(b"content-type", JSON)
        self.headers = SSE_HEADERS if self.content_type.startswith(SSE) else ()
        self._steered = steered
        self._mend = mend

    def feed(self, data: bytes) -> bytes:
        """Return what ``data`` becomes."""
        if self._steered is not None:
            data = self._steered.feed(data)
        return data if self._mend is None else self._mend.feed(data)

    async def finish(self) -> bytes:
        """Return what was held back."""
        rest = b"" if self._steered is None else self._steered.finish()
        return rest if self._mend is None else self._mend.feed(rest) + self._mend.finish()


def _check_can(path: str, plan: Plan, wishes: Wishes) -> None:
    """Raise as Ollama does for what llama-server drops silently, or answers 501."""
    can = listing.capabilities(plan)
    if wishes.has_tools and "tools" not in can:
        raise RequestError(f"{full_name(wishes.model or plan.name)} does not support tools")
    if path.endswith("/audio/transcriptions") and "audio" not in can:
        raise RequestError(f'"{wishes.model}" does not support audio')
    if path in _GENERATING and "completion" not in can:
        raise RequestError(f'"{wishes.model}" does not support chat')
    if path in _EMBEDDING and "embedding" not in can:
        raise RequestError(
            f'"{wishes.model}" does not support embeddings; set embedding = "on" in its file'
        )


def _steer_form(body: bytes, content_type: str) -> Steered | None:
    form = transcriptions.asked_as_json(body, content_type)
    return None if form is None else Steered(form, transcriptions.TextAnswer)


async def _settled(
    exchange: Exchange, asked: _Asked, plan: Plan
) -> tuple[Kept, Callable[[], PassAnswer] | None]:
    """Return the body to post, with the settings of ``plan``, and what undoes its steering."""
    body = await asked.body.read()
    if asked.form_type:
        steered = _steer_form(body, asked.form_type)
    else:
        body = _with_settings(asked.path, body, plan, wishes=asked.wishes)
        steered = steer(asked.path, body)
    if steered is None:
        return await exchange.keep(body), None
    return await exchange.keep(steered.body), steered.make_answer


def _with_settings(path: str, body: bytes, plan: Plan, *, wishes: Wishes) -> bytes:
    """Return the body with the model's settings."""
    options = {**plan.model.options, **wishes.options}
    fields = given_fields(options, num_ctx=plan.model.num_ctx)
    body = with_defaults(body, sampling_members(path, fields))
    history = [{"role": one.role, "content": one.content} for one in plan.model.messages]
    if plan.model.system is None and not history:
        return body
    return with_prelude(path, body, plan.model.system, history)


def _raw_path(exchange: Exchange) -> str:
    """Return the path as it was sent: decoded it could not be sent on."""
    raw: bytes = exchange.request.scope["raw_path"]
    return raw.decode("latin-1")
