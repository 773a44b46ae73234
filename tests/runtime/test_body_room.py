"""What request bodies take of the memory that they may take together."""

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from kvsup.api.bodies import BodiesFull, BodyRoom
from kvsup.runtime import keeping

pytestmark = pytest.mark.anyio

LARGE = b"x" * (keeping.IN_MEMORY_BYTES + 1)


def _room(folder: Path) -> BodyRoom:
    return BodyRoom(
        max_body_bytes=len(LARGE), max_bodies_bytes=len(LARGE), patience_s=60.0, folder=folder
    )


def _fills_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_body: bytes, _folder: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keeping, "_written", full)


async def test_body_counts_while_it_is_in_memory(tmp_path: Path) -> None:
    """A large one lies on disk, a small one in its place does not."""
    room = _room(tmp_path)
    with room.share() as share:
        share.grow(len(LARGE))
        await share.keep(LARGE)
        assert room.held_bytes == 0
        await share.keep(b"small")
        assert room.held_bytes == len(b"small")
    assert room.held_bytes == 0


async def test_body_for_which_the_disk_became_full_counts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in memory, as far as there is room."""
    room = _room(tmp_path)
    with room.share() as first, room.share() as second:
        for share in (first, second):
            await share.keep(LARGE)
        _fills_up(monkeypatch)

        await first.keep(LARGE)

        assert room.held_bytes == len(LARGE)
        with pytest.raises(BodiesFull):
            await second.keep(LARGE)
    assert room.held_bytes == 0
