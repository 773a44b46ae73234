"""Who kvsup is to a registry: what ``docker login`` wrote, or the user's key of Ollama."""

import base64
import binascii
import json
import os
from collections.abc import Mapping
from pathlib import Path

from kvsup.errors import KvsupError

_MAX_FILE_BYTES = 1 << 20


def basic_of(host: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return ``USER:PASSWORD`` in base64 for a registry; None where nobody logged in there.

    Docker's ``config.json`` has it under ``auths`` (docs.docker.com, ``docker login``); programs
    that keep passwords elsewhere are not asked.

    Raises:
        KvsupError: the file is there and wrong.
    """
    folder = Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    path = folder / "config.json"
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_FILE_BYTES))["auths"][host]["auth"]
        return base64.b64encode(base64.b64decode(found, validate=True)).decode()
    except (FileNotFoundError, KeyError, TypeError):
        return None
    except (OSError, ValueError, binascii.Error) as error:
        raise KvsupError(f"{path} cannot be used: {error}; docker login {host}") from error
