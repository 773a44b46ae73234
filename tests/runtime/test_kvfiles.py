"""Saved slots on disk: kept whole or not at all, bounded, and nobody else's."""

import stat
import struct
from array import array
from pathlib import Path

import msgspec
import pytest

from kvsup import events
from kvsup.llama.slotfile import SlotFileError
from kvsup.runtime.kvfiles import Entry, KVFiles

pytestmark = pytest.mark.anyio

MODEL = "a/b:c"
TOKENS = list(range(1, 301))


def written(files: KVFiles, tokens: list[int], *, model: str = MODEL, more_bytes: int = 0) -> str:
    """Write what llama-server would, and return its name."""
    words = array("i", [-1, 1, len(tokens), *tokens, 0])
    part = files.new_part()
    head = struct.pack("<III", 0x67677371, 4, len(words))
    (files.folder_of(model) / part).write_bytes(head + words.tobytes() + b"\1" * more_bytes)
    return part


def on_disk(folder: Path, pattern: str = "*") -> set[Path]:
    """Return the files below ``folder``."""
    return {path for path in folder.rglob(pattern) if path.is_file()}


async def kept(
    files: KVFiles, tokens: list[int], *, identity: str = "i", reread_s: float = 1.0
) -> Entry | None:
    """Save a slot that holds ``tokens``."""
    part = written(files, tokens, more_bytes=1000)
    return await files.keep(part, model=MODEL, identity=identity, reread_s=reread_s)


def opened(folder: Path, told: list[events.Event] | None = None) -> KVFiles:
    """Return the files below ``folder``, as a kvsup that starts has them."""
    emit = (told if told is not None else []).append
    return KVFiles(folder, max_bytes=1 << 30, emit=emit)


async def test_saved_slot_outlives_kvsup_with_its_tokens(tmp_path: Path) -> None:
    """Another start knows it, by model and identity."""
    entry = await kept(opened(tmp_path), TOKENS)
    again = opened(tmp_path)

    assert entry is not None
    (found,) = again.entries(MODEL, identity="i")
    assert found.sidecar == entry.sidecar
    assert found.tokens.tolist() == TOKENS
    assert await again.is_whole(found)
    assert again.entries(MODEL, identity="other") == again.entries("b") == []


async def test_files_and_folders_are_their_owners_alone(tmp_path: Path) -> None:
    """They hold prompts and answers."""
    files = opened(tmp_path / "kv")
    await kept(files, TOKENS)

    for path in (tmp_path / "kv").rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


async def test_conversation_that_goes_on_takes_the_place_of_what_it_extends(
    tmp_path: Path,
) -> None:
    """One file a conversation; one of another identity, or that parts earlier, stays."""
    files = opened(tmp_path)
    await kept(files, TOKENS)
    await kept(files, TOKENS, identity="other")
    await kept(files, [*TOKENS[:-1], 9999])
    await kept(files, [*TOKENS, 301, 302])

    lengths = sorted((e.sidecar.identity, e.sidecar.n_tokens) for e in files.entries())
    assert lengths == [("i", 300), ("i", 302), ("other", 300)]
    assert len(on_disk(tmp_path, "*.kv")) == 3 == len(on_disk(tmp_path, "*.json"))


async def test_what_is_no_saved_slot_is_not_kept(tmp_path: Path) -> None:
    """A build that writes something else leaves nothing behind."""
    files = opened(tmp_path)
    part = written(files, TOKENS)
    (files.folder_of(MODEL) / part).write_bytes(b"something else, and quite long")

    with pytest.raises(SlotFileError):
        await files.keep(part, model=MODEL, identity="i", reread_s=1.0)
    assert on_disk(tmp_path) == set()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted"])
async def test_damaged_file_is_seen(tmp_path: Path, damage: str) -> None:
    """llama-server would take a flipped bit with HTTP 200."""
    files = opened(tmp_path)
    entry = await kept(files, TOKENS)
    assert entry is not None
    data = bytearray(entry.path.read_bytes())
    if damage == "deleted":
        entry.path.unlink()
    elif damage == "truncated":
        entry.path.write_bytes(data[:-1])
    else:
        data[-500] ^= 1
        entry.path.write_bytes(data)

    assert not await files.is_whole(entry)


async def test_start_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    """Half a save is never taken for a whole one, and a stranger's file is not ours to remove."""
    files = opened(tmp_path)
    entry, lone = await kept(files, TOKENS), await kept(files, TOKENS[::-1])
    written(files, TOKENS)
    assert entry is not None
    assert lone is not None
    lone.path.with_suffix(".json").unlink()
    stranger = files.folder_of(MODEL) / "notes.txt"
    stranger.write_text("mine")

    again = opened(tmp_path)

    assert [e.path for e in again.entries()] == [entry.path]
    assert on_disk(tmp_path) == {entry.path, entry.path.with_suffix(".json"), stranger}


async def test_sidecar_of_another_file_is_a_doubt(tmp_path: Path) -> None:
    """Tokens that are not those of the sidecar: not taken up."""
    files = opened(tmp_path)
    entry = await kept(files, TOKENS)
    assert entry is not None
    sidecar = msgspec.structs.replace(entry.sidecar, prefix_sha256="0" * 64)
    entry.path.with_suffix(".json").write_bytes(msgspec.json.encode(sidecar))

    assert opened(tmp_path).entries() == []


async def test_budget_drops_what_was_unused_for_longest_and_says_so(tmp_path: Path) -> None:
    """The newest stays; one that alone is too large is not kept."""
    told: list[events.Event] = []
    files = opened(tmp_path, told)
    first = await kept(files, TOKENS)
    assert first is not None
    files.max_bytes = 2 * first.sidecar.size_bytes + 10
    second = await kept(files, [5, *TOKENS])
    files.used(first)
    third = await kept(files, [6, *TOKENS])

    assert second is not None
    assert third is not None
    kept_tokens = sorted(e.tokens[0] for e in files.entries())
    assert kept_tokens == [1, 6]
    assert [type(event).__name__ for event in told] == ["KVDropped"]
    files.max_bytes = 10
    assert await kept(files, [7, *TOKENS]) is None
    assert files.entries() == []
    assert not on_disk(tmp_path, "*.kv")


async def test_clear_removes_a_models_files_and_tells_the_bytes(tmp_path: Path) -> None:
    """What was freed is what had been taken."""
    files = opened(tmp_path)
    entry = await kept(files, TOKENS)
    assert entry is not None

    assert files.clear("other") == 0
    assert files.clear(MODEL) == entry.sidecar.size_bytes
    assert files.entries() == []
    assert not on_disk(tmp_path, "*.kv")


async def test_file_that_a_crash_of_the_machine_cut_short_is_gone_at_the_next_start(
    tmp_path: Path,
) -> None:
    """It would break off every export, and llama-server may die of it."""
    entry = await kept(opened(tmp_path), TOKENS)
    assert entry is not None
    entry.path.write_bytes(entry.path.read_bytes()[:-1])

    assert opened(tmp_path).entries() == []
    assert on_disk(tmp_path) == set()
