"""Saved conversations in one portable file: a tar with ``ID.json`` and ``ID.kv`` for each.

It is written and read in pieces, as a stream: no conversation is ever in memory as a whole. Of a
tar only plain files with such a name are understood. All else (long names, links, devices, sparse
files) kvsup never writes, and it is stepped over, so that no file can say where anything is put.
"""

import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from kvsup.runtime.kvfiles import Entry, Sidecar

PIECE_BYTES = 1 << 20

_BLOCK = 512
_MAX_SIDECAR_BYTES = 64 << 10
_MAX_MEMBERS = 100_000
"""Of a file that is read: each leaves a line to tell."""

_NAME = re.compile(r"([0-9a-f]{16})\.(json|kv)")

Read = Callable[[int], bytes]
"""Returns the next bytes, at most so many; none at the end."""


class ArchiveError(ValueError):
    """It is no file of conversations, or breaks off."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One conversation of a file; ``pieces`` are those of its saved slot, to be read once."""

    sidecar: Sidecar
    pieces: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Stray:
    """Something else in such a file."""

    name: str


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size_bytes: int
    pieces: Iterator[bytes]


def packed(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield the bytes of a file with ``entries``, without those that are gone by then.

    No piece is empty.

    Raises:
        OSError: one cannot be read to its end.
    """
    for entry in entries:
        try:
            file = entry.path.open("rb", buffering=0)
        except FileNotFoundError:  # something that goes on with it has taken its place
            continue
        with file:
            sidecar = msgspec.json.encode(entry.sidecar)
            yield _head(f"{entry.path.stem}.json", len(sidecar)) + sidecar + _filling(len(sidecar))
            left_bytes = entry.sidecar.size_bytes
            yield _head(entry.path.name, left_bytes)
            while left_bytes:
                piece = file.read(min(PIECE_BYTES, left_bytes))
                if not piece:
                    raise OSError(f"{entry.path} is shorter than it was")
                left_bytes -= len(piece)
                yield piece
            if filling := _filling(entry.sidecar.size_bytes):
                yield filling
    yield bytes(2 * _BLOCK)


def conversations(read: Read) -> Iterator[Packed | Stray]:
    """Yield what is in a file; what is left of a conversation's pieces is stepped over.

    Raises:
        ArchiveError: it breaks off, or is no such file.
    """
    sidecar, stem = None, ""
    for member in _members(read):
        match = _NAME.fullmatch(member.name)
        if match and match[2] == "json" and member.size_bytes <= _MAX_SIDECAR_BYTES:
            sidecar, stem = _decoded(b"".join(member.pieces)), match[1]
            if sidecar is not None:
                continue
        elif match and match[2] == "kv" and sidecar is not None and match[1] == stem:
            is_as_told = member.size_bytes == sidecar.size_bytes
            yield Packed(sidecar, member.pieces) if is_as_told else Stray(member.name)
            sidecar = None
            continue
        sidecar = None
        yield Stray(member.name)


def _members(read: Read) -> Iterator[_Member]:
    """Yield each member; one that is no plain file has a name that says so."""
    for n_members, head in enumerate(iter(lambda: _exactly(read, _BLOCK), bytes(_BLOCK))):
        if n_members > _MAX_MEMBERS:
            raise ArchiveError("it holds more than kvsup ever writes")
        try:
            info = tarfile.TarInfo.frombuf(head, "ascii", "backslashreplace")
        except tarfile.HeaderError as error:
            raise ArchiveError(f"it is no file of kvsup kv export: {error}") from error
        if info.size < 0:
            raise ArchiveError("it is no file of kvsup kv export: a size below 0")
        is_plain = info.type in {tarfile.REGTYPE, tarfile.AREGTYPE}
        pieces = _pieces(read, info.size)
        yield _Member(info.name if is_plain else f"{info.name} (no file)", info.size, pieces)
        for _ in pieces:
            pass
        _exactly(read, len(_filling(info.size)))


def _pieces(read: Read, n_bytes: int) -> Iterator[bytes]:
    while n_bytes:
        piece = read(min(PIECE_BYTES, n_bytes))
        if not piece:
            raise ArchiveError("it breaks off")
        n_bytes -= len(piece)
        yield piece


def _exactly(read: Read, n_bytes: int) -> bytes:
    return b"".join(_pieces(read, n_bytes))


def _decoded(data: bytes) -> Sidecar | None:
    try:
        return msgspec.json.decode(data, type=Sidecar)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _head(name: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size_bytes, 0o600
    return info.tobuf(tarfile.GNU_FORMAT)  # its sizes have no bound


def _filling(size_bytes: int) -> bytes:
    return bytes(-size_bytes % _BLOCK)
