"""Saved slots on disk: ``STATE/kv/MODEL/ID.kv`` with a sidecar ``ID.json``, all private.

They hold conversations, as tokens and as K and V. Only the kvsup that holds the state's lock writes
here. The index is in memory, and belongs to the event loop; what takes time is done in a thread.
"""

import hashlib
import logging
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec

from kvsup import events
from kvsup.filenames import file_name
from kvsup.llama.slotfile import HEAD_BYTES, SlotFileError, n_words, tokens_of
from kvsup.runtime.paths import make_slot_dir
from kvsup.runtime.privatefiles import replace_file
from kvsup.warmth import Saved, Tokens, n_common, to_drop

logger = logging.getLogger(__name__)

_OWN = re.compile(r"[0-9a-f]{16}\.(kv|json|part|json\.\d+\.new)")
_PIECE_BYTES = 1 << 20
_LEAST_FREE_SHARE = 0.05
"""Of a disk, left free whatever the budget."""


class Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    """What a saved slot is, and what it is good for."""

    model: str
    identity: str
    """``Identity.digest`` of the llama-server that wrote it; no other takes it."""
    n_tokens: int
    prefix_sha256: str
    """Of the tokens, four bytes each."""
    size_bytes: int
    crc32: int
    saved_s: float
    used_s: float
    reread_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One saved slot, its tokens in memory."""

    path: Path
    sidecar: Sidecar
    tokens: Tokens

    @property
    def saved(self) -> Saved:
        """Return it as the policy sees it."""
        one = self.sidecar
        return Saved(str(self.path), one.size_bytes, one.used_s, one.reread_s)


class KVFiles:
    """All saved slots of one state folder, and their bound."""

    def __init__(
        self, folder: Path, *, max_bytes: int, emit: Callable[[events.Event], None]
    ) -> None:
        """Know what lies below ``folder``; what cannot be used is removed.

        Args:
            folder: made where it is missing, once something is saved.
            max_bytes: of all files together.
            emit: takes what happens.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        self._emit = emit
        self._entries: dict[Path, Entry] = {}
        for entry in _found(folder):
            self._entries[entry.path] = entry

    def entries(self, model: str | None = None, *, identity: str | None = None) -> list[Entry]:
        """Return what is saved, of one model and for one identity where they are given."""
        return [
            entry
            for entry in self._entries.values()
            if model in {None, entry.sidecar.model} and identity in {None, entry.sidecar.identity}
        ]

    def folder_of(self, model: str) -> Path:
        """Return the folder of a model's files, made if missing, closed to other users.

        Raises:
            OSError: it cannot be made.
        """
        folder = self.folder / file_name(model)
        make_slot_dir(folder)
        return folder

    def new_part(self) -> str:
        """Return a name under which llama-server may write; nothing takes it for a saved slot."""
        return f"{secrets.token_hex(8)}.part"

    def remove_part(self, model: str, part: str) -> None:
        """Remove what was left of a save that did not come to its end."""
        with suppress(OSError):
            (self.folder / file_name(model) / part).unlink(missing_ok=True)

    def room_bytes(self) -> int:
        """Return how many bytes a new file may take: of the disk, and of the budget at all."""
        usage = shutil.disk_usage(_existing(self.folder))
        return min(self.max_bytes, usage.free - int(usage.total * _LEAST_FREE_SHARE))

    async def keep(
        self, part: str, *, model: str, identity: str, reread_s: float, must_sync: bool = True
    ) -> Entry | None:
        """Make what llama-server wrote under the name ``part`` a saved slot, and return it.

        What it extends is superseded and removed, and what the budget has no room for. Returns
        None if the budget has none for it. Without ``must_sync`` a crash of the machine may damage
        it, which is seen when it is read.

        Raises:
            OSError: it cannot be read or written.
            SlotFileError: it is no saved slot.
        """
        path = self.folder_of(model) / part
        entry = await anyio.to_thread.run_sync(
            partial(_written, path, model, identity, reread_s, must_sync=must_sync)
        )
        self._take_in(entry)
        self.make_room()
        return entry if entry.path in self._entries else None

    def why_refused(self, sidecar: Sidecar) -> str:
        """Return why a conversation from elsewhere is not taken; empty where it may be.

        Nothing that is here gives way to it.
        """
        theirs = self.entries(sidecar.model, identity=sidecar.identity)
        if any(entry.sidecar.prefix_sha256 == sidecar.prefix_sha256 for entry in theirs):
            return "it is here already"
        if why := self._why_full(sidecar):
            return why
        return "" if sidecar.size_bytes <= self.room_bytes() else "the disk has no room for it"

    def admit(self, entry: Entry) -> str:
        """Take in a conversation from elsewhere whose files are placed; else remove them, say why.

        It supersedes what it goes on with; one that is here and goes on with it stays.
        """
        theirs = self.entries(entry.sidecar.model, identity=entry.sidecar.identity)
        if any(n_common(entry.tokens, old.tokens) == len(entry.tokens) for old in theirs):
            why = "one that goes on with it is here"
        elif not (why := self._why_full(entry.sidecar)):
            self._take_in(entry)
        if why:
            self._remove(entry)
        return why

    def _why_full(self, sidecar: Sidecar) -> str:
        all_bytes = sum(entry.sidecar.size_bytes for entry in self.entries())
        is_full = all_bytes + sidecar.size_bytes > self.max_bytes
        return "max_kv_files has no room for it" if is_full else ""

    def _take_in(self, entry: Entry) -> None:
        """Take note of a saved slot, and remove what it goes on with."""
        for old in self.entries(entry.sidecar.model, identity=entry.sidecar.identity):
            if n_common(old.tokens, entry.tokens) == len(old.tokens):
                self._remove(old)
        self._entries[entry.path] = entry

    def make_room(self) -> None:
        """Remove what the budget has no room for."""
        saved = {entry.saved.name: entry for entry in self._entries.values()}
        over = to_drop(
            [entry.saved for entry in saved.values()], max_bytes=self.max_bytes, now_s=time.time()
        )
        for one in over:
            self.drop(saved[one.name], "max_kv_files is full")

    async def is_whole(self, entry: Entry) -> bool:
        """Say whether a saved slot is what was written; reads it, and so into the page cache."""
        return await anyio.to_thread.run_sync(_is_whole, entry)

    def used(self, entry: Entry) -> None:
        """Take note that a saved slot was taken up."""
        if entry.path in self._entries:
            sidecar = msgspec.structs.replace(entry.sidecar, used_s=time.time())
            self._entries[entry.path] = Entry(entry.path, sidecar, entry.tokens)
            with suppress(OSError):
                _write_sidecar(self._entries[entry.path], must_sync=False)

    def drop(self, entry: Entry, why: str) -> None:
        """Remove a saved slot, and say why."""
        if entry.path in self._entries:
            self._remove(entry)
            self._emit(events.KVDropped(entry.sidecar.model, entry.sidecar.n_tokens, why))

    def clear(self, model: str | None = None) -> int:
        """Remove what is saved, of one model or of all; return the bytes that were freed."""
        entries = self.entries(model)
        for entry in entries:
            self._remove(entry)
        return sum(entry.sidecar.size_bytes for entry in entries)

    def _remove(self, entry: Entry) -> None:
        self._entries.pop(entry.path, None)
        with suppress(OSError):
            entry.path.unlink(missing_ok=True)
            entry.path.with_suffix(".json").unlink(missing_ok=True)


