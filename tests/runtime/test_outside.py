"""Addresses that may be talked to: registries that are listed, and the public Internet by TLS."""

from collections.abc import Iterator, Sequence

import httpx
import pytest

from kvsup.runtime import outside
from kvsup.runtime.outside import Refused
from kvsup.stores.registries import Registries
from tests.between import Between, Fault

PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.7"


@pytest.fixture
def server() -> Iterator[Between]:
    """Return a server on this machine; it stands for a registry that is listed."""
    with Between() as server:
        yield server


def _leads_to(server: Between, *locations: str, status: int = 307) -> None:
    """Let the server lead from each path to the next location."""
    left = iter(locations)

    def rule(_seen: object) -> Fault | None:
        location = next(left, None)
        if location is None:
            return Fault(status=200, body=b"here")
        return Fault(status=status, headers=(("location", location),))

    server.rules.append(rule)


async def _resolved(host: str, _port: int) -> Sequence[str]:
    known = {
        "private.example": [PRIVATE],
        "both.example": [PUBLIC, PRIVATE],
        "localhost": ["127.0.0.1"],
        "0x7f.1": ["127.0.0.1"],
    }
    is_literal = host[0].isdigit() or ":" in host
    return known.get(host, [host] if is_literal else [PUBLIC])


async def _get(server: Between, path: str = "/", **headers: str) -> httpx.Response:
    registries = Registries.parse([server.host])
    async with outside.client(registries, resolve=_resolved) as client:
        return await client.get(f"http://{server.host}{path}", headers=headers)


async def test_listed_registry_may_lie_anywhere(server: Between) -> None:
    """It is this person's own."""
    _leads_to(server)

    assert (await _get(server)).text == "here"


async def test_redirect_within_the_registry_is_followed(server: Between) -> None:
    """Relative or not."""
    _leads_to(server, "/a", f"http://{server.host}/b")

    answer = await _get(server, authorization="Bearer t")

    assert answer.text == "here"
    assert [seen.path for seen in server.seen] == ["/", "/a", "/b"]
    assert [seen.authorization for seen in server.seen] == ["Bearer t"] * 3


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://169.254.169.254/latest/meta-data/",
        "https://private.example/",
        "https://both.example/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://0x7f.1/",
        "http://public.example/",
    ],
)
async def test_redirect_to_a_private_address_or_without_tls_is_refused(
    server: Between, location: str
) -> None:
    """Even where one of several addresses is private; nothing is sent there."""
    _leads_to(server, location)

    with pytest.raises(Refused):
        await _get(server)

    assert len(server.seen) == 1


async def test_connection_goes_to_the_address_that_was_checked(server: Between) -> None:
    """A public host is asked under its own name, at the address that it had when looked at."""
    sent: list[httpx.Request] = []

    class Inner(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            sent.append(request)
            return httpx.Response(200)

    guarded = outside._Guarded(Inner(), Registries.parse([server.host]), _resolved)
    await guarded.handle_async_request(httpx.Request("GET", "https://cdn.example/x?y=1"))

    (request,) = sent
    assert request.url == f"https://{PUBLIC}/x?y=1"
    assert request.headers["host"] == "cdn.example"
    assert request.extensions["sni_hostname"] == "cdn.example"


async def test_redirects_end(server: Between) -> None:
    """A circle is told."""
    server.rules.append(lambda _seen: Fault(status=307, headers=(("location", "/"),)))

    with pytest.raises(httpx.TooManyRedirects):
        await _get(server)

    assert len(server.seen) == 6


async def test_authorization_stays_with_its_origin(server: Between) -> None:
    """A second registry that is listed, too, does not get the first one's token."""
    with Between() as other:
        _leads_to(server, f"http://{other.host}/")
        _leads_to(other)
        registries = Registries.parse([server.host, other.host])
        async with outside.client(registries) as client:
            headers = {"authorization": "Bearer secret"}
            answer = await client.get(f"http://{server.host}/", headers=headers)

    assert answer.text == "here"
    assert other.seen[0].authorization == ""
