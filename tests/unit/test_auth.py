"""Which key a request needs, and how it is told that it has none."""

import json
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Send
from starlette.types import Scope as Connection

from kvsup.api.auth import Auth, is_loopback, needed_scope
from kvsup.decode import Source
from kvsup.keys import KeyRing, Scope, decode_keys

INFER, MANAGE = "infer-0123456789abcdef", "manage-0123456789abcdef"
RING, _ = decode_keys(
    Source("k", {"a": {"key": INFER}, "b": {"key": MANAGE, "scope": "manage"}}),
)
LOOPBACK, ELSEWHERE = "127.0.0.1", "192.0.2.7"

Headers = dict[str, str]


async def _routes(_connection: Connection, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _answer(
    method: str,
    path: str,
    headers: Headers | None = None,
    *,
    keys: KeyRing | None = RING,
    client: str | None = LOOPBACK,
) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of a request; what the layer lets through is a bare 200."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the layer reads no body")

    connection = {
        "type": "http",
        "method": method,
        "path": path,
        "client": None if client is None else (client, 1),
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
    }
    anyio.run(Auth(_routes, keys=lambda: keys), connection, receive, send)
    start, body = sent
    return (
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        body["body"],
    )


def _status(*arguments: Any, **settings: Any) -> int:
    return _answer(*arguments, **settings)[0]


def _bearer(key: str) -> Headers:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/api/version"),
        ("HEAD", "/api/version"),
        ("GET", "/health"),
        ("GET", "/v1/health"),
        ("GET", "/openapi.json"),
        ("OPTIONS", "/kvsup/stop"),
        ("OPTIONS", "/api/chat"),
    ],
)
def test_scope_of_what_tells_nothing_of_models_is_none(method: str, path: str) -> None:
    """Probes and preflights, which carry no key, work as ever."""
    assert needed_scope(method, path) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/chat"),
        ("POST", "/api/generate"),
        ("POST", "/api/show"),
        ("GET", "/api/tags"),
        ("GET", "/api/ps"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/messages"),
        ("GET", "/v1/models/a/b"),
        ("GET", "/models"),
        ("GET", "/models/sse"),
        ("POST", "/tokenize"),
        ("POST", "/"),
        ("GET", "/upstream/m/props"),
        ("HEAD", "/upstream/m/health"),
        ("POST", "/upstream/m/v1/chat/completions"),
        ("POST", "/upstream/org/m:tag/completion"),
        ("POST", "/upstream/m/completions"),
        ("POST", "/upstream/m/v1/messages/count_tokens"),
        ("POST", "/upstream/m/v1/responses/input_tokens"),
        ("POST", "/upstream/m/apply-template"),
        ("GET", "/nothing/of/the/kind"),
        ("POST", "/api/copycat"),
        ("GET", "/kvsupper"),
    ],
)
def test_scope_of_using_and_listing_is_infer(method: str, path: str) -> None:
    """What changes nothing for others is for every key; so is being told that there is no route."""
    assert needed_scope(method, path) is Scope.INFER


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/kvsup/models"),
        ("POST", "/kvsup/stop"),
        ("GET", "/kvsup/logs/m"),
        ("GET", "/kvsup/why/m"),
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("HEAD", "/api/blobs/sha256:0"),
        ("POST", "/api/blobs/sha256:0"),
        ("POST", "/models/load"),
        ("POST", "/models/unload"),
        ("POST", "/models"),
        ("DELETE", "/models"),
        ("POST", "/upstream/m/slots/0"),
        ("POST", "/upstream/m/props"),
        ("POST", "/upstream/m/lora-adapters"),
        ("DELETE", "/upstream/m/v1/stream"),
        ("PUT", "/upstream/m/v1/chat/completions"),
        ("DELETE", "/upstream/m/completion"),
    ],
)
def test_scope_of_changing_what_others_see_is_manage(method: str, path: str) -> None:
    """Loading, unloading, adding, removing, and whatever an instance's own API can alter."""
    assert needed_scope(method, path) is Scope.MANAGE


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/delete\n"),
        ("POST", "/kvsup/stop\n"),
        ("GET", "/kvsup/logs/a\nb"),
        ("POST", "/api/blobs/a\nb"),
        ("POST", "/upstream/m/slots/0?action=erase&x=/completion"),
        ("POST", "/upstream/m/slots/0#/completion"),
        ("POST", "/upstream/m/slots/0\n/completion"),
        ("POST", "/upstream/m/slots/0\n"),
        ("POST", "/upstream/m/slots/%30/completion"),
    ],
)
def test_scope_of_a_managing_path_in_disguise_is_manage(method: str, path: str) -> None:
    """A path that is routed as one of management is one, whatever hangs on it."""
    assert needed_scope(method, path) is Scope.MANAGE


