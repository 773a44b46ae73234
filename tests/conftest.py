"""Fixtures that everything shares: the real binaries and the real model. Missing is a failure."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvsup.runtime.paths import cache_dir
from tests.registries import DockerRegistry
from tests.running import RunningKvsup
from tests.tiny import TinyModels

SERVERS = cache_dir() / "llama-server"

OLDER = "b10434-vulkan" if (SERVERS / "b10434-vulkan").is_dir() else "b10435-cpu"
"""The wheel's build, or the next one from source where the processor cannot run that."""

BUILDS = ("b11434-cpu", OLDER)
"""Every test on a real llama-server that asks for ``any_build`` runs on both."""

StartKvsup = Callable[..., RunningKvsup]


@pytest.fixture(scope="session", autouse=True)
def _own_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests out of the models of whoever runs them."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    """Return a real registry on this machine, empty."""
    with DockerRegistry(tmp_path / "registry") as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Let no test see, or write to, the store of models of who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("XDG_DATA_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """Return the newest llama-server that kvsup is tested with."""
    return _binary(BUILDS[0])


@pytest.fixture(scope="session")
def older_llama_server() -> Path:
    """Return the older llama-server that kvsup is tested with."""
    return _binary(OLDER)


@pytest.fixture(scope="session", params=BUILDS)
def any_build(request: pytest.FixtureRequest) -> Path:
    """Return each llama-server that kvsup is tested with."""
    return _binary(request.param)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the demo model."""
    return _model("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Return a base model, without a chat template, most of whose layers have a sliding window."""
    return _model("gemma-3-270m-q4_k_m.gguf")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Return tiny models whose answers are known beforehand."""
    return TinyModels(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def start_kvsup(tmp_path: Path, llama_server: Path) -> Iterator[StartKvsup]:
    """Return a function that starts a real kvsup; every one is stopped at the end."""
    running: list[RunningKvsup] = []

    def start(models: dict[str, str], **settings: object) -> RunningKvsup:
        folder = tmp_path / f"kvsup{len(running)}"
        arguments = {"llama_server": llama_server, **settings}
        kvsup = RunningKvsup(folder, models=models, **arguments)  # type: ignore[arg-type]
        running.append(kvsup)
        return kvsup

    yield start
    for kvsup in running:
        kvsup.stop()
        assert kvsup.children() == [], kvsup.log()


def _binary(folder: str) -> Path:
    return _existing(SERVERS / folder / "llama-server")


def _model(name: str) -> Path:
    return _existing(cache_dir() / "models" / name)


def _existing(path: Path) -> Path:
    if not path.is_file():
        pytest.fail(f"{path} is missing; run scripts/test")
    return path
