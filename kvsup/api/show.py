"""``/api/show``: what a model is, from its plan and, where all of it is asked for, its file."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from anyio import CapacityLimiter, to_thread

from kvsup.api import listing
from kvsup.api.exchange import Exchange
from kvsup.api.naming import check_grammar, not_found_as
from kvsup.errors import KvsupError, RequestError
from kvsup.gguf import GGUFError, WholeValue, read_whole_values
from kvsup.ollama.names import display_name
from kvsup.ollama.ndjson import encode
from kvsup.ollama.requests import ShowRequest, decode_show
from kvsup.ollama.show import show
from kvsup.plan import Plan
from kvsup.runtime.fleet import Fleet
from kvsup.stores.manifest import MAX_TEXT_BYTES

_MAX_VERBOSE = 1  # a whole vocabulary takes some 100 MiB while it is written out


class ShowHandlers:
    """The endpoint that shows a model, on one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._verbose = CapacityLimiter(_MAX_VERBOSE)

    async def show(self, exchange: Exchange) -> None:
        """Answer ``POST /api/show``."""
        request = decode_show(exchange.body)
        if not request.model:
            raise RequestError("model is required")
        check_grammar(request.model)
        with not_found_as(f"model '{display_name(request.model)}' not found"):
            plan = self._fleet.instance(request.model).plan
        user_agent = exchange.request.headers.get("user-agent", "")
        limiter = self._verbose if request.verbose else None
        answer = await to_thread.run_sync(_answer, plan, request, user_agent, limiter=limiter)
        await exchange.answer(answer)


def _answer(plan: Plan, request: ShowRequest, user_agent: str) -> bytes:
    """Return the answer; runs in a thread, since a large model has thousands of tensors."""
    model = plan.model
    whole = _whole(model.model) if request.verbose else None
    whole_projector = _whole(model.mmproj) if request.verbose and model.mmproj else None
    return encode(
        show(
            listing.shown_model(
                plan,
                whole=whole,
                whole_projector=whole_projector,
                licenses=_licenses(plan.file.licenses),
            ),
            asked=request.model,
            system=request.system,
            options=request.options,
            verbose=request.verbose,
            user_agent=user_agent,
        )
    )


def _licenses(named: Iterable[str]) -> Iterator[str]:
    """Yield the texts of a store, as far as they are still there."""
    for path in named:
        with suppress(OSError), Path(path).open("rb") as file:
            yield file.read(MAX_TEXT_BYTES).decode(errors="replace")


def _whole(path: str) -> dict[str, WholeValue]:
    try:
        return read_whole_values(Path(path))
    except (GGUFError, OSError) as error:
        raise KvsupError(f"{path}: {error}") from error
