"""Copy and delete on a real configuration folder: what is served afterwards, and what is kept."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvsup.config import ModelConfig
from kvsup.errors import ConfigError, RequestError
from kvsup.plan import Plan
from kvsup.runtime.catalogue import copy_model, delete_model
from tests.conftest import StartKvsup
from tests.runtime.catalogues import Catalogue
from tests.runtime.folders import ConfigFolder

COPIED = """\
#:schema ../schemas/model.schema.json
# The model of this house.
name = "copied"
model = "{path}"  # fetched by hand
# K and V apart.
kv_cache_type = "q8_0:q5_1"

# Cooler than its own default.
[options]
temperature = 0.5
top_k = 20  # few
"""

WITHOUT_AGENT = """\
[options]
temperature = 0.5
top_k = 20  # few

# For long texts.
[variants.long]
num_ctx = 1024
"""


@pytest.fixture
def catalogue(
    tmp_path: Path,
    llama_server: Path,
    smollm2: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Catalogue:
    """Return a folder with one model, two variants and three aliases."""
    monkeypatch.chdir(tmp_path)
    state = tmp_path_factory.getbasetemp() / "state"
    folder = ConfigFolder(llama_server=llama_server, state=state)
    return Catalogue(folder, smollm2, tmp_path / "state" / "deleted")


def _values(plan: Plan) -> dict[str, object]:
    """Return what a model is configured to, but for its names and when it is loaded."""
    left_out = {"name", "aliases", "preload", "pin", "source"}
    return {
        field: getattr(plan.model, field)
        for field in ModelConfig.__struct_fields__
        if field not in left_out
    }


def test_copy_of_a_model_serves_the_same_under_the_new_name(
    catalogue: Catalogue, smollm2: Path
) -> None:
    """It has its values and comments, but no alias, variant, preload or pin; the source stays."""
    path = catalogue.copy("qwen", "copied:latest")

    plans = catalogue.plans()
    assert path == catalogue.path / "copied.toml"
    assert path.read_text() == COPIED.format(path=smollm2)
    assert list(plans) == ["copied", "qwen", "qwen:agent", "qwen:long"]
    assert _values(plans["copied"]) == _values(plans["qwen"])
    assert plans["copied"].model.aliases == ()
    assert not plans["copied"].model.preload
    assert not plans["copied"].model.pin
    assert (catalogue.path / "qwen.toml").read_text() == catalogue.text
    assert catalogue.kept() == {}


def test_copy_of_a_variant_has_its_values_over_those_of_its_model(catalogue: Catalogue) -> None:
    """Tables are merged as they are for the variant itself; aliases and preload stay behind."""
    path = catalogue.copy("qwen:agent", "org/Bot:1")

    plans = catalogue.plans()
    assert path == catalogue.path / "org-bot-1.toml"
    assert _values(plans["org/Bot:1"]) == _values(plans["qwen:agent"])
    assert plans["org/Bot:1"].model.options == {"temperature": 0.2, "top_k": 20}
    assert plans["org/Bot:1"].model.aliases == ()
    assert "# The model of this house." in path.read_text()


def test_copy_of_an_alias_is_a_copy_of_its_model(catalogue: Catalogue) -> None:
    """Any of its names will do."""
    catalogue.copy("tiny", "copied")

    plans = catalogue.plans()
    assert _values(plans["copied"]) == _values(plans["qwen"])


@pytest.mark.parametrize("name", ["qwen", "QWEN:latest", "small", "Tiny"])
def test_copy_onto_itself_changes_nothing(catalogue: Catalogue, name: str) -> None:
    """Under whatever spelling, or onto an alias, which is the model already."""
    path = catalogue.copy("qwen", name)

    assert path == catalogue.path / "qwen.toml"
    assert path.read_text() == catalogue.text
    assert (catalogue.files(), catalogue.kept()) == (["qwen.toml"], {})


def test_copy_onto_another_model_replaces_it_and_keeps_its_file(catalogue: Catalogue) -> None:
    """As Ollama does; what it was is in the trash."""
    catalogue.write("other", catalogue.other)

    path = catalogue.copy("qwen", "OTHER")

    plans = catalogue.plans()
    assert path == catalogue.path / "other.toml"
    assert _values(plans["OTHER"]) == _values(plans["qwen"])
    assert catalogue.kept() == {"other-1.toml": catalogue.other}


def test_copy_onto_an_alias_of_another_model_takes_only_the_alias(catalogue: Catalogue) -> None:
    """The other model goes on under its own name."""
    catalogue.write("other", catalogue.other)

    catalogue.copy("other", "small")

    plans = catalogue.plans()
    assert _values(plans["small"]) == _values(plans["other"])
    assert plans["qwen"].model.aliases == ("tiny",)
    assert catalogue.kept() == {"qwen-1.toml": catalogue.text}


def test_copy_of_a_model_onto_its_own_variant_replaces_the_variant(catalogue: Catalogue) -> None:
    """The file is the source's and the variant's at once."""
    catalogue.copy("qwen", "qwen:agent")

    plans = catalogue.plans()
    assert catalogue.files() == ["qwen-agent.toml", "qwen.toml"]
    assert _values(plans["qwen:agent"]) == _values(plans["qwen"])
    assert list(plans) == ["qwen:agent", "qwen", "qwen:long"]
    assert catalogue.kept() == {"qwen-1.toml": catalogue.text}


def test_copy_of_a_variant_onto_its_own_model_is_refused(catalogue: Catalogue) -> None:
    """The source would go with what it replaces."""
    with pytest.raises(RequestError, match="'qwen:agent' is a variant of 'qwen'"):
        catalogue.copy("qwen:agent", "qwen")

    assert (catalogue.files(), catalogue.kept()) == (["qwen.toml"], {})


@pytest.mark.parametrize("name", ["", ":x", "a/b/c/d", "../evil", ".hidden", "a\\b c"])
def test_copy_to_what_is_no_name_is_refused(catalogue: Catalogue, name: str) -> None:
    """No file is made of it."""
    plan = catalogue.plans()["qwen"]

    with pytest.raises(RequestError, match=r"^destination .* is invalid$"):
        copy_model(catalogue.path, plan, name, existing=None, trash=catalogue.trash)

    assert catalogue.files() == ["qwen.toml"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("kvsup", "kvsup-2.toml"),
        ("KVSUP:latest", "kvsup-2.toml"),
        ("Taken", "taken-2.toml"),
        ("host.example:99/ns/m:t", "host.example-99-ns-m-t.toml"),
        ("a" * 80 + ":" + "b" * 80, "a" * 80 + "-" + "b" * 19 + ".toml"),
        ("_x..y", "_x..y.toml"),
    ],
)
def test_copy_to_any_name_makes_a_safe_file_of_its_own(
    catalogue: Catalogue, name: str, file: str
) -> None:
    """No folder, no hidden file, none that is there in another case, and never the host's."""
    catalogue.write("TAKEN", f'name = "someone"\n{catalogue.other}')
    host = (catalogue.path / "kvsup.toml").read_text() if catalogue.plans() else ""

    path = catalogue.copy("qwen", name)

    assert path == catalogue.path / file
    assert catalogue.find(name) is not None
    assert "someone" in catalogue.plans()
    assert (catalogue.path / "kvsup.toml").read_text() == host


