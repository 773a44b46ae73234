"""Headers of GGUF files, each read once: a long vocabulary takes some 50 ms to step over.

They are kept in the user's cache folder under a digest of the file's stamp, so none is ever out of
date. A small header is not kept: it is read as fast.
"""

import hashlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import msgspec

from kvsup.gguf import Metadata, has_fim_tokens, read_metadata_of
from kvsup.runtime import paths
from kvsup.runtime.privatefiles import make_folder, replace_file

_FORMAT = "1"
"""Another whenever ``Metadata`` says more, or something else, of the same file."""

_LEAST_BYTES = 256 << 10
_MAX_KEPT = 2000
_MAX_DOCUMENT_BYTES = 64 << 20


class Header(msgspec.Struct, frozen=True):
    """What is asked of a file's header again and again."""

    metadata: Metadata
    has_fim_tokens: bool
    """Whether the vocabulary has tokens to fill in a middle with."""


@lru_cache(maxsize=512)
def read_header(path: Path, stamp: str) -> Header:
    """Return the header of the file at ``path``, as it is under ``stamp``.

    Raises:
        GGUFError: the file is no usable GGUF.
        OSError: the file cannot be read.
    """
    folder = paths.cache_dir() / "headers"
    kept = folder / hashlib.sha256(f"{_FORMAT}:{stamp}".encode()).hexdigest()
    with suppress(OSError, msgspec.MsgspecError, RecursionError):
        if kept.stat().st_size <= _MAX_DOCUMENT_BYTES:
            return msgspec.msgpack.decode(kept.read_bytes(), type=Header)
    metadata = read_metadata_of(path)
    header = Header(metadata, has_fim_tokens(path, metadata))
    if metadata.header_bytes >= _LEAST_BYTES:
        with suppress(OSError):  # it is read again
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(folder)
            _make_room(folder)
            replace_file(kept, msgspec.msgpack.encode(header))
    return header


def _make_room(folder: Path) -> None:
    """Remove the older half of what is kept once it is a lot."""
    names = list(folder.iterdir())
    if len(names) >= _MAX_KEPT:
        for path in sorted(names, key=lambda path: path.stat().st_mtime_ns)[: _MAX_KEPT // 2]:
            path.unlink(missing_ok=True)
