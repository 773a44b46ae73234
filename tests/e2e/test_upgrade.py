"""Clients that offer another protocol with their request, as Java's own does."""

import json
import socket
from http.client import HTTPResponse

import pytest

from tests.conftest import StartKvsup
from tests.tiny import ANSWER, TinyModels

OFFER = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)


@pytest.mark.parametrize("cut", [0, 20, 400])
def test_offer_of_http_2_is_ignored_and_the_body_is_read(
    start_kvsup: StartKvsup, tiny: TinyModels, cut: int
) -> None:
    """java.net.http.HttpClient makes it with its first request; Ollama's server ignores it."""
    kvsup = start_kvsup({"plain": f'model = "{tiny.plain()}"\nthreads = 1\n'})
    host, port = kvsup.url.removeprefix("http://").split(":")
    messages = [{"role": "user", "content": "Upgrade: h2c\r\n"}]
    body = json.dumps({"model": "plain", "messages": messages, "stream": False})
    request = (
        f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"{OFFER}\r\n{body}"
    ).encode()

    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request[: len(request) - cut])
        connection.sendall(request[len(request) - cut :])
        status, answer = _answer(connection)

    assert status == 200
    assert json.loads(answer)["message"]["content"] == ANSWER


def test_offer_is_ignored_on_each_request_of_a_connection(
    start_kvsup: StartKvsup, tiny: TinyModels
) -> None:
    """What is ignored once is not taken up later."""
    kvsup = start_kvsup({"plain": f'model = "{tiny.plain()}"\nthreads = 1\n'})
    host, port = kvsup.url.removeprefix("http://").split(":")
    request = f"GET /api/version HTTP/1.1\r\nHost: localhost\r\n{OFFER}\r\n".encode()

    with socket.create_connection((host, int(port))) as connection:
        for _ in range(3):
            connection.sendall(request)

            status, answer = _answer(connection)
            assert status == 200
            assert "version" in json.loads(answer)


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    response = HTTPResponse(connection)
    response.begin()
    return response.status, response.read()
