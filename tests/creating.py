"""What tests of created models share: Modelfiles, requests, and what lies in the store."""

import hashlib
import textwrap
from pathlib import Path
from typing import Any

import tomli

from tests.running import RunningKvsup

HI = [{"role": "user", "content": "Hi"}]

MARIO = """
    # A plumber.
    FROM base
    PARAMETER kv_cache_type q8_0:q4_0
    PARAMETER num_ctx auto
    PARAMETER temperature 0.3
    PARAMETER stop "<end>"
    PARAMETER stop "<stop>"
    SYSTEM \"\"\"You are Mario.
    Always.\"\"\"
    LICENSE As you like it.
    MESSAGE user Is it you?
    MESSAGE assistant It's me!
"""


def modelfile(kvsup: RunningKvsup, text: str) -> str:
    """Write a Modelfile, and return its path."""
    path = kvsup.folder / "Modelfile"
    path.write_text(textwrap.dedent(text))
    return str(path)


def toml_of(kvsup: RunningKvsup, name: str) -> dict[str, Any]:
    """Return what the TOML file of a model says."""
    return tomli.loads((kvsup.configs / f"{name}.toml").read_text())


def post(kvsup: RunningKvsup, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    """Return status and answer of a request that is not streamed."""
    answer = kvsup.client.post(path, json={"stream": False, **body})
    return answer.status_code, answer.json() if answer.content else {}


def said(kvsup: RunningKvsup, model: str) -> str:
    """Return what a model says to ``HI``."""
    status, answer = post(kvsup, "/api/chat", model=model, messages=HI)
    assert status == 200, answer
    return str(answer["message"]["content"])


def upload(kvsup: RunningKvsup, path: Path) -> str:
    """Send a file, and return its digest."""
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    kvsup.client.post(f"/api/blobs/{digest}", content=data).raise_for_status()
    return digest


def store_files(kvsup: RunningKvsup) -> set[str]:
    """Return every file of the store but its lock."""
    found = {str(p.relative_to(kvsup.store)) for p in kvsup.store.rglob("*") if p.is_file()}
    return found - {"kvsup/lock"}
