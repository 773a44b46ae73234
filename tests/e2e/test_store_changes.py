"""Models of the own store that are copied, deleted and replaced."""

import json
from pathlib import Path

import pytest

from tests.conftest import StartKvsup
from tests.creating import MARIO, modelfile, post, said, store_files
from tests.running import RunningKvsup, eventually
from tests.tiny import ANSWER, TinyModels


@pytest.fixture
def kvsup(start_kvsup: StartKvsup, tiny: TinyModels) -> RunningKvsup:
    """Return a kvsup with one model that has a file of its own."""
    base = f'model = "{tiny.plain()}"\nnum_ctx = 512\nkv_cache_type = "q8_0:q5_1"\nthreads = 1\n'
    return start_kvsup({"base": base})


def test_copy_of_a_store_model_outlives_it(kvsup: RunningKvsup) -> None:
    """A manifest, no second copy of the weights; each goes with its own files."""
    kvsup.cli("create", "mario", "-f", modelfile(kvsup, MARIO))
    n_blobs = len(store_files(kvsup))

    copied = kvsup.cli("cp", "mario", "luigi:v2")
    n_copied = len(store_files(kvsup))
    removed = kvsup.cli("rm", "mario")
    spoken = said(kvsup, "luigi:v2")
    kvsup.cli("rm", "luigi:v2")

    assert (copied.returncode, removed.returncode) == (0, 0), copied.stderr
    assert n_copied == n_blobs + 1
    assert spoken == ANSWER
    assert store_files(kvsup) == set()
    eventually(lambda: set(kvsup.models()) == {"base"})
    trash = [path.read_text() for path in (kvsup.state / "deleted").iterdir()]
    assert any("mario" in text for text in trash)


def test_copy_takes_the_place_of_what_had_its_name(kvsup: RunningKvsup) -> None:
    """Of a file, which goes to the trash; a model without a file of its own has none then, too."""
    kvsup.cli("create", "mario", "-f", modelfile(kvsup, MARIO))
    (kvsup.configs / "mario.toml").unlink()
    kvsup.client.post("/kvsup/reload").raise_for_status()

    copied = kvsup.cli("cp", "mario", "base")

    _, shown = post(kvsup, "/api/show", model="base")
    assert copied.returncode == 0, copied.stderr
    assert shown["system"] == "You are Mario.\nAlways."
    assert not (kvsup.configs / "base.toml").exists()
    assert len(list((kvsup.state / "deleted").iterdir())) == 1


def test_weights_that_were_copied_before_are_not_copied_again(kvsup: RunningKvsup) -> None:
    """They are known by their sum, for as long as the file stays the same."""
    path = modelfile(kvsup, "FROM base\n")
    first = kvsup.cli("create", "one", "-f", path)
    second = kvsup.cli("create", "two", "-f", path)

    assert "copying" in first.stderr
    assert second.returncode == 0, second.stderr
    assert "copying" not in second.stderr
    assert said(kvsup, "two") == ANSWER


def test_model_that_another_is_made_of_stays(kvsup: RunningKvsup) -> None:
    """Its deletion would leave a file that names nothing; the error names that file."""
    kvsup.cli("create", "mario", "-f", modelfile(kvsup, MARIO))
    kvsup.write("bros", 'model = "ollama:mario"\nnum_ctx = 512\n')
    kvsup.client.post("/kvsup/reload").raise_for_status()

    done = kvsup.cli("rm", "mario")

    assert done.returncode == 1
    assert "bros.toml is made of mario:latest" in done.stderr
    assert said(kvsup, "bros") == ANSWER


def test_second_creation_replaces_the_first(kvsup: RunningKvsup) -> None:
    """Its file goes to the trash, its files out of the store."""
    kvsup.cli("create", "mario", "-f", modelfile(kvsup, MARIO))
    path = kvsup.configs / "mario.toml"
    path.write_text("# mine\n" + path.read_text())
    kvsup.client.post("/kvsup/reload").raise_for_status()

    done = kvsup.cli("create", "MARIO", "-f", modelfile(kvsup, "FROM base\nSYSTEM Other.\n"))

    _, shown = post(kvsup, "/api/show", model="mario")
    assert done.returncode == 0, done.stderr
    assert shown["system"] == "Other."
    assert any("# mine" in p.read_text() for p in (kvsup.state / "deleted").iterdir())
    manifests = [name for name in store_files(kvsup) if name.startswith("manifests")]
    assert manifests == ["manifests/registry.ollama.ai/library/mario/latest"]
    named = json.loads((kvsup.store / manifests[0]).read_text())
    digests = {one["digest"].replace(":", "-") for one in (named["config"], *named["layers"])}
    assert {Path(name).name for name in store_files(kvsup) if name.startswith("blobs")} == digests
