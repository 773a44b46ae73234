"""Files of conversations, sound and hostile: what is taken is what was kept, and nothing else."""

import io
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from kvsup.runtime.kvarchive import ArchiveError, packed
from kvsup.runtime.kvfiles import Entry, KVFiles
from kvsup.runtime.kvimport import Desk, Outcome, take
from tests.runtime.test_kvfiles import MODEL, TOKENS, on_disk, opened, written

pytestmark = pytest.mark.anyio

IDENTITY = "0123456789abcdef" * 2
STEM = "0123456789abcdef"
MODELS = {IDENTITY: [MODEL]}


async def conversation(folder: Path, tokens: list[int] = TOKENS) -> Entry:
    """Return one that is kept below ``folder``."""
    files = opened(folder)
    part = written(files, tokens, more_bytes=1000)
    entry = await files.keep(part, model=MODEL, identity=IDENTITY, reread_s=1.0)
    assert entry is not None
    return entry


def archive(*entries: Entry) -> bytes:
    """Return the file with ``entries``."""
    return b"".join(packed(entries))


def taken(data: bytes, files: KVFiles, models: dict[str, list[str]] | None = None) -> list[Outcome]:
    """Take what is good of a file."""
    return list(take(io.BytesIO(data).read, Desk(files, models or MODELS)))


def why_nots(outcomes: list[Outcome]) -> list[str]:
    """Return why each was not taken."""
    return [outcome.why_not for outcome in outcomes]


async def test_conversation_is_taken_as_it_was(tmp_path: Path) -> None:
    """Another kvsup finds it on its disk, under the name that the model has there."""
    entry = await conversation(tmp_path / "here")
    there = tmp_path / "there" / "kv"
    files = opened(there)

    outcomes = taken(archive(entry), files, {IDENTITY: ["another"]})

    assert why_nots(outcomes) == [""]
    for known in (files, opened(there)):
        (found,) = known.entries("another", identity=IDENTITY)
        assert found.path.read_bytes() == entry.path.read_bytes()
        assert found.sidecar == msgspec.structs.replace(entry.sidecar, model="another")
        assert found.tokens == entry.tokens
        assert await known.is_whole(found)
    assert {path.stat().st_mode & 0o777 for path in on_disk(there)} == {0o600}


async def test_conversation_whose_file_is_gone_is_left_out(tmp_path: Path) -> None:
    """One that goes on with it may have taken its place since it was listed."""
    gone = await conversation(tmp_path / "a", [7, *TOKENS])
    entry = await conversation(tmp_path / "b")
    gone.path.unlink()

    assert why_nots(taken(archive(gone, entry), opened(tmp_path / "there"))) == [""]


async def test_newer_conversation_is_never_replaced_and_an_older_one_is(tmp_path: Path) -> None:
    """Longer is newer: one goes on with the other."""
    older, newer = (
        await conversation(tmp_path / "a"),
        await conversation(tmp_path / "b", [*TOKENS, 301]),
    )
    files = opened(tmp_path / "there")

    outcomes = taken(archive(older, newer, older, newer), files)

    assert why_nots(outcomes) == [
        "",
        "",
        "one that goes on with it is here",
        "it is here already",
    ]
    (found,) = files.entries()
    assert found.tokens == newer.tokens
    assert on_disk(files.folder) == {found.path, found.path.with_suffix(".json")}


async def test_nothing_gives_way_to_what_is_imported(tmp_path: Path) -> None:
    """Neither the budget nor the disk is exceeded."""
    first, second = (
        await conversation(tmp_path / "a"),
        await conversation(tmp_path / "b", [7] * 300),
    )
    files = opened(tmp_path / "there")
    files.max_bytes = 2 * first.sidecar.size_bytes - 1

    outcomes = taken(archive(first, second), files)

    assert why_nots(outcomes) == ["", "max_kv_files has no room for it"]
    files.max_bytes = 1 << 62
    sidecar = msgspec.structs.replace(second.sidecar, size_bytes=1 << 60)
    endless = file_of((f"{STEM}.json", msgspec.json.encode(sidecar)), (f"{STEM}.kv", 1 << 60))
    assert next(take(io.BytesIO(endless).read, desk_of(files))).why_not == (
        "the disk has no room for it"
    )
    assert len(files.entries()) == 1


def desk_of(files: KVFiles) -> Desk:
    """Return where the one model of these tests takes its conversations in."""
    return Desk(files, MODELS)


def file_of(*members: tuple[str, bytes | int]) -> bytes:
    """Return a file with such members, each with its bytes or only how many they would be."""
    out = b""
    for name, data in members:
        head = tarfile.TarInfo(name)
        head.size = data if isinstance(data, int) else len(data)
        out += head.tobuf(tarfile.GNU_FORMAT)
        out += b"" if isinstance(data, int) else data + bytes(-len(data) % 512)
    return out


