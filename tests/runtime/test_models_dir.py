"""The folder of kvsup's own store of models, and the registries, as ``kvsup.toml`` names them."""

from pathlib import Path

import pytest

from kvsup.runtime.configdir import read_configuration
from kvsup.runtime.paths import models_dir
from tests.runtime.folders import ConfigFolder
from tests.stores import OllamaLayout
from tests.tiny import TinyModels


@pytest.fixture
def folder(
    tmp_path: Path,
    llama_server: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> ConfigFolder:
    """Return an empty configuration folder, with a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return ConfigFolder(llama_server=llama_server, state=tmp_path_factory.getbasetemp() / "state")


def _fill(root: Path, name: str, weights: Path) -> None:
    root.mkdir(parents=True)
    layout = OllamaLayout(root)
    layout.add(name, layout.file("model", weights))


def test_folder_is_the_users_unless_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By XDG's rules; it is made by who writes to it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    by_variable = models_dir(None)
    monkeypatch.delenv("XDG_DATA_HOME")

    assert by_variable == tmp_path / "data/kvsup/models"
    assert models_dir(None) == tmp_path / ".local/share/kvsup/models"
    assert models_dir("/x") == Path("/x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("", "data/kvsup/models"),
        ('models_dir = "own"\n', "configs/own"),
        ('models_dir = "../own"\n', "own"),
        ('models_dir = "~/own"\n', "home/own"),
    ],
)
def test_models_of_the_folder_are_served(
    folder: ConfigFolder,
    tmp_path: Path,
    tiny: TinyModels,
    host: str,
    place: str,
) -> None:
    """Without a word of the sources; relative paths begin where kvsup.toml lies."""
    _fill(tmp_path / place, "mine:1b", tiny.plain())

    configuration = folder.read(host=host)

    assert configuration.models_dir == tmp_path / place
    assert [plan.name for plan in configuration.plans] == ["mine:1b"]


def test_folder_stays_until_kvsup_starts_again(
    folder: ConfigFolder, tmp_path: Path, tiny: TinyModels
) -> None:
    """What is pulled goes into the old one, so that is what is served."""
    _fill(tmp_path / "old", "old", tiny.plain())
    _fill(tmp_path / "new", "new", tiny.plain())
    before = folder.read(host='models_dir = "../old"\n')
    started = folder.read(host='models_dir = "../new"\n')

    after = read_configuration(folder.path, {}, in_force=before)

    assert [plan.name for plan in started.plans] == ["new:latest"]
    assert [plan.name for plan in after.plans] == ["old:latest"]
    assert (before.models_dir, after.models_dir) == (tmp_path / "old", tmp_path / "old")
    assert after.host.models_dir == str(tmp_path / "new"), "so that it is told"


def test_registries_are_those_of_ollama_and_hugging_face_unless_others_are_named(
    folder: ConfigFolder, tiny: TinyModels
) -> None:
    """None is a way to forbid all."""
    model = f'model = "{tiny.plain()}"\n'

    assert folder.read(a=model).host.registries == ("registry.ollama.ai", "hf.co")
    named = folder.read(host='registries = ["http://localhost:5000"]\n', a=model)
    assert named.host.registries == ("http://localhost:5000",)
    assert folder.read(host="registries = []\n", a=model).host.registries == ()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ('["hf.co", "*"]', '"*" names no registry; write HOST, HOST:PORT, or http://HOST:PORT'),
        ('["https://hf.co/org"]', '"https://hf.co/org" names no registry; write HOST'),
        ('"hf.co"', "expected array, got str"),
    ],
)
def test_registry_that_is_none_is_told_where_it_stands(
    folder: ConfigFolder, tiny: TinyModels, entry: str, problem: str
) -> None:
    """By ``kvsup check``, before anything is pulled."""
    [told] = folder.problems(host=f"registries = {entry}\n", a=f'model = "{tiny.plain()}"\n')

    assert told.startswith(f"configs/kvsup.toml:3: registries: {problem}")
