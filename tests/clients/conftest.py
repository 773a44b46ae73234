"""One kvsup for all clients, and an environment in which they speak to nobody else."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.models import client_models
from tests.clients.recording import Recorder
from tests.registries import DockerRegistry
from tests.running import RunningKvsup
from tests.tiny import TinyModels

OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "NO_PROXY": "127.0.0.1,localhost",
}
"""Set before any client is imported: several fetch or report something when they are."""

RECORD_TO = "KVSUP_RECORD_REQUESTS"
"""Variable that names a folder: what each client sends is written there."""

for unwanted in ("OLLAMA_HOST", "OLLAMA_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_AUTH_TOKEN"):
    os.environ.pop(unwanted, None)
os.environ.update(OFFLINE)


@pytest.fixture
def anyio_backend() -> str:
    """Return the one backend that these clients run on."""
    return "asyncio"


collect_ignore = [] if shutil.which("ollama") else ["test_ollama_command.py"]
"""Ollama's own program is tried where there is one: it comes by no package index."""


@pytest.fixture(scope="session")
def registry_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the host of a registry that the kvsup of all may use."""
    with DockerRegistry(tmp_path_factory.mktemp("clients") / "registry") as registry:
        yield registry.host


@pytest.fixture(scope="session")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory,
    llama_server: Path,
    smollm2: Path,
    registry_host: str,
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for every client."""
    models = client_models(TinyModels(tmp_path_factory.mktemp("tiny")), smollm2)
    folder = tmp_path_factory.mktemp("clients") / "kvsup"
    with RunningKvsup(
        folder,
        models=models,
        llama_server=llama_server,
        host=f'registries = ["{registry_host}"]\n',
    ) as running:
        if record_to := os.environ.get(RECORD_TO):
            with Recorder(running.url, Path(record_to)) as recorder:
                running.url = recorder.url
                yield running
        else:
            yield running
    assert running.children() == [], running.log()
