"""Images that are fetched by URL, from a real server on this machine that plays the Internet."""

import base64
import ipaddress
import ssl
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kvsup.errors import RequestError
from kvsup.runtime import publicnet
from kvsup.runtime.images import Images
from kvsup.runtime.publicnet import is_public


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


PNG = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    + _chunk(b"IEND", b"")
)


class _Internet(BaseHTTPRequestHandler):
    """A server that sends images, redirects and worse; it notes who was asked for."""

    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        """Answer by the path."""
        self.asked.append((self.headers["host"], self.path))
        kind, _, rest = self.path[1:].partition("/")
        if kind == "redirect":
            self.send_response(302)
            self.send_header("location", rest)
            self.end_headers()
            return
        self.send_response(404 if kind == "missing" else 200)
        self.end_headers()
        if kind == "huge":
            for _ in range(400):
                self.wfile.write(PNG + b"\0" * (1 << 20))
        self.wfile.write(b"root:x:0:0" if kind == "secret" else PNG)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class Internet:
    """The server, and names that lead to it."""

    def __init__(self, port: int, asked: list[tuple[str, str]]) -> None:
        self.port = port
        self.asked = asked
        self.names = {"good.example": ["127.0.0.1"]}

    async def resolve(self, host: str, _port: int) -> Sequence[str]:
        """Return the addresses of a name."""
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]

    def images(self, *hosts: str) -> Images:
        """Return what fetches from hosts, on the server's port."""
        return Images([f"{host}:{self.port}" for host in hosts], resolve=self.resolve)

    def url(self, path: str, *, host: str = "good.example") -> str:
        """Return a URL of the server."""
        return f"http://{host}:{self.port}/{path}"


@pytest.fixture
def internet() -> Iterator[Internet]:
    """Return a server that answers on loopback."""
    asked: list[tuple[str, str]] = []
    handler = type("Handler", (_Internet,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients leave
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Internet(server.server_port, asked)
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the loopback, and it alone, for the Internet."""
    monkeypatch.setattr(publicnet, "is_public", lambda a: a.is_loopback or is_public(a))


@pytest.mark.usefixtures("loopback_is_public")
async def test_image_of_a_listed_host_is_fetched_under_its_own_name(internet: Internet) -> None:
    """Connected by address, asked by name; its kind is told by its bytes."""
    image = await internet.images("good.example").fetch(internet.url("a.png?x=1"))

    assert image.media_type == "image/png"
    assert base64.b64decode(image.base64) == PNG
    assert internet.asked == [("good.example", "/a.png?x=1")]


@pytest.mark.usefixtures("loopback_is_public")
async def test_redirect_is_followed_to_listed_hosts(internet: Internet) -> None:
    """Relative ones, too; the rules hold for each."""
    internet.names["cdn.good.example"] = ["127.0.0.1"]
    there = internet.url("redirect//b.png", host="cdn.good.example")

    image = await internet.images("good.example", "*.good.example").fetch(
        internet.url(f"redirect/{there}")
    )

    assert image.media_type == "image/png"
    assert [host for host, _ in internet.asked] == ["good.example", *["cdn.good.example"] * 2]


@pytest.mark.usefixtures("loopback_is_public")
async def test_certificates_are_read_once_and_beside_the_event_loop(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as long as a stream may not wait."""
    readers = []
    read = ssl.create_default_context

    def reading(**arguments: Any) -> ssl.SSLContext:
        readers.append(threading.get_ident())
        return read(**arguments)

    monkeypatch.setattr(ssl, "create_default_context", reading)
    fetcher = internet.images("good.example")

    await fetcher.fetch(internet.url(f"redirect/{internet.url('a.png')}"))
    await fetcher.fetch(internet.url("b.png"))

    assert len(readers) == 1
    assert threading.get_ident() not in readers


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("missing", "answered 404"),
        ("secret", "sends no PNG"),
        ("huge", "sends more than 20971520 bytes"),
        ("redirect/http://other.example/", "other.example is not listed"),
        ("redirect/http://169.254.169.254/latest/", "169.254.169.254 is not listed"),
        ("redirect/file:///etc/passwd", "must be http"),
        ("redirect/gopher://good.example/", "must be http"),
        ("redirect/http://inner.good.example:{port}/", "no host of the public Internet"),
        ("redirect/" * 4 + "x", "redirected too often"),
    ],
)
async def test_what_is_no_image_or_leads_elsewhere_is_refused(
    internet: Internet, path: str, text: str
) -> None:
    """In words that tell nothing of what was found there."""
    internet.names["inner.good.example"] = ["10.1.2.3"]
    fetcher = internet.images("good.example", "*.good.example")

    with pytest.raises(RequestError, match=text) as caught:
        await fetcher.fetch(internet.url(path.format(port=internet.port)))

    assert "root:" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "169.254.169.254", "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "::", "::1",
        "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "2001:db8::1",
        "fe80::1%eth0", "fec0::1", "64:ff9b:1::7f00:1", "::7f00:1", "::ffff:0:7f00:1", "5f00::1",
        "3fff::1", "192.0.0.8", "4000::1",
    ],
)  # fmt: skip
async def test_name_that_leads_into_a_private_range_is_refused_before_any_connection(
    internet: Internet, address: str
) -> None:
    """Also as one of several addresses, and through every tunnel."""
    for addresses in ([address], ["93.184.216.34", address]):
        internet.names["good.example"] = addresses

        with pytest.raises(RequestError, match="no host of the public Internet"):
            await internet.images("good.example").fetch(internet.url("a.png"))

    assert internet.asked == []


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "2002:808:808::"]
)
def test_address_of_the_internet_is_public(address: str) -> None:
    """Not everything is refused."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example:{port}/a.png", "http://good.example.evil.example:{port}/",
        "http://good.example@evil.example:{port}/", "http://xgood.example:{port}/",
        "http://127.0.0.1:{port}/", "http://2130706433:{port}/", "http://0x7f.1:{port}/",
        "http://[::1]:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://good.example/",
        "https://good.example:1/", "http://u:p@good.example:{port}/", "ftp://good.example:{port}/",
        "http:good.example:{port}", "http://", "http://[", "http://good.example:99999/",
        "http:///good.example", "http://good.example.:{port}/",
    ],
)  # fmt: skip
async def test_url_of_a_host_that_is_not_listed_is_refused(internet: Internet, url: str) -> None:
    """However it is written; nobody is asked."""
    for name in ("evil.example", "good.example.evil.example", "127.0.0.1", "::1"):
        internet.names[name] = ["127.0.0.1"]

    with pytest.raises(RequestError, match="image URL: "):
        await internet.images("good.example").fetch(url.format(port=internet.port))

    assert internet.asked == []
