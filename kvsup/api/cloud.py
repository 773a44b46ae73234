"""Ollama's cloud and accounts: kvsup is the server that has them switched off (2026-08)."""

from kvsup.api.exchange import Exchange
from kvsup.api.naming import DISABLED, CloudDisabled
from kvsup.errors import RequestError
from kvsup.ollama.ndjson import encode


async def status(exchange: Exchange) -> None:
    """Answer ``GET /api/status``."""
    await exchange.answer(encode({"cloud": {"disabled": True, "source": "config"}}))


async def me(exchange: Exchange) -> None:
    """Answer ``POST /api/me``: nobody is signed in."""
    await exchange.answer(encode({"error": "unauthorized", "signin_url": ""}), status=401)


async def signout(exchange: Exchange) -> None:
    """Answer ``POST /api/signout`` and ``DELETE /api/user/keys/KEY``."""
    await exchange.answer(encode({"error": "you are not currently signed in"}), status=401)


async def web_search(exchange: Exchange) -> None:
    """Answer ``POST /api/experimental/web_search``."""
    _refuse(exchange, "web search is")


async def web_fetch(exchange: Exchange) -> None:
    """Answer ``POST /api/experimental/web_fetch``."""
    _refuse(exchange, "web fetch is")


async def recommendations(exchange: Exchange) -> None:
    """Answer ``GET /api/experimental/model-recommendations``: there are none."""
    await exchange.answer(encode({"recommendations": []}))


def _refuse(exchange: Exchange, what: str) -> None:
    if not exchange.body.strip():
        raise RequestError("missing request body")
    raise CloudDisabled(f"{DISABLED}{what} unavailable")
