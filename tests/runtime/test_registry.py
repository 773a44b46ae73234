"""Who kvsup is to a registry: tokens, passwords of Docker, and the key of Ollama."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_public_key,
)

from kvsup.errors import KvsupError
from kvsup.runtime import ollamakey, outside
from kvsup.runtime.registry import Repository
from kvsup.stores.references import OllamaName
from kvsup.stores.registries import Registries
from tests.between import Between, Fault, Seen

MANIFEST = b'{"layers": []}'
SCOPE = "repository:me/m:pull"


@pytest.fixture
def server() -> Iterator[Between]:
    """Return a registry that gives a manifest to who has the token."""
    with Between() as server:
        server.rules.append(lambda seen: _answer(server, seen))
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home with nothing in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    return tmp_path


def _answer(server: Between, seen: Seen) -> Fault:
    if seen.path.startswith("/token"):
        return Fault(status=200, body=b'{"token": "t1"}')
    if seen.authorization == "Bearer t1":
        return Fault(status=200, body=MANIFEST)
    challenge = f'Bearer realm="http://{server.host}/token",service="{server.host}",scope="{SCOPE}"'
    return Fault(status=401, headers=(("www-authenticate", challenge),), body=b"who?")


async def _manifest(server: Between) -> bytes:
    registries = Registries.parse([server.host])
    registry = registries.find(server.host)
    assert registry is not None
    async with outside.client(registries) as http:
        name = OllamaName(server.host, "me", "m", "latest")
        repository = Repository(registry, name, http)
        first = await repository.manifest()
        assert await repository.manifest() == first
        return first


def _tokens(server: Between) -> list[Seen]:
    return [seen for seen in server.seen if seen.path.startswith("/token")]


async def test_token_is_asked_for_once_with_what_the_registry_says(server: Between) -> None:
    """And nobody is named where nobody logged in."""
    assert await _manifest(server) == MANIFEST

    (asked,) = _tokens(server)
    assert parse_qs(urlsplit(asked.path).query) == {"service": [server.host], "scope": [SCOPE]}
    assert asked.authorization == ""


async def test_password_of_docker_goes_to_its_host(server: Between, home: Path) -> None:
    """For another host it is not sent."""
    config = home / ".docker/config.json"
    config.parent.mkdir()
    auths = {server.host: {"auth": base64.b64encode(b"ada:lovelace").decode()}}
    config.write_text(json.dumps({"auths": auths}))
    await _manifest(server)
    config.write_text(json.dumps({"auths": {"other:5000": auths[server.host]}}))
    await _manifest(server)

    told = [seen.authorization for seen in _tokens(server)]
    assert told == [f"Basic {auths[server.host]['auth']}", ""]


@pytest.mark.parametrize("text", ["{", '{"auths": {"%s": {"auth": "not base64!"}}}'])
async def test_file_of_docker_that_is_wrong_is_told(server: Between, home: Path, text: str) -> None:
    """With its path and the command that mends it."""
    config = home / ".docker/config.json"
    config.parent.mkdir()
    config.write_text(text.replace("%s", server.host))

    with pytest.raises(
        KvsupError, match=rf"config\.json cannot be used: .*docker login {server.host}"
    ):
        await _manifest(server)


async def test_key_of_ollama_signs_where_ollamas_registry_asks(
    server: Between, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature is one of the URL that was asked, by the key that is named with it."""
    monkeypatch.setattr(ollamakey, "HOSTS", {server.host})
    _write_key(home)

    await _manifest(server)

    (asked,) = _tokens(server)
    named, _, signed = asked.authorization.partition(":")
    public = load_ssh_public_key(f"ssh-ed25519 {named}".encode())
    assert isinstance(public, Ed25519PublicKey)
    empty = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()
    said = f"GET,http://{server.host}{asked.path},{empty}"
    public.verify(base64.b64decode(signed), said.encode())
    assert {"ts", "nonce", "service", "scope"} == parse_qs(urlsplit(asked.path).query).keys()


async def test_key_of_ollama_goes_nowhere_else(server: Between, home: Path) -> None:
    """A registry of one's own does not learn of it; without a key nothing is sent."""
    _write_key(home)

    await _manifest(server)

    assert [seen.authorization for seen in _tokens(server)] == [""]


async def test_key_of_ollama_that_is_none_is_told(
    server: Between, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its path."""
    monkeypatch.setattr(ollamakey, "HOSTS", {server.host})
    (home / ".ollama").mkdir()
    (home / ".ollama/id_ed25519").write_text("nonsense")

    with pytest.raises(KvsupError, match="id_ed25519 cannot be used"):
        await _manifest(server)


def _write_key(home: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (home / ".ollama").mkdir()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (home / ".ollama/id_ed25519").write_bytes(text)


async def test_refusal_names_the_mend(server: Between) -> None:
    """What the registry said comes along."""
    server.rules.insert(0, lambda _seen: Fault(status=403, body=b'{"errors": "no"}'))

    with pytest.raises(KvsupError) as told:
        await _manifest(server)

    assert str(told.value) == (
        f'unauthorized: access denied (403: {{"errors": "no"}}); docker login {server.host}'
    )