def test_copy_has_the_mode_of_its_source(catalogue: Catalogue) -> None:
    """What others may not read in one file they may not read in the other."""
    (catalogue.path / "qwen.toml").chmod(0o600)

    path = catalogue.copy("qwen", "copied")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_copy_in_a_folder_that_cannot_be_written_changes_nothing(catalogue: Catalogue) -> None:
    """The error names the folder; what would have been replaced is still there."""
    catalogue.write("other", catalogue.other)
    source, existing = catalogue.find("qwen"), catalogue.find("other")
    assert source is not None
    gone = catalogue.path / "gone"
    gone.mkdir()
    (gone / "qwen.toml").write_text(catalogue.text)
    (gone / "other.toml").write_text(catalogue.other)
    catalogue.trash.parent.mkdir(exist_ok=True)
    catalogue.trash.write_text("no folder")

    with pytest.raises(ConfigError, match=r"other\.toml cannot be kept in "):
        copy_model(gone, source, "other", existing=existing, trash=catalogue.trash)

    assert sorted(path.name for path in gone.iterdir()) == ["other.toml", "qwen.toml"]
    assert (gone / "other.toml").read_text() == catalogue.other


def test_delete_of_a_model_moves_its_file_to_the_trash(catalogue: Catalogue, smollm2: Path) -> None:
    """With its variants; the weights and other models stay."""
    catalogue.write("other", catalogue.other)

    catalogue.delete("Qwen:latest")

    assert list(catalogue.plans()) == ["other"]
    assert catalogue.kept() == {"qwen-1.toml": catalogue.text}
    assert smollm2.is_file()


def test_delete_of_the_same_name_again_and_again_loses_nothing(catalogue: Catalogue) -> None:
    """Each file of the trash has a number of its own."""
    for n in range(3):
        catalogue.write("other", f"{catalogue.other}# {n}\n")
        catalogue.delete("other")

    assert catalogue.kept() == {
        f"other-{n + 1}.toml": f"{catalogue.other}# {n}\n" for n in range(3)
    }
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in [catalogue.trash]} == {0}


