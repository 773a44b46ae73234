"""Ask a running kvsup; its address comes from kvsup.toml and the environment, as ``run`` has it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import typer

from kvsup.errors import KvsupError
from kvsup.keys import is_sendable
from kvsup.runtime.configdir import read_host
from kvsup.runtime.keyfile import read_manage_key
from kvsup.runtime.paths import address_file, config_dir, state_dir, url_of

KEY_VARIABLE = "KVSUP_API_KEY"
"""Variable with the API key that the command line sends."""


def get(path: str) -> Any:
    """Return the JSON answer of a GET."""
    return _checked(_send("GET", path)).json()


def get_if_running(path: str) -> Any | None:
    """Return the JSON answer of a GET; None where no kvsup answers, or what answers is none."""
    try:
        with _client() as client:
            answer = client.get(path)
    except httpx.TransportError:
        return None
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    return _checked(answer).json() if is_json else None


def delete_if_running(path: str, query: Mapping[str, str]) -> Any | None:
    """Return the JSON answer of a DELETE; None where no kvsup answers."""
    try:
        with _client() as client:
            answer = client.delete(path, params=dict(query))
    except httpx.TransportError:
        return None
    return _checked(answer).json()


def save_if_running(
    path: str, query: Mapping[str, Sequence[str]], write: Callable[[bytes], object]
) -> bool:
    """Hand each piece of the answer of a GET to ``write``; say whether a kvsup answered.

    Raises:
        KvsupError: it refused, or the answer broke off.
    """
    try:
        with _client() as client, client.stream("GET", path, params=dict(query)) as answer:
            if answer.is_error:
                answer.read()
            try:
                for piece in _checked(answer).iter_bytes():
                    write(piece)
            except httpx.TransportError as error:
                raise KvsupError(f"the answer broke off: {error}; see the log of kvsup") from error
    except httpx.TransportError:
        return False
    return True


def put(path: str, body: BinaryIO) -> Any:
    """Return the JSON answer of a PUT of a file, which is read while it is sent."""
    return _checked(_send("PUT", path, content=body)).json()


def post(path: str, body: Mapping[str, object]) -> Any:
    """Return the JSON answer of a POST."""
    return _checked(_send("POST", path, json=dict(body))).json()


def lines(path: str, *, lines: int, follow: bool) -> Iterator[str]:
    """Yield the lines of a text answer as they come."""
    query: dict[str, str] = {"lines": str(lines), **({"follow": "1"} if follow else {})}
    try:
        with _client() as client, client.stream("GET", path, params=query) as answer:
            if answer.is_error:
                answer.read()
            yield from _checked(answer).iter_lines()
    except httpx.TransportError as error:
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


def _client() -> httpx.Client:
    """Return a client that waits for answers: a log can be silent for hours."""
    waiting = httpx.Timeout(None, connect=5.0)
    key = _manage_key()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=base_url(), headers=headers, timeout=waiting, trust_env=False)


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


def _send(method: str, path: str, **arguments: Any) -> httpx.Response:
    try:
        with _client() as client:
            return client.request(method, path, **arguments)
    except httpx.TransportError as error:
        raise _unreachable(error) from error


def _unreachable(error: httpx.TransportError) -> typer.Exit:
    reason = f"no kvsup answers on {base_url()}: {error}; start it: kvsup run"
    typer.echo(f"kvsup: {reason}", err=True)
    return typer.Exit(3)


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        try:
            message = answer.json()["error"]
        except (ValueError, KeyError):
            message = f"HTTP {answer.status_code}: {answer.text}"
        if answer.status_code in {401, 403}:
            message = f"{message}; set {KEY_VARIABLE} to a key of scope manage"
        raise KvsupError(str(message))
    return answer
