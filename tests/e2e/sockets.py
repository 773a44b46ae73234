"""Connections to a running kvsup below any client: bytes out, bytes in."""

import re
import socket
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.running import RunningKvsup

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Heard:
    """Everything that came until kvsup closed the connection."""

    data: bytes

    @property
    def statuses(self) -> list[int]:
        """Return the status of each answer."""
        return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", self.data)]

    @property
    def body(self) -> bytes:
        """Return what stands behind the last head."""
        return self.data.rpartition(b"\r\n\r\n")[2]


def connect(kvsup: RunningKvsup, *, receive_bytes: int | None = None) -> socket.socket:
    """Return a connection; with ``receive_bytes`` the kernel keeps no more than that for it."""
    address = urlsplit(kvsup.url)
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(TIMEOUT_S)
    connection.connect((address.hostname, address.port))
    return connection


def hear(connection: socket.socket) -> Heard:
    """Read until kvsup closes."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return Heard(b"".join(parts))


def say(kvsup: RunningKvsup, request: bytes) -> Heard:
    """Send bytes and return all that is heard."""
    with closing(connect(kvsup)) as connection:
        connection.sendall(request)
        return hear(connection)


def request(
    line: str, body: bytes = b"", *fields: str, length: int | None = None, is_last: bool = True
) -> bytes:
    """Return a request with Host and Content-Length, which may lie by ``length``."""
    n_bytes = len(body) if length is None else length
    head = [f"{line} HTTP/1.1", "Host: localhost", f"Content-Length: {n_bytes}", *fields]
    if is_last:
        head.append("Connection: close")
    return "\r\n".join((*head, "", "")).encode("latin-1") + body
