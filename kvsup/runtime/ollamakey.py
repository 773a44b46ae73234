"""The user's key of Ollama, by which Ollama's registry knows who asks (auth/auth.go, v0.17.4)."""

import base64
import hashlib
import secrets
import time
from pathlib import Path

from kvsup.errors import KvsupError

HOSTS = frozenset({"registry.ollama.ai", "ollama.com"})
"""Registries that take such a signature in the place of a password."""

_MAX_KEY_BYTES = 1 << 16


def stamp() -> tuple[tuple[str, str], ...]:
    """Return what makes each request for a token another (server/auth.go)."""
    nonce = base64.urlsafe_b64encode(secrets.token_bytes(16)).rstrip(b"=").decode()
    return ("ts", str(int(time.time()))), ("nonce", nonce)


def signature(url: str, home: Path) -> str | None:
    """Return the ``Authorization`` of a GET of ``url``; None where this user has no key.

    Raises:
        KvsupError: the key cannot be used.
    """
    path = home / ".ollama" / "id_ed25519"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES)
    except OSError:
        return None
    try:
        from cryptography.exceptions import (  # noqa: PLC0415 - an extra, and slow to load
            UnsupportedAlgorithm,
        )
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
            Ed25519PrivateKey,
        )
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            Encoding,
            PublicFormat,
            load_ssh_private_key,
        )
    except ImportError as error:
        raise KvsupError(
            "ollama.com knows users by a key, which needs a library: pip install 'kvsup[ollama]'"
        ) from error
    try:
        key = load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KvsupError(f"{path} cannot be used: {error}; ollama signin makes one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KvsupError(f"{path} is no Ed25519 key; ollama signin makes one")
    empty = base64.b64encode(hashlib.sha256().hexdigest().encode()).decode()
    signed = base64.b64encode(key.sign(f"GET,{url},{empty}".encode())).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return f"{public.split()[1].decode()}:{signed}"
