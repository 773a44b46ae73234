"""Who may call from within a browser, decided before anything is routed."""

from typing import Any

import pytest

from kvsup.api.guard import Guard
from kvsup.ollama.access import OriginRules, could_be_rebound


async def _status(
    sent: dict[str, str],
    *,
    loopback: bool,
    keys: bool = False,
    method: str = "POST",
    origins: tuple[str, ...] = (),
) -> int:
    """Return the status that a request gets; 200 is the application's own."""
    statuses = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    guard = Guard(
        app,
        origins=OriginRules(origins),
        bound_to_loopback=loopback,
        own_names={"box"},
        own_addresses={"192.168.1.5"},
        asks_for_keys=lambda: keys,
    )
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()]
    await guard({"type": "http", "method": method, "headers": headers}, receive, send)
    return int(statuses[0])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("evil.example:11434", 403),
        ("evil.example.:11434", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.5.evil.example:11434", 403),
        ("192.168.1.5:11434", 200),
        ("[fd00::5]:11434", 200),
        ("box:11434", 200),
        ("box.local:11434", 200),
        ("kvsup:11434", 200),
    ],
)
async def test_page_whose_name_was_led_here_is_refused_where_no_key_is_asked_for(
    host: str, expected: int
) -> None:
    """It is of the same origin, to the browser; a key it would not have."""
    page = {"host": host, "origin": f"http://{host}"}

    assert await _status(page, loopback=False) == expected
    assert await _status(page, loopback=False, keys=True) == 200
    assert await _status(page, loopback=False, origins=(page["origin"],)) == 200
    assert await _status({"host": host}, loopback=False) == 200


@pytest.mark.parametrize("host", ["evil.example:11434", "localhost.evil.example", "8.8.8.8"])
async def test_name_that_was_led_to_loopback_is_refused_with_an_origin_or_without(
    host: str,
) -> None:
    """A page that reads a list sends no origin to what it takes for its own server."""
    for method in ("GET", "POST"):
        page = {"host": host, "origin": f"http://{host}"}

        assert await _status({"host": host}, loopback=True, method=method) == 403
        assert await _status(page, loopback=True, keys=True, method=method) == 403


@pytest.mark.parametrize(
    ("site", "mode", "dest", "expected"),
    [
        ("cross-site", "no-cors", "image", 403),
        ("cross-site", "no-cors", "script", 403),
        ("cross-site", "websocket", "websocket", 403),
        ("cross-site", "navigate", "iframe", 403),
        ("cross-site", "navigate", "frame", 403),
        ("cross-site", "navigate", "object", 403),
        ("cross-site", "navigate", "embed", 403),
        ("cross-site", "navigate", "document", 200),
        ("cross-site", "navigate", None, 200),
        ("same-site", "no-cors", "image", 200),
        ("same-origin", "cors", "empty", 200),
        ("same-origin", "navigate", "iframe", 200),
        ("none", "navigate", "document", 200),
    ],
)
async def test_image_script_or_frame_of_a_foreign_page_starts_no_model(
    site: str, mode: str, dest: str | None, expected: int
) -> None:
    """Browsers send no Origin with it; a person who follows a link is served."""
    sent = {"host": "127.0.0.1:11434", "sec_fetch_site": site, "sec_fetch_mode": mode}
    if dest is not None:
        sent["sec_fetch_dest"] = dest

    assert await _status(sent, loopback=True, method="GET") == expected


async def test_page_that_is_listed_may_call_across_sites() -> None:
    """By a script, with its Origin."""
    page = {
        "host": "127.0.0.1:11434",
        "origin": "https://chat.example",
        "sec_fetch_site": "cross-site",
        "sec_fetch_mode": "cors",
    }

    assert await _status(page, loopback=True, origins=("https://chat.example",)) == 200
    assert await _status(page, loopback=True) == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a.example", True),
        ("A.example.", True),
        ("a.example:80", True),
        ("a", False),
        ("", False),
        ("::1", False),
    ],
)
def test_name_of_public_dns_could_be_rebound(host: str, expected: bool) -> None:  # noqa: FBT001
    """Names without a dot are of containers."""
    assert could_be_rebound(host, {"box"}) == expected
