"""What is remembered between runs: one small JSON document for each thing that was measured.

A document lies at ``STATE/KIND/KEY.json``; its key is a digest of all that the measurement depends
on, so nothing is ever out of date, only unused.
"""

import hashlib
import logging
from pathlib import Path
from typing import TypeVar

import msgspec

from kvsup.runtime.privatefiles import replace_file

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


def key_of(*parts: object) -> str:
    """Return the key of a measurement that depends on ``parts``, by their texts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


class Remembered:
    """The documents below one state folder."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._has_told = False

    def read(self, kind: str, key: str, as_type: type[T]) -> T | None:
        """Return a document, or None where there is none that can be read."""
        try:
            return msgspec.json.decode(self._path(kind, key).read_bytes(), type=as_type)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, kind: str, key: str, document: msgspec.Struct) -> None:
        """Keep a document; where the folder cannot be written to, it is measured again."""
        path = self._path(kind, key)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, msgspec.json.encode(document))
        except OSError as error:
            if not self._has_told:
                logger.warning(
                    "%s cannot be written (%s): what is measured is forgotten when kvsup ends",
                    self._state,
                    error.strerror or error,
                )
            self._has_told = True
        else:
            self._has_told = False

    def _path(self, kind: str, key: str) -> Path:
        return self._state / kind / f"{key}.json"
