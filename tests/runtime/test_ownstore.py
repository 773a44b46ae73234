"""The own store: what is there is whole, and only what nobody names goes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvsup.errors import CapacityError, KvsupError
from kvsup.runtime.filling import filling
from kvsup.runtime.ownstore import RESUMED_S, SPARED_S, OwnStore
from kvsup.stores.manifest import Blob, blob_of, encode_manifest, ollama_layer
from kvsup.stores.references import OllamaName

NAME = OllamaName("registry.ollama.ai", "library", "m", "latest")
OTHER = OllamaName("registry.ollama.ai", "library", "n", "latest")


@pytest.fixture
def store(tmp_path: Path) -> OwnStore:
    """Return an empty store."""
    store = OwnStore(tmp_path / "models")
    store.make()
    return store


def _add(store: OwnStore, name: OllamaName, *texts: str) -> list[Blob]:
    """Write a model of some small files."""
    files = [store.put(text.encode()) for text in texts]
    config = store.put(b"{}")
    layers = [ollama_layer("license", blob) for blob in files]
    store.write(name, encode_manifest(config, layers))
    return files


def _blobs(store: OwnStore) -> set[str]:
    return {path.name for path in (store.root / "blobs").iterdir()}


def test_model_is_there_with_its_manifest(store: OwnStore) -> None:
    """Its files lie under what they hash to; nothing is left on its way."""
    (blob,) = _add(store, NAME, "one")

    assert store.names() == [NAME]
    assert store.blob_path(blob).read_text() == "one"
    assert blob == blob_of(b"one")
    assert list(store.incoming.iterdir()) == []


def test_manifest_that_names_a_file_that_is_not_there_is_not_written(store: OwnStore) -> None:
    """Nor one that is none; the one before stays."""
    _add(store, NAME, "one")
    before = store.manifest_data(NAME)
    absent = encode_manifest(blob_of(b"{}"), [ollama_layer("model", blob_of(b"absent"))])

    with pytest.raises(KvsupError, match="is gone; do it again"):
        store.write(NAME, absent)
    with pytest.raises(ValueError, match="manifest is wrong"):
        store.write(NAME, b"nonsense")

    assert store.manifest_data(NAME) == before


def test_removed_model_takes_the_files_that_no_other_has(store: OwnStore) -> None:
    """Empty folders go with it."""
    shared, own = _add(store, NAME, "shared", "own")
    _add(store, OTHER, "shared")

    store.remove(NAME)

    assert store.names() == [OTHER]
    assert own.file_name not in _blobs(store)
    assert shared.file_name in _blobs(store)
    assert not store.manifest_path(NAME).parent.exists()


def test_name_is_written_as_the_disk_has_it(store: OwnStore) -> None:
    """Whatever its case; there is one of it."""
    _add(store, NAME, "one")
    _add(store, OllamaName("registry.ollama.ai", "library", "M", "LATEST"), "two")

    assert store.names() == [NAME]


async def test_nothing_goes_while_somebody_fills_the_store(store: OwnStore) -> None:
    """What is removed meanwhile leaves its files for a later collection."""
    (blob,) = _add(store, NAME, "one")

    async with filling(store):
        store.remove(NAME)
        _age(store, blob, SPARED_S + 60)
        assert store.collect() == 0
        assert blob.file_name in _blobs(store)

    assert store.collect() == len("one")
    assert _blobs(store) == {blob_of(b"{}").file_name}


def test_collection_spares_what_is_young_named_or_not_ours(store: OwnStore) -> None:
    """An upload may still be made into a model; a download may be gone on with for a week."""
    (named,) = _add(store, NAME, "named")
    young, old = store.put(b"young"), store.put(b"old")
    foreign = store.root / "blobs" / "sha256-abc-partial"
    foreign.write_text("ollama's own")
    fresh, stale = store.incoming / "sha256-1", store.incoming / "sha256-2"
    killed = store.incoming / "file-1"
    for path in (fresh, stale, killed, foreign):
        path.write_text("x")
    for blob in (named, old):
        _age(store, blob, SPARED_S + 60)
    os.utime(stale, times=(0, time.time() - RESUMED_S - 60))
    os.utime(fresh, times=(0, time.time() - RESUMED_S + 60))

    freed_bytes = store.collect()

    assert freed_bytes == len("old") + len("xx")
    assert {named.file_name, young.file_name, foreign.name} <= _blobs(store)
    assert old.file_name not in _blobs(store)
    assert fresh.exists()
    assert not stale.exists()
    assert not killed.exists()


def test_manifest_that_cannot_be_read_keeps_every_file(store: OwnStore) -> None:
    """It may name any of them."""
    blob = store.put(b"old")
    _age(store, blob, SPARED_S + 60)
    path = store.manifest_path(OTHER)
    path.parent.mkdir(parents=True)
    path.write_text("{broken")

    assert store.collect() == 0
    assert blob.file_name in _blobs(store)


def test_lock_holds_between_processes(store: OwnStore) -> None:
    """Another kvsup that fills the store keeps this one from deleting."""
    blob = store.put(b"old")
    _age(store, blob, SPARED_S + 60)
    code = (
        "import sys; from pathlib import Path; from kvsup.runtime.ownstore import OwnStore\n"
        f"held = OwnStore(Path({str(store.root)!r})).hold(); print(); sys.stdout.flush()\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert store.collect() == 0
        other.communicate(b"")

    assert store.collect() == len("old")


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """With the key that names another."""
    (tmp_path / "file").write_text("")

    with pytest.raises(KvsupError, match="name another folder in models_dir"):
        OwnStore(tmp_path / "file").make()


def _age(store: OwnStore, blob: Blob, age_s: float) -> None:
    os.utime(store.blob_path(blob), times=(0, time.time() - age_s))


def test_disk_that_cannot_be_written_is_told(store: OwnStore) -> None:
    """When it is filled, not by a traceback."""
    (store.root / "kvsup/lock").mkdir()

    with pytest.raises(KvsupError, match=r"models cannot be written: .*lock"):
        store.hold()


def test_room_that_is_not_there_is_told_before(store: OwnStore) -> None:
    """With both numbers, and what to do."""
    store.check_room(1)

    with pytest.raises(CapacityError, match=r" TiB do not fit: .* are free at .*models_dir"):
        store.check_room(1 << 60)
