"""Stores on disk: what a configuration takes from them, and what it refuses."""

import os
from pathlib import Path

import pytest

from kvsup.runtime import headers
from kvsup.runtime.configdir import Configuration
from kvsup.runtime.filestamps import stamp_of
from kvsup.runtime.headers import read_header
from kvsup.runtime.watching import look
from tests.runtime.folders import ConfigFolder
from tests.stores import HubLayout, OllamaLayout, link
from tests.tiny import TinyModels


@pytest.fixture
def folder(
    tmp_path: Path,
    llama_server: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> ConfigFolder:
    """Return an empty configuration folder; no store of this machine is seen from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr("kvsup.runtime.ollamastore._SERVICE", tmp_path / "nothing")
    return ConfigFolder(llama_server=llama_server, state=tmp_path_factory.getbasetemp() / "state")


@pytest.fixture
def store(tmp_path: Path) -> OllamaLayout:
    """Return an empty store of Ollama, where it is looked for without a word."""
    return OllamaLayout(tmp_path / "home/.ollama/models")


@pytest.fixture
def hub(tmp_path: Path) -> HubLayout:
    """Return an empty cache of Hugging Face, where it is looked for without a word."""
    return HubLayout(tmp_path / "home/.cache/huggingface/hub")


SET = "or set OLLAMA_MODELS"
ALL = "[sources]\nollama = true\nhuggingface = true\n"


def _names(configuration: Configuration) -> list[str]:
    return [plan.name for plan in configuration.plans]


def test_file_stands_over_what_the_store_says_and_that_over_the_host(
    folder: ConfigFolder, store: OllamaLayout, tiny: TinyModels
) -> None:
    """Variants inherit; options are merged one by one; arguments that are needed stay."""
    adapter = store.file("adapter", tiny.adapter())
    store.add(
        "x:1b",
        store.file("model", tiny.plain()),
        adapter,
        store.text("params", '{"num_ctx": 256, "top_k": 3, "temperature": 0.5}'),
        store.text("system", "Be brief."),
    )

    plain, variant, other = folder.read(
        host="num_ctx = 512\nnum_parallel = 2\n",
        a="""\
        model = "ollama:X:1B"
        extra_args = ["--lora-init-without-apply"]
        [options]
        top_k = 5
        [variants.v]
        num_ctx = 128
        system = "Be long."
        """,
        b=f'model = "{tiny.plain()}"',
    ).plans

    assert (plain.model.num_ctx, variant.model.num_ctx, other.model.num_ctx) == (256, 128, 512)
    assert (plain.model.system, variant.model.system) == ("Be brief.", "Be long.")
    assert plain.model.num_parallel == 2
    assert plain.model.options == {"top_k": 5, "temperature": 0.5}
    assert plain.model.adapters == (str(store.blob(adapter)),)
    assert plain.model.extra_args == ("--lora-init-without-apply",)


def test_reference_of_a_repository_takes_the_file_and_its_projector(
    folder: ConfigFolder, hub: HubLayout, tiny: TinyModels
) -> None:
    """Through the snapshot's links, whose names parts of a split are found by."""
    model, projector = tiny.vision()
    there = hub.add("org/Repo-GGUF", "x-Q8_0.gguf", model)
    beside = hub.add("org/Repo-GGUF", "mmproj-x-f16.gguf", projector)
    hub.add("org/Repo-GGUF", "x-Q4_0.gguf", tiny.plain())
    hub.add("org/Repo-GGUF", "x-Q4_0.gguf", tiny.plain(), revision="b" * 40)

    configuration = folder.read(
        host=ALL,
        a='model = "hf:org/repo-gguf"\n',
        b='model = "hf:org/repo-gguf:q4_0"\n',
    )

    a, b, *offered = configuration.plans
    assert (a.model.model, a.model.mmproj) == (str(there), str(beside))
    assert "b" * 40 in b.model.model
    assert [plan.name for plan in offered] == [
        "hf.co/org/Repo-GGUF:Q4_0",
        "hf.co/org/Repo-GGUF:Q8_0",
    ]
    assert {plan.model.source for plan in offered} == {
        "hf:org/Repo-GGUF:Q4_0",
        "hf:org/Repo-GGUF:Q8_0",
    }


def test_reference_to_nothing_says_where_was_looked_and_what_is_there(
    folder: ConfigFolder, store: OllamaLayout, hub: HubLayout, tiny: TinyModels
) -> None:
    """At the line of the key, once, with what to do."""
    store.add("x:1b", store.file("model", tiny.plain()))
    hub.add("org/repo", "x-Q8_0.gguf", tiny.plain())

    problems = folder.problems(
        a='model = "ollama:y"',
        b='model = "hf:org/none"',
        c='model = "hf:org/repo:Q4_0"',
        d='model = "ollama:../../x"',
        e='model = "ollama:x:1b"\ndraft_model = "ollama:x:2b"',
    )

    places = f"{store.root} and {store.root.parents[2]}/nothing; there is x:1b"
    none, q4 = "kvsup pull hf.co/org/none", "kvsup pull hf.co/org/repo:Q4_0"
    repo = f"{hub.root}/models--org--repo"
    grammar = "write ollama:NAME or ollama:NAME:TAG as `ollama list` has it"
    assert problems == [
        f"configs/a.toml:1: model: no y:latest in {places}: kvsup pull y:latest, {SET}",
        f"configs/b.toml:1: model: no org/none in {hub.root}; there is org/repo: {none}",
        f"configs/c.toml:1: model: {repo}: no Q4_0 of it is there, only Q8_0: {q4}",
        f'configs/d.toml:1: model: "../../x" is no model of Ollama; {grammar}',
        f"configs/e.toml:2: draft_model: no x:2b in {places}: kvsup pull x:2b, {SET}",
    ]


def test_sources_that_are_not_there_are_problems_only_where_they_are_named(
    folder: ConfigFolder, tmp_path: Path
) -> None:
    """``true`` is a wish, a path a promise."""
    assert _names(folder.read(host=ALL)) == []
    host = '[sources]\nollama = "o"\nhuggingface = "h"\nfolders = ["f"]\nfolder = "x"\n'
    line, there = "configs/kvsup.toml", tmp_path / "configs"
    assert folder.problems(host=host) == [
        f"{line}:4: sources.ollama: {there}/o is no store of Ollama: it has no manifests",
        f"{line}:5: sources.huggingface: {there}/h is no folder",
        f"{line}:6: sources.folders: {there}/f is no folder",
        f"{line}:7: sources.folder: unknown key; did you mean folders?",
    ]


def test_store_that_is_hostile_or_broken_costs_only_its_own_models(
    folder: ConfigFolder, store: OllamaLayout, tiny: TinyModels, tmp_path: Path
) -> None:
    """Each that is left out has its cause; nothing outside of the store is read."""
    secret = tmp_path / "secret"
    secret.write_text("root:x")
    model = store.file("model", tiny.plain())
    store.add("good", model)
    store.add("cloud", config={"remote_host": "https://ollama.com:443"})
    store.add("mlx", store.text("tensor", "x"), config={"model_format": "safetensors"})
    store.add("text", store.text("model", "no GGUF at all"))
    store.add("params", model, store.text("params", '{"stop": 1}'))
    store.add("pair", model, store.text("params", '{"kv_cache_type": "q9"}'))
    store.add("gone", store.file("model", tiny.plain(), digest="1" * 64))
    (store.root / "blobs" / f"sha256-{'1' * 64}").unlink()
    store.add("short", {**model, "size": 5})
    forged = store.text("system", "Obey.")
    store.blob(forged).write_text("Rebel")
    store.add("forged", model, forged)
    leak = store.text("system", "root:x")
    store.blob(leak).unlink()
    store.blob(leak).symlink_to(secret)
    store.add("leak", model, leak)
    store.raw("registry.ollama.ai/library/broken/latest", b"\xff" * 9)
    store.raw("registry.ollama.ai/library/huge/latest", b" " * (5 << 20))
    store.raw("registry.ollama.ai/library/spaced name/latest", b"{}")
    store.raw("too/shallow", b"{}")
    store.raw("registry.ollama.ai/library/\x1b[2J/latest", b"{}")
    os.mkfifo(store.raw("registry.ollama.ai/library/pipe/x", b"").with_name("latest"))
    (store.root / "manifests/registry.ollama.ai/library/linked").mkdir()
    (store.root / "manifests/registry.ollama.ai/library/linked/latest").symlink_to(secret)
    (store.root / "manifests/registry.ollama.ai/away").symlink_to(tmp_path)

    configuration = folder.read(host=ALL)

    assert _names(configuration) == ["good:latest"]
    causes = {
        "cloud": 'runs in a cloud ("https://ollama.com:443"), and kvsup has none',
        "mlx": 'in the format "safetensors"',
        "text": "no GGUF file",
        "params": 'option "stop" must be of type array',
        "pair": "q9",
        "gone": "is missing; ollama pull gone:latest",
        "short": "instead of 5; ollama pull short:latest",
        "forged": "is not what its name says",
        "leak": "is a link that leads out of",
        "broken": "manifest is wrong",
        "huge": "is larger than",
        "pipe/latest": "is no file",
        "linked": "is a link that leads out of",
    }
    for name, cause in causes.items():
        assert any(name in line and cause in line for line in configuration.left_out), name
    assert len(configuration.left_out) == len(causes) + 1  # pipe/x, which is empty
    assert "root:x" not in str(configuration.left_out)


def test_link_out_of_a_repository_or_folder_is_not_followed(
    folder: ConfigFolder, hub: HubLayout, tiny: TinyModels, tmp_path: Path
) -> None:
    """In Hugging Face's cache links lead to the repository's own blobs."""
    link(tiny.plain(), tmp_path / "elsewhere/x.gguf")
    there = hub.add("org/repo", "own-Q8_0.gguf", tiny.plain())
    (there.parent / "x-Q4_0.gguf").symlink_to(tmp_path / "elsewhere/x.gguf")
    plain = tmp_path / "ggufs"
    plain.mkdir()
    (plain / "x.gguf").symlink_to(tmp_path / "elsewhere/x.gguf")
    (plain / "inner").symlink_to(tmp_path / "elsewhere")

    configuration = folder.read(host=f'{ALL}folders = ["{plain}"]\n')

    assert _names(configuration) == ["hf.co/org/repo:Q8_0"]
    (left_out,) = configuration.left_out
    assert "x.gguf is a link that leads out of" in left_out


def test_name_that_is_taken_is_told_once(
    folder: ConfigFolder, store: OllamaLayout, tiny: TinyModels, tmp_path: Path
) -> None:
    """A file's name or alias wins without a word, the first source before the others."""
    store.add("x", store.file("model", tiny.plain()))
    store.add("y", store.file("model", tiny.plain()))
    for name in ("a/y.gguf", "b/z.gguf", "c/z.gguf", "d/x.gguf"):
        link(tiny.plain(), tmp_path / "ggufs" / name)

    configuration = folder.read(
        host=f'{ALL}folders = ["{tmp_path}/ggufs"]\n',
        mine=f'model = "{tiny.plain()}"\naliases = ["X"]\n',
    )

    assert _names(configuration) == ["mine", "y:latest", "z"]
    assert sorted(line.partition(": ")[2] for line in configuration.left_out) == [
        "x is the name of ollama:x:latest, too",
        "y is the name of ollama:y:latest, too",
        f"z is the name of {tmp_path}/ggufs/b/z.gguf, too",
    ]


def test_folders_of_a_store_are_among_what_is_watched(
    folder: ConfigFolder, store: OllamaLayout, hub: HubLayout, tiny: TinyModels
) -> None:
    """Each place where a model can appear is looked at."""
    manifest = store.add("x", store.file("model", tiny.plain()))
    snapshot = hub.add("org/repo", "x-Q8_0.gguf", tiny.plain()).parent
    configuration = folder.read(host=ALL)

    before = look(configuration)
    places = (manifest, manifest.parents[1], snapshot, hub.root)
    for number, place in enumerate(places):
        os.utime(place, (number, number))
    changed = before.changed(look(configuration))

    assert changed == set(places)


def test_file_of_ollamas_own_engine_is_told_of(
    folder: ConfigFolder, store: OllamaLayout, tiny: TinyModels
) -> None:
    """What may be the cause is kept for when the load fails."""
    store.add(
        "x",
        store.file("model", tiny.plain()),
        store.text("messages", '[{"role":"user","content":"Hi"},{"role":"tool"}]'),
    )

    (plan,) = folder.read(host=ALL).plans

    assert plan.file.suspicion.startswith("Ollama rewrites some of the llama files")
    assert "hf:ORG/REPO" in plan.file.suspicion
    assert [(one.role, one.content) for one in plan.model.messages] == [("user", "Hi")]
    assert plan.notes == ()


def test_header_is_read_once_while_the_file_stays_the_same(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has it from the cache; what is damaged there is read again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stamp = str(stamp_of(smollm2))
    read_header.cache_clear()
    first = read_header(smollm2, stamp)
    read_header.cache_clear()

    with monkeypatch.context() as without:
        without.delattr(headers, "read_metadata_of")
        again = read_header(smollm2, stamp)
    (kept,) = (tmp_path / "kvsup/headers").iterdir()
    kept.write_bytes(b"\x00")
    read_header.cache_clear()

    assert again == first == read_header(smollm2, stamp)
    assert kept.stat().st_size > 1
    assert kept.stat().st_mode & 0o777 == 0o600
