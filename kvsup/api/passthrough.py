"""``/v1/*`` and ``/upstream/MODEL/*``: bytes pass through; only the model's name is read."""

from collections.abc import Callable
from urllib.parse import unquote

import msgspec

from kvsup.api import listing
from kvsup.api.exchange import JSON, SSE, Exchange, Header
from kvsup.api.relay import copy, relay
from kvsup.errors import ModelNotFound, RequestError
from kvsup.llama.steering import PassAnswer, steer
from kvsup.ollama import catalog
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.upstream import Response

_UPSTREAM = "/upstream/"

_FORWARDED = frozenset({b"content-type", b"accept", b"anthropic-version", b"anthropic-beta"})
"""Request headers that go on; others are the hop's own, steer the engine, or are secret."""

_SSE_HEADERS: tuple[Header, ...] = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class _Target(msgspec.Struct):
    model: str | None = None


_target = msgspec.json.Decoder(_Target).decode


class PassthroughHandlers:
    """llama-server's own APIs on one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def v1(self, exchange: Exchange) -> None:
        """Answer ``POST /v1/…`` from the instance that the body's ``model`` names."""
        path = _raw_path(exchange)
        name = _model_name(exchange.body)
        self._fleet.instance(name)
        steered = steer(path, exchange.body)
        async with self._fleet.lease(name) as instance:
            await relay(
                exchange,
                instance,
                path=path,
                body=exchange.body if steered is None else steered.body,
                make_answer=lambda response: _Passed(
                    response, None if steered is None else steered.make_answer()
                ),
            )

    async def models(self, exchange: Exchange) -> None:
        """Answer ``GET /v1/models``."""
        entries = [listing.catalog_entry(plan) for plan in self._fleet.plans()]
        await exchange.answer(msgspec.json.encode(catalog.openai_models(entries)))

    async def model(self, exchange: Exchange) -> None:
        """Answer ``GET /v1/models/NAME``."""
        instance = self._fleet.instance(exchange.request.path_params["name"])
        entry = listing.catalog_entry(instance.plan)
        await exchange.answer(msgspec.json.encode(catalog.openai_model(entry)))

    async def upstream(self, exchange: Exchange) -> None:
        """Answer ``/upstream/MODEL/PATH`` by the instance's own ``/PATH``."""
        request = exchange.request
        name, path = self._split(_raw_path(exchange).removeprefix(_UPSTREAM))
        target = f"{path}?{request.url.query}" if request.url.query else path
        headers = [(k, v) for k, v in request.headers.raw if k in _FORWARDED]
        is_post = request.method == "POST"
        slots = 1 if is_post and not path.startswith("/slots/") else 0
        steered = steer(path, exchange.body) if is_post else None
        body = steered.body if steered else exchange.body
        async with self._fleet.lease(name, slots=slots) as instance:
            upstream = await instance.ready()
            async with upstream.stream(
                request.method, target, headers=headers, body=body
            ) as response:
                mended = steered.make_answer() if steered and response.status == 200 else None
                await copy(exchange, response, _Passed(response, mended), status=response.status)

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
    """An answer whose bytes go on as they came, or as the steering mends them."""

    def __init__(self, response: Response, mended: PassAnswer | None) -> None:
        fields = dict(response.headers)
        of_mended = mended.content_type if mended else None
        self.content_type = of_mended or fields.get(b"content-type", JSON)
        self.headers = _SSE_HEADERS if self.content_type.startswith(SSE) else ()
        self.feed: Callable[[bytes], bytes] = mended.feed if mended else bytes
        self._mended = mended

    def finish(self) -> bytes:
        """Return what the steering held back."""
        return self._mended.finish() if self._mended else b""


def _raw_path(exchange: Exchange) -> str:
    """Return the path as it was sent: decoded it could not be sent on."""
    raw: bytes = exchange.request.scope["raw_path"]
    return raw.decode("latin-1")


def _model_name(body: bytes) -> str:
    try:
        name = _target(body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"invalid request: {error}") from error
    if not name:
        raise RequestError("model is required")
    return name
