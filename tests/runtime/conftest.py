"""Fixtures of the tests with real child processes: asyncio on uvloop, as kvsup runs."""

from pathlib import Path

import pytest

from tests.runtime.supervised import Folder


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Return the one backend that kvsup runs on."""
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture
def folder(tmp_path: Path, llama_server: Path, smollm2: Path) -> Folder:
    """Return an empty configuration folder for the real llama-server and the demo model."""
    return Folder(tmp_path, llama_server, smollm2)
