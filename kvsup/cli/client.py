"""Ask a running kvsup; its address comes from kvsup.toml and the environment, as ``run`` has it.

By the standard library: httpx takes longer to load than kvsup to answer.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

import typer

from kvsup.errors import KvsupError
from kvsup.keys import is_sendable
from kvsup.runtime.configdir import read_host
from kvsup.runtime.keyfile import read_manage_key
from kvsup.runtime.paths import address_file, config_dir, state_dir, url_of

KEY_VARIABLE = "KVSUP_API_KEY"
"""Variable with the API key that the command line sends."""

_CONNECT_TIMEOUT_S = 5.0
"""For an answer there is none: a log can be silent for hours."""

_AS_IS = "/:%?=&+"
"""Of a path and its query; names may have other signs."""

_PIECE_BYTES = 256 << 10

_UNREACHABLE = (OSError, HTTPException)


def get(path: str) -> Any:
    """Return the JSON answer of a GET."""
    return _json_of("GET", path)


def get_if_running(path: str) -> Any | None:
    """Return the JSON answer of a GET; None where no kvsup answers, or what answers is none."""
    try:
        with _answer("GET", path) as answer:
            content_type = answer.headers.get("content-type", "")
            data = answer.read()
    except _UNREACHABLE:
        return None
    is_json = content_type.startswith("application/json")
    return json.loads(_check(answer, data)) if is_json else None


def send_if_running(method: str, path: str, body: Mapping[str, object]) -> bool:
    """Send a request whose answer says nothing; say whether a kvsup answered."""
    try:
        with _answer(method, path, json.dumps(body).encode()) as answer:
            data = answer.read()
    except _UNREACHABLE:
        return False
    _check(answer, data)
    return True


def objects_if_running(path: str, body: Mapping[str, object]) -> Iterator[Any] | None:
    """Return the JSON objects of a POST's answer as they come; None where no kvsup answers.

    Raises:
        KvsupError: it refused; the iterator raises it, too, and where the answer breaks off.
    """
    stack = ExitStack()
    try:
        answer = stack.enter_context(_answer("POST", path, json.dumps(body).encode()))
    except _UNREACHABLE:
        return None
    with stack:
        if answer.status >= 400:
            _check(answer, answer.read())
        kept = stack.pop_all()
    return _objects(answer, kept)


def _objects(answer: HTTPResponse, kept: ExitStack) -> Iterator[Any]:
    with kept:
        try:
            for line in answer:
                found = json.loads(line)
                if "error" in found:
                    raise KvsupError(str(found["error"]))
                yield found
        except _UNREACHABLE as error:
            raise KvsupError(f"the answer broke off: {error}; see the log of kvsup") from error


def delete_if_running(path: str, query: Mapping[str, str]) -> Any | None:
    """Return the JSON answer of a DELETE; None where no kvsup answers."""
    try:
        with _answer("DELETE", f"{path}?{urlencode(query)}") as answer:
            data = answer.read()
    except _UNREACHABLE:
        return None
    return json.loads(_check(answer, data))


def save_if_running(
    path: str, query: Mapping[str, Sequence[str]], write: Callable[[bytes], object]
) -> bool:
    """Hand each piece of the answer of a GET to ``write``; say whether a kvsup answered.

    Raises:
        KvsupError: it refused, or the answer broke off.
    """
    with ExitStack() as stack:
        try:
            answer = stack.enter_context(_answer("GET", f"{path}?{urlencode(query, doseq=True)}"))
        except _UNREACHABLE:
            return False
        if answer.status >= 400:
            _check(answer, answer.read())
        while piece := _piece(answer):
            write(piece)
    return True


def has(path: str) -> bool:
    """Say whether a HEAD finds something."""
    try:
        with _answer("HEAD", path) as answer:
            answer.read()
    except _UNREACHABLE as error:
        raise _unreachable(error) from error
    return answer.status == 200


def send_file(method: str, path: str, body: BinaryIO) -> None:
    """Send a file, which is read while it is sent; the answer says nothing."""
    try:
        with _answer(method, path, body) as answer:
            data = answer.read()
    except _UNREACHABLE as error:
        raise _unreachable(error) from error
    _check(answer, data)


def put(path: str, body: BinaryIO) -> Any:
    """Return the JSON answer of a PUT of a file, which is read while it is sent."""
    return _json_of("PUT", path, body)


def post(path: str, body: Mapping[str, object]) -> Any:
    """Return the JSON answer of a POST."""
    return _json_of("POST", path, json.dumps(body).encode())


def lines(path: str, *, lines: int, follow: bool) -> Iterator[str]:
    """Yield the lines of a text answer as they come."""
    query = {"lines": str(lines), **({"follow": "1"} if follow else {})}
    try:
        with _answer("GET", f"{path}?{urlencode(query)}") as answer:
            if answer.status >= 400:
                _check(answer, answer.read())
            for line in answer:
                yield line.decode("utf-8", "replace").rstrip("\r\n")
    except _UNREACHABLE as error:
        raise _unreachable(error) from error


def base_url() -> str:
    """Return the address of the kvsup that runs, else the one that it would listen on.

    Raises:
        ConfigError: none runs, and the settings that name the address are wrong.
    """
    host, problem = read_host(config_dir(None), os.environ)
    try:
        return address_file(state_dir(host.state_dir)).read_text("utf-8")
    except OSError:
        if problem is not None:
            raise problem from None
        return url_of(host.host, host.port)


@contextmanager
def _answer(method: str, path: str, body: bytes | BinaryIO | None = None) -> Iterator[HTTPResponse]:
    """Send a request, and give the head of its answer.

    Raises:
        OSError: nobody is there.
        HTTPException: who is there speaks no HTTP.
    """
    where, key = urlsplit(base_url()), _manage_key()
    connection = HTTPConnection(
        where.hostname or "", where.port, timeout=_CONNECT_TIMEOUT_S, blocksize=_PIECE_BYTES
    )
    try:
        connection.connect()
        connection.sock.settimeout(None)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/json"
        elif body is not None:
            headers["Content-Length"] = str(os.fstat(body.fileno()).st_size)
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before it has all
            connection.request(method, quote(path, safe=_AS_IS), body, headers)
        yield connection.getresponse()
    finally:
        connection.close()


def _piece(answer: HTTPResponse) -> bytes:
    """Return the next bytes of an answer, none at its end.

    Raises:
        KvsupError: it broke off.
    """
    try:
        piece = answer.read(_PIECE_BYTES)
    except _UNREACHABLE as error:
        raise KvsupError(f"the answer broke off: {error}; see the log of kvsup") from error
    if not piece and answer.length:
        missing = f"{answer.length} bytes are missing"
        raise KvsupError(f"the answer broke off: {missing}; see the log of kvsup")
    return piece


def _manage_key() -> str | None:
    """Return the API key to send: ``$KVSUP_API_KEY``, else one of the key file in plain text.

    Raises:
        KvsupError: the variable cannot be sent as a key.
    """
    if key := os.environ.get(KEY_VARIABLE):
        if not is_sendable(key):
            raise KvsupError(f"{KEY_VARIABLE} is no API key: it has blanks or signs beyond ASCII")
        return key
    host, _ = read_host(config_dir(None), os.environ)
    return None if host.api_keys is None else read_manage_key(Path(host.api_keys))


def _json_of(method: str, path: str, body: bytes | BinaryIO | None = None) -> Any:
    try:
        with _answer(method, path, body) as answer:
            data = answer.read()
    except _UNREACHABLE as error:
        raise _unreachable(error) from error
    return json.loads(_check(answer, data))


def _unreachable(error: OSError | HTTPException) -> typer.Exit:
    reason = f"no kvsup answers on {base_url()}: {error}; start it: kvsup run"
    typer.echo(f"kvsup: {reason}", err=True)
    return typer.Exit(3)


def _check(answer: HTTPResponse, data: bytes) -> bytes:
    """Return the body of an answer that is no error."""
    if answer.status >= 400:
        try:
            message = json.loads(data)["error"]
        except (ValueError, KeyError, TypeError):
            message = f"HTTP {answer.status}: {data.decode('utf-8', 'replace')}"
        if answer.status in {401, 403}:
            message = f"{message}; set {KEY_VARIABLE} to a key of scope manage"
        raise KvsupError(str(message))
    return data