def described(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return what listings tell of saved slots."""
    return [
        {
            "model": entry.sidecar.model,
            "tokens": entry.sidecar.n_tokens,
            "bytes": entry.sidecar.size_bytes,
            "saved_at": entry.sidecar.saved_s,
            "used_at": entry.sidecar.used_s,
            "path": str(entry.path),
        }
        for entry in entries
    ]


def _found(folder: Path) -> Iterator[Entry]:
    """Yield every saved slot below ``folder``; remove what a kill has left of others."""
    with suppress(OSError):
        found = sorted(folder.glob("*/*"))
        for path in sorted(found, key=lambda path: path.suffix == ".json"):  # behind its .kv
            if not _OWN.fullmatch(path.name):
                continue
            if path.suffix == ".kv":
                if entry := _read(path):
                    yield entry
                    continue
            elif path.suffix == ".json" and path.with_suffix(".kv").exists():
                continue
            with suppress(OSError):
                path.unlink()


def _read(path: Path) -> Entry | None:
    try:
        sidecar = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Sidecar)
        tokens = read_tokens(path)
        is_whole = path.stat().st_size == sidecar.size_bytes
    except (OSError, msgspec.MsgspecError, SlotFileError):
        return None
    is_good = is_whole and sha256_of(tokens) == sidecar.prefix_sha256
    return Entry(path, sidecar, tokens) if is_good else None


def _written(path: Path, model: str, identity: str, reread_s: float, *, must_sync: bool) -> Entry:
    """Make a file of llama-server's a saved slot."""
    try:
        path.chmod(0o600)
        tokens = read_tokens(path)
        sidecar = Sidecar(
            model=model,
            identity=identity,
            n_tokens=len(tokens),
            prefix_sha256=sha256_of(tokens),
            size_bytes=path.stat().st_size,
            crc32=_crc32(path, must_sync=must_sync),
            saved_s=time.time(),
            used_s=time.time(),
            reread_s=reread_s,
        )
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return place(path, sidecar, tokens, must_sync=must_sync)


def place(part: Path, sidecar: Sidecar, tokens: Tokens, *, must_sync: bool = True) -> Entry:
    """Make a whole file, by the name of ``KVFiles.new_part``, a saved slot on disk.

    Raises:
        OSError: it cannot be; nothing is left of it.
    """
    entry = Entry(part.with_suffix(".kv"), sidecar, tokens)
    try:
        part.rename(entry.path)
        _write_sidecar(entry, must_sync=must_sync)
    except BaseException:
        for left in (part, entry.path):
            left.unlink(missing_ok=True)
        raise
    return entry


def _is_whole(entry: Entry) -> bool:
    try:
        is_same_size = entry.path.stat().st_size == entry.sidecar.size_bytes
        return is_same_size and _crc32(entry.path) == entry.sidecar.crc32
    except OSError:
        return False


def sha256_of(tokens: Tokens) -> str:
    """Return the sum of tokens, four bytes each, in hex digits."""
    return hashlib.sha256(tokens.tobytes()).hexdigest()


def read_tokens(path: Path) -> Tokens:
    """Return the tokens of a saved slot.

    Raises:
        OSError: it cannot be read.
        SlotFileError: it is none.
    """
    with path.open("rb") as file:
        return tokens_of(file.read(4 * n_words(file.read(HEAD_BYTES))))


def _crc32(path: Path, *, must_sync: bool = False) -> int:
    crc = 0
    with path.open("rb", buffering=0) as file:
        if must_sync:
            os.fsync(file.fileno())
        while piece := file.read(_PIECE_BYTES):
            crc = zlib.crc32(piece, crc)
    return crc


def _write_sidecar(entry: Entry, *, must_sync: bool = True) -> None:
    data = msgspec.json.encode(entry.sidecar)
    replace_file(entry.path.with_suffix(".json"), data, must_sync=must_sync)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
