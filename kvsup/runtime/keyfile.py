"""Read the file of API keys; one that others can read is refused."""

from pathlib import Path

from kvsup.errors import Problem
from kvsup.keys import KeyRing, decode_keys, plain_manage_key
from kvsup.runtime.tomlfile import read_toml


def read_keys(path: Path, shown: str) -> tuple[KeyRing, list[Problem]]:
    """Return the keys of the file at ``path``, and what is wrong with it.

    Args:
        path: the file.
        shown: its path as problems tell it.
    """
    source = read_toml(path, shown, is_secret=True)
    return (KeyRing(), [source]) if isinstance(source, Problem) else decode_keys(source)


def read_manage_key(path: Path) -> str | None:
    """Return a key of scope ``manage`` from the file at ``path``.

    None where the file cannot be read, or has no such key in plain text.
    """
    source = read_toml(path, str(path), is_secret=True)
    return None if isinstance(source, Problem) else plain_manage_key(source)