def test_delete_of_a_variant_takes_only_its_table(catalogue: Catalogue) -> None:
    """With what stands above it; the comment of the next one stays."""
    catalogue.delete("qwen:agent")

    text = (catalogue.path / "qwen.toml").read_text()
    assert list(catalogue.plans()) == ["qwen", "qwen:long"]
    assert text.endswith(WITHOUT_AGENT)
    assert text.startswith(catalogue.text.partition("[options]")[0])
    assert catalogue.kept() == {"qwen-1.toml": catalogue.text}


def test_delete_of_every_variant_leaves_the_model(catalogue: Catalogue) -> None:
    """A table without tables in it goes as well."""
    catalogue.delete("qwen:agent")
    catalogue.delete("qwen:long")

    assert list(catalogue.plans()) == ["qwen"]
    assert "variants" not in (catalogue.path / "qwen.toml").read_text()
    assert list(catalogue.kept()) == ["qwen-1.toml", "qwen-2.toml"]


@pytest.mark.parametrize(
    ("alias", "left"), [("small", ("tiny",)), ("TINY:latest", ("small",)), ("scout", None)]
)
def test_delete_of_an_alias_takes_only_the_alias(
    catalogue: Catalogue, alias: str, left: tuple[str, ...] | None
) -> None:
    """Of a model as of a variant."""
    before = catalogue.plans()

    catalogue.delete(alias)

    after = catalogue.plans()
    assert set(after) == set(before)
    assert after["qwen"].model.aliases == (left or ("small", "tiny"))
    assert after["qwen:agent"].model.aliases == (("scout",) if left else ())
    assert {n: _values(plan) for n, plan in after.items()} == {
        n: _values(plan) for n, plan in before.items()
    }


def test_delete_in_a_file_behind_a_link_changes_the_file_and_keeps_the_link(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """Configurations often live in a repository of their own."""
    link = catalogue.path / "qwen.toml"
    real = tmp_path / "elsewhere.toml"
    link.rename(real)
    link.symlink_to(real)

    catalogue.delete("small")
    assert link.is_symlink()
    assert 'aliases = ["tiny"]' in real.read_text()
    catalogue.write("other", catalogue.other)
    catalogue.delete("qwen")

    assert not os.path.lexists(link)
    assert real.is_file()
    assert list(catalogue.kept()) == ["qwen-1.toml", "qwen-2.toml"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("small", 'model = "x"\naliases = ["other"]\n'),
        ("small", 'model = "x"\naliases = 5\n'),
        ("qwen:agent", 'model = "x"\n[variants.other]\n'),
        ("qwen:agent", 'model = "x"\nvariants = { agent = 5 }\n'),
        ("qwen:agent", 'model = "x"\nvariants = 5\n'),
        ("qwen", 'name = "renamed"\nmodel = "x"\n'),
    ],
)
def test_delete_where_the_file_has_changed_since_is_refused(
    catalogue: Catalogue, name: str, text: str
) -> None:
    """What kvsup serves is no longer what the file says, so nothing is guessed."""
    plan = catalogue.find(name)
    assert plan is not None
    catalogue.write("qwen", text)

    with pytest.raises(ConfigError, match=f"no longer holds '{name}'; run kvsup reload"):
        delete_model(catalogue.path, plan, name, trash=catalogue.trash)

    assert ((catalogue.path / "qwen.toml").read_text(), catalogue.kept()) == (text, {})


@pytest.mark.parametrize("text", [None, "model = \n"])
def test_delete_where_the_file_cannot_be_read_says_so(
    catalogue: Catalogue, text: str | None
) -> None:
    """Gone or broken: the operator is told which file."""
    plan = catalogue.plans()["qwen"]
    (catalogue.path / "qwen.toml").unlink()
    if text is not None:
        catalogue.write("qwen", text)

    with pytest.raises(ConfigError, match=r"qwen\.toml.*(cannot be read|is no TOML)"):
        delete_model(catalogue.path, plan, "qwen", trash=catalogue.trash)


def test_copy_by_many_at_once_to_one_name_leaves_one_model_of_it(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Each looks for what it replaces once those before it are done; none ends in an error."""
    kvsup = start_kvsup({"qwen": f'model = "{smollm2}"\nthreads = 1\n'})
    body = {"source": "qwen", "destination": "copied"}

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: kvsup.client.post("/api/copy", json=body), range(8)))

    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    assert sorted(kvsup.models()) == ["copied", "qwen"]
    assert sorted(path.name for path in kvsup.configs.iterdir()) == [
        "copied.toml",
        "kvsup.toml",
        "qwen.toml",
    ]