@pytest.mark.parametrize(
    "headers",
    [
        _bearer(INFER),
        {"authorization": f"bearer {INFER}"},
        {"AUTHORIZATION": f"  BEARER   {INFER}  "},
        {"X-Api-Key": INFER},
        {"X-Api-Key": INFER, "Authorization": "Bearer ollama"},
        {"X-Api-Key": "ollama", "Authorization": f"Bearer {INFER}"},
        _bearer(MANAGE),
    ],
)
def test_auth_of_a_right_key_passes(headers: Headers) -> None:
    """In either header, beside whatever a client believes that it must send in the other."""
    assert _status("POST", "/api/chat", headers) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        _bearer("wrong"),
        _bearer(""),
        _bearer("schlüssel"),
        {"Authorization": INFER},
        {"Authorization": f"Basic {INFER}"},
        {"Authorization": f"Bearer {INFER}, Bearer {INFER}"},
        {"X-Api-Key": f"Bearer {INFER}"},
        {"Api-Key": INFER},
        {"Cookie": f"key={INFER}"},
    ],
)
@pytest.mark.parametrize("client", [LOOPBACK, ELSEWHERE])
def test_auth_without_a_right_key_is_401(headers: Headers, client: str) -> None:
    """Where there are keys, this machine needs one as well; the answer names the scheme."""
    status, answered, body = _answer("POST", "/api/chat", headers, client=client)

    assert status == 401
    assert answered["www-authenticate"] == "Bearer"
    assert answered["content-length"] == str(len(body))
    assert INFER not in body.decode()


@pytest.mark.parametrize("client", [LOOPBACK, ELSEWHERE])
def test_auth_of_management_takes_a_manage_key_from_anywhere(client: str) -> None:
    """A key is worth as much on another machine; one for inference is told what is missing."""
    assert _status("POST", "/kvsup/stop", _bearer(MANAGE), client=client) == 200
    status, headers, body = _answer("POST", "/kvsup/stop", _bearer(INFER), client=client)

    assert status == 403
    assert "www-authenticate" not in headers
    assert json.loads(body) == {"error": "forbidden: this needs an API key of scope manage"}


@pytest.mark.parametrize("keys", [None, RING])
def test_auth_of_a_public_path_asks_for_nothing(keys: KeyRing | None) -> None:
    """Not even a wrong key is in the way."""
    assert _status("GET", "/", _bearer("wrong"), keys=keys, client=ELSEWHERE) == 200


@pytest.mark.parametrize(
    ("client", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.7", False),
        ("::ffff:192.0.2.7", False),
        ("fe80::1%eth0", False),
        ("unknown", False),
        (None, False),
    ],
)
def test_auth_without_keys_leaves_management_to_this_machine(
    client: str | None,
    allowed: bool,  # noqa: FBT001
) -> None:
    """As long as nobody has a key, who may manage is a matter of where one is."""
    assert _status("POST", "/api/chat", keys=None, client=client) == 200
    status, headers, body = _answer("DELETE", "/api/delete", keys=None, client=client)

    assert status == (200 if allowed else 403)
    if not allowed:
        assert "set api_keys in kvsup.toml" in json.loads(body)["error"]
        assert "www-authenticate" not in headers


def test_auth_of_a_ring_without_keys_refuses_everyone() -> None:
    """No keys at all is something else than no key asked for."""
    assert _status("GET", "/api/tags", _bearer(INFER), keys=KeyRing()) == 401


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/chat", {"error": "unauthorized: no such API key"}),
        ("/kvsup/models", {"error": "unauthorized: no such API key"}),
        (
            "/v1/chat/completions",
            {
                "error": {
                    "message": "unauthorized: no such API key",
                    "type": "authentication_error",
                    "param": None,
                    "code": "invalid_api_key",
                }
            },
        ),
        (
            "/v1/messages",
            {
                "type": "error",
                "error": {
                    "type": "authentication_error",
                    "message": "unauthorized: no such API key",
                },
            },
        ),
    ],
)
def test_auth_refusal_has_the_shape_of_its_api(path: str, expected: object) -> None:
    """Each client finds the error where it looks for one."""
    _, headers, body = _answer("POST", path, _bearer("wrong"))

    assert headers["content-type"] == "application/json; charset=utf-8"
    told = json.loads(body)
    told.pop("request_id", None)
    assert told == expected


def test_auth_refusal_of_a_small_scope_in_openai_shape_is_a_permission_error() -> None:
    """A key that is right but small is no reason to ask for another password."""
    _, _, body = _answer("POST", "/models/load", _bearer(INFER))

    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("permission_error", "insufficient_permissions")


@pytest.mark.parametrize("address", ["", "localhost", "0.0.0.0", "::", "127.0.0.1.example"])
def test_loopback_of_no_loopback_address_is_false(address: str) -> None:
    """A name is no address, and every interface is more than one's own."""
    assert not is_loopback(address)