def said_of(entry: Entry, **changes: object) -> bytes:
    """Return the sidecar of a conversation, with changes."""
    return msgspec.json.encode(msgspec.to_builtins(entry.sidecar) | changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"identity": "f" * 32}, "no model here has its weights"),
        ({"identity": "../../etc"}, "makes no sense"),
        ({"prefix_sha256": "0" * 64}, "it is damaged"),
        ({"crc32": 1}, "it is damaged"),
        ({"n_tokens": 299}, "it is damaged"),
        ({"n_tokens": -1}, "makes no sense"),
        ({"reread_s": -1.0}, "makes no sense"),
        ({"size_bytes": 7}, "it is no conversation"),
        ({"model": 7}, "it is no conversation"),
    ],
)
async def test_conversation_about_which_something_wrong_is_said_is_refused(
    tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    """Each sum is checked, and nothing is left of it."""
    entry = await conversation(tmp_path / "here")
    data = file_of(
        (f"{STEM}.json", said_of(entry, **changes)), (f"{STEM}.kv", entry.path.read_bytes())
    )
    files = opened(tmp_path / "there")

    outcomes = taken(data + bytes(1024), files)

    assert why in outcomes[-1].why_not
    assert all(why_nots(outcomes))
    assert files.entries() == []
    assert on_disk(files.folder) == set()


async def test_name_of_a_model_from_a_file_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    """It is another's text."""
    entry = await conversation(tmp_path / "here")
    name = "\x1b]0;owned\x07" + "x" * 500
    data = file_of(
        (f"{STEM}.json", said_of(entry, model=name, identity="f" * 32)),
        (f"{STEM}.kv", entry.path.read_bytes()),
    )

    (outcome,) = taken(data + bytes(512), opened(tmp_path / "there"))

    assert outcome.model.isprintable()
    assert len(outcome.model) == 100


def link(info: tarfile.TarInfo) -> None:
    """Make a member a link to a file that is there."""
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def hard_link(info: tarfile.TarInfo) -> None:
    """Make a member a second name of another."""
    info.type, info.linkname, info.size = tarfile.LNKTYPE, f"{STEM}.json", 0


def device(info: tarfile.TarInfo) -> None:
    """Make a member a device."""
    info.type, info.devmajor, info.devminor, info.size = tarfile.CHRTYPE, 1, 5, 0


def of_type(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    """Return what makes a member of another type, with its bytes."""

    def change(info: tarfile.TarInfo) -> None:
        info.type = kind

    return change


def named(name: str) -> Callable[[tarfile.TarInfo], None]:
    """Return what gives a member another name."""

    def change(info: tarfile.TarInfo) -> None:
        info.name = name

    return change


@pytest.mark.parametrize(
    "change",
    [
        link,
        hard_link,
        device,
        *(of_type(kind) for kind in (b"L", b"K", b"x", b"g", b"S", b"5", b"6", b"7", b"Z")),
        *(named(f"{path}{STEM}.kv") for path in ("/tmp/", "../", "./", "a/", "..\\")),
        named(f"{STEM}.kv\n"),
        named(f"{STEM[:-1]}/.kv"),
        named("fedcba9876543210.kv"),
        named(f"{STEM}.part"),
        named(""),
    ],
)
@pytest.mark.parametrize("which", ["json", "kv"])
async def test_member_that_plays_tricks_is_stepped_over(
    tmp_path: Path, which: str, change: Callable[[tarfile.TarInfo], None]
) -> None:
    """Paths, links, devices, long names: the sound one behind it is taken, nothing else written."""
    entry = await conversation(tmp_path / "here")
    data = b""
    for suffix, body in (("json", said_of(entry)), ("kv", entry.path.read_bytes())):
        info = tarfile.TarInfo(f"{STEM}.{suffix}")
        info.size = len(body)
        if suffix == which:
            change(info)
        data += info.tobuf(tarfile.GNU_FORMAT)
        data += body + bytes(-len(body) % 512) if info.size else b""
    sound = await conversation(tmp_path / "sound", [9, *TOKENS])
    files = opened(tmp_path / "there" / "kv")

    outcomes = taken(data + archive(sound), files)

    assert why_nots(outcomes)[-1] == ""
    assert {one.why_not for one in outcomes[:-1]} == {"it is no conversation"}
    (found,) = files.entries()
    assert found.tokens == sound.tokens
    assert on_disk(tmp_path / "there") == {found.path, found.path.with_suffix(".json")}


async def test_file_that_is_cut_anywhere_leaves_whole_conversations_or_none(
    tmp_path: Path,
) -> None:
    """It is told that it breaks off."""
    entries = [await conversation(tmp_path / str(n), [n, *TOKENS]) for n in range(2)]
    data = archive(*entries)
    for cut in range(0, len(data) - 1024, 509):
        files = opened(tmp_path / f"there{cut}")

        with pytest.raises(ArchiveError):
            taken(data[:cut], files)

        assert all([await files.is_whole(entry) for entry in files.entries()])
        assert len(on_disk(files.folder)) == 2 * len(files.entries())


async def test_byte_that_flips_anywhere_is_never_taken(tmp_path: Path) -> None:
    """In a head, a sidecar or a saved slot."""
    entry = await conversation(tmp_path / "here")
    data = bytearray(archive(entry))
    for place in range(0, len(data) - 1024, 101):
        files = opened(tmp_path / f"there{place}")
        data[place] ^= 0x10
        with suppress(ArchiveError):
            taken(bytes(data), files)
        data[place] ^= 0x10

        for found in files.entries():
            assert found.path.read_bytes() == entry.path.read_bytes()
            assert found.tokens == entry.tokens


@pytest.mark.parametrize("data", [b"", b"x", b"\x55" * 5000, b"PK\3\4" + bytes(600)])
def test_other_file_is_none_of_conversations(tmp_path: Path, data: bytes) -> None:
    """That is said, not guessed at."""
    with pytest.raises(ArchiveError):
        taken(data, opened(tmp_path))


def test_size_below_zero_is_no_way_back_in_a_file(tmp_path: Path) -> None:
    """A tar of GNU's can say so."""
    info = tarfile.TarInfo(f"{STEM}.kv")
    info.size = -512

    with pytest.raises(ArchiveError):
        taken(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024), opened(tmp_path))
