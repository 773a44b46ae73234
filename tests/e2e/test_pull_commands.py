"""``kvsup pull`` and its like, against a real registry."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvsup.runtime.paths import cache_dir
from tests.between import Between
from tests.conftest import StartKvsup
from tests.e2e.commands import run
from tests.pulling import create, lines_of, said
from tests.registries import DockerRegistry
from tests.running import RunningKvsup, eventually
from tests.tiny import ANSWER, TinyModels


@pytest.fixture
def between(registry: DockerRegistry) -> Iterator[Between]:
    """Return what stands before the registry; models are named by its host."""
    with Between(registry.host) as between:
        yield between


@pytest.fixture
def start(start_kvsup: StartKvsup, between: Between) -> Callable[..., RunningKvsup]:
    """Return what starts a kvsup that may use the registry."""

    def start(**models: str) -> RunningKvsup:
        return start_kvsup(models, host=f'registries = ["{between.host}"]\n')

    return start


def test_command_line_pulls_without_a_kvsup_that_runs(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels
) -> None:
    """The next ``run`` serves it; progress is on stderr."""
    name = f"{between.host}/me/plain"
    kvsup = start(plain=f'model = "{tiny.plain()}"\nnum_ctx = 512\n')
    create(kvsup, name, **{"from": "plain"})
    pushed = kvsup.cli("push", name)
    removed = kvsup.cli("rm", name)
    assert kvsup.stop() == 0

    pulled = kvsup.cli("pull", name)
    again = kvsup.cli("pull", f"{between.host}/me/gone")
    kvsup.start()

    assert (pushed.returncode, removed.returncode, pulled.returncode) == (0, 0, 0), pulled.stderr
    assert removed.stdout == f"deleted {name!r}\n"
    assert pulled.stderr.splitlines()[0] == "pulling manifest"
    assert pulled.stderr.splitlines()[-1] == "success"
    assert again.returncode == 1
    assert again.stderr.endswith("kvsup: pull model manifest: file does not exist\n")
    assert said(kvsup, name) == ANSWER


def test_first_command_of_a_new_user_is_a_pull(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels, tmp_path: Path
) -> None:
    """No folder is there, no file was written: what is pulled is listed, and ``run`` serves it."""
    name = f"{between.host}/me/plain"
    maker = start(plain=f'model = "{tiny.plain()}"\nnum_ctx = 512\n')
    create(maker, name, **{"from": "plain"})
    lines_of(maker, "/api/push", model=name)
    home = tmp_path / "home"
    (home / ".config/kvsup").mkdir(parents=True)
    (home / ".config/kvsup/kvsup.toml").write_text(f'registries = ["{between.host}"]\nport = 0\n')
    folders = {"XDG_CONFIG_HOME": "", "XDG_STATE_HOME": "", "XDG_DATA_HOME": "", "HOME": str(home)}
    cache = {"XDG_CACHE_HOME": str(cache_dir().parent)}

    pulled = run("pull", name, cwd=home, **folders, **cache)
    shutil.rmtree(home / ".config")
    listed = run("list", cwd=home, **folders, **cache)

    assert pulled.returncode == 0, pulled.stderr
    assert listed.returncode == 0, listed.stderr
    assert f"{name}:latest" in listed.stdout
    assert (home / ".local/share/kvsup/models/manifests").is_dir()


def test_interrupted_command_line_goes_on(
    start: Callable[..., RunningKvsup], between: Between, smollm2: Path
) -> None:
    """Ctrl-C leaves what came; exit code 130."""
    name = f"{between.host}/me/smol"
    kvsup = start(smol=f'model = "{smollm2}"\nnum_ctx = 512\n')
    create(kvsup, name, **{"from": "smol"})
    lines_of(kvsup, "/api/push", model=name)
    kvsup.cli("rm", name)
    kvsup.stop()
    between.rate_bytes_s = 30e6
    with subprocess.Popen(
        [sys.executable, "-m", "kvsup", "pull", name, "--config", str(kvsup.configs)],
        stderr=subprocess.PIPE,
        env=kvsup._environment,
    ) as process:
        eventually(lambda: between.n_sent_bytes > 40e6)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    between.rate_bytes_s = 0.0
    before_bytes = between.n_sent_bytes

    pulled = kvsup.cli("pull", name)

    assert pulled.returncode == 0, pulled.stderr
    assert between.n_sent_bytes - before_bytes < smollm2.stat().st_size - 20e6
