"""Which conversations of a portable file are taken, and why others are not."""

import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path

import msgspec

from kvsup.llama.slotfile import SlotFileError
from kvsup.runtime.kvarchive import Packed, Read, Stray, conversations
from kvsup.runtime.kvfiles import KVFiles, Sidecar, place, read_tokens, sha256_of
from kvsup.runtime.privatefiles import write_all

_IDENTITY, _SHA256 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
_DAMAGED = "it is damaged"
_STRAY = "it is no conversation"
_MAX_SHOWN = 100
"""Letters of a name that is told."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one conversation of a file."""

    model: str
    """Its model here; where it has none, as the file says."""
    tokens: int
    bytes: int
    why_not: str = ""
    """Why it was not taken; empty where it was."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where conversations are taken in."""

    files: KVFiles
    models: Mapping[str, Sequence[str]]
    """By identity: the names of the models that have it."""
    call: Callable[[Callable[[], str]], str] = lambda function: function()
    """Calls a function where the index of ``files`` may be touched."""


def take(read: Read, desk: Desk) -> Iterator[Outcome]:
    """Take what is good from a file, and yield what became of each conversation; blocks.

    Each is on disk, synced, before the next is read: what was taken stays, whatever comes.

    Raises:
        ArchiveError: the file breaks off, or is no such file.
    """
    for found in conversations(read):
        if isinstance(found, Stray):
            yield Outcome(model=_shown(found.name), tokens=0, bytes=0, why_not=_STRAY)
            continue
        sidecar = _as_here(found.sidecar, desk.models)
        yield Outcome(
            model=_shown(sidecar.model),
            tokens=sidecar.n_tokens,
            bytes=sidecar.size_bytes,
            why_not=_why_wrong(sidecar)
            or _why_foreign(sidecar, desk.models)
            or desk.call(partial(desk.files.why_refused, sidecar))
            or _stored(Packed(sidecar, found.pieces), desk),
        )


def is_whole(one: Packed) -> bool:
    """Say whether a conversation of a file is what was written; reads all of it."""
    crc = 0
    for piece in one.pieces:
        crc = zlib.crc32(piece, crc)
    return crc == one.sidecar.crc32


def _shown(name: str) -> str:
    """Return a name from a file so that a terminal shows it and does nothing else."""
    return "".join(sign if sign.isprintable() else "?" for sign in name[:_MAX_SHOWN])


def _as_here(sidecar: Sidecar, models: Mapping[str, Sequence[str]]) -> Sidecar:
    """Return it under the name that its model has here, and not used in the future."""
    names, now_s = models.get(sidecar.identity, ()), time.time()
    return msgspec.structs.replace(
        sidecar,
        model=sidecar.model if sidecar.model in names or not names else names[0],
        saved_s=min(sidecar.saved_s, now_s),
        used_s=min(sidecar.used_s, now_s),
    )


def _why_wrong(sidecar: Sidecar) -> str:
    numbers = (sidecar.saved_s, sidecar.used_s, sidecar.reread_s)
    is_sound = (
        _IDENTITY.fullmatch(sidecar.identity)
        and _SHA256.fullmatch(sidecar.prefix_sha256)
        and sidecar.n_tokens >= 0
        and all(isfinite(number) and number >= 0 for number in numbers)
    )
    return "" if is_sound else "what is said of it makes no sense"


def _why_foreign(sidecar: Sidecar, models: Mapping[str, Sequence[str]]) -> str:
    if sidecar.identity in models:
        return ""
    return "no model here has its weights, its settings and its llama-server"


def _stored(one: Packed, desk: Desk) -> str:
    """Write a conversation; return why it is not kept, with nothing left of it, or nothing."""
    try:
        part = desk.files.folder_of(one.sidecar.model) / desk.files.new_part()
        try:
            if _written(part, one.pieces) != one.sidecar.crc32:
                return _DAMAGED
            tokens = read_tokens(part)
            if (len(tokens), sha256_of(tokens)) != (
                one.sidecar.n_tokens,
                one.sidecar.prefix_sha256,
            ):
                return _DAMAGED
            entry = place(part, one.sidecar, tokens)
        finally:
            part.unlink(missing_ok=True)
    except SlotFileError:
        return _DAMAGED
    except OSError as error:
        return f"it cannot be written: {error.strerror or error}"
    return desk.call(partial(desk.files.admit, entry))


def _written(path: Path, pieces: Iterator[bytes]) -> int:
    """Write a new file, synced, and return its sum."""
    crc = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
            write_all(descriptor, piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return crc
