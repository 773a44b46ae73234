"""What tests of pull and push share: requests, their lines, and what lies in a store."""

import json
from pathlib import Path
from typing import Any

from kvsup.runtime.bringing import digest_of
from tests.running import RunningKvsup

HI = [{"role": "user", "content": "Hi"}]
ASKED = {"messages": HI, "stream": False, "options": {"temperature": 0, "num_predict": 24}}


def lines_of(kvsup: RunningKvsup, path: str, **body: object) -> list[dict[str, Any]]:
    """Return the lines of a request that is streamed."""
    with kvsup.client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.iter_lines()]


def statuses(lines: list[dict[str, Any]]) -> list[str]:
    """Return each status once, in order."""
    return list(dict.fromkeys(line.get("status", line.get("error", "")) for line in lines))


def blobs_of(store: Path) -> dict[str, str]:
    """Return what each file of a store really hashes to, by its name."""
    files = (store / "blobs").iterdir()
    return {path.name: f"sha256-{digest_of(path, lambda _n: None)}" for path in files}


def create(kvsup: RunningKvsup, name: str, **more: object) -> None:
    """Make a model, which must succeed."""
    answer = kvsup.client.post("/api/create", json={"model": name, "stream": False, **more})
    assert answer.json() == {"status": "success"}


def said(kvsup: RunningKvsup, model: str) -> str:
    """Return what a model says to ``HI``."""
    answer = kvsup.client.post("/api/chat", json={"model": model, **ASKED})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["message"]["content"])


def manifests_of(kvsup: RunningKvsup) -> list[Path]:
    """Return the manifests in the store of a kvsup."""
    return [path for path in (kvsup.store / "manifests").rglob("*") if path.is_file()]
