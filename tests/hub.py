"""Stands in for Hugging Face's hub, which tests cannot reach: its API, and files behind a redirect.

What it answers is what ``huggingface_hub`` reads (``model_info`` with ``files_metadata``) and what
``resolve`` links lead to: a CDN of another host, which gives ranges.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.between import Between, Fault, Seen

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Hub:
    """Repositories on loopback, each a few files at one commit."""

    def __init__(self) -> None:
        self.api, self.cdn = Between(), Between()
        self.token = ""
        """Without it a repository is refused, where there is one."""
        self.is_gated = False
        """Who has no token sees what a repository has, and gets no file of it."""
        self._files: dict[str, dict[str, bytes]] = {}
        self._commits: dict[str, str] = {}
        self._without_digest: set[str] = set()
        self.api.rules.append(self._answer)
        self.cdn.rules.append(self.file)

    def __enter__(self) -> "Hub":  # noqa: PYI034 - typing.Self is of Python 3.11
        self.api.__enter__()
        self.cdn.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.api.__exit__(kind, error, trace)
        self.cdn.__exit__(kind, error, trace)

    @property
    def url(self) -> str:
        """Return what ``HF_ENDPOINT`` is set to."""
        return f"http://{self.api.host}"

    def add(
        self, repository: str, files: Mapping[str, Path | bytes], *, commit: str = "a" * 40
    ) -> None:
        """Have files in a repository, which is at ``commit`` from then on."""
        data = {n: f if isinstance(f, bytes) else f.read_bytes() for n, f in files.items()}
        self._files.setdefault(repository, {}).update(data)
        self._commits[repository] = commit

    def without_digest(self, file: str) -> None:
        """Have a file as one that is too small to be a large one."""
        self._without_digest.add(file)

    def _answer(self, seen: Seen) -> Fault:
        is_asked = seen.path.startswith("/api/models/")
        is_open = not self.token or (is_asked and self.is_gated)
        if not is_open and seen.authorization != f"Bearer {self.token}":
            return Fault(status=401, headers=(("x-error-code", "GatedRepo"),), body=b"{}")
        path = seen.path.partition("?")[0]
        if is_asked:
            return self._info(path.removeprefix("/api/models/"))
        repository, _, rest = path[1:].partition("/resolve/")
        commit, _, file = rest.partition("/")
        if commit != self._commits.get(repository) or file not in self._files[repository]:
            return Fault(status=404)
        location = f"http://{self.cdn.host}/{repository}/{file}"
        return Fault(status=302, headers=(("location", location),))

    def _info(self, repository: str) -> Fault:
        if repository not in self._files:
            headers = (("x-error-code", "RepoNotFound"),)
            return Fault(status=404, headers=headers, body=b"{}")
        siblings = [self._sibling(n, data) for n, data in self._files[repository].items()]
        info = {"id": repository, "sha": self._commits[repository], "siblings": siblings}
        json_type = (("content-type", "application/json"),)
        return Fault(status=200, headers=json_type, body=json.dumps(info).encode())

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        described: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
        if name not in self._without_digest:
            sha256 = hashlib.sha256(data).hexdigest()
            described["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
        return described

    def file(self, seen: Seen) -> Fault:
        """Return what the CDN answers."""
        repository, _, file = seen.path[1:].rpartition("/")
        data = self._files[repository][file]
        match = _RANGE.fullmatch(seen.range)
        if match is None:
            return Fault(status=200, body=data)
        first, last = int(match[1]), int(match[2])
        headers = (("content-range", f"bytes {first}-{last}/{len(data)}"),)
        return Fault(status=206, headers=headers, body=data[first : last + 1])
