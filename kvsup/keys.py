"""API keys: their names and scopes, and which of them a token is.

Of a key only its SHA-256 is kept, so that nothing that prints one can give it away.
"""

import dataclasses
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from kvsup.decode import Source
from kvsup.errors import Problem

MIN_KEY_CHARACTERS = 16
"""Shorter keys can be guessed from their SHA-256."""

_MEND = 'write key = "…" with the output of: openssl rand -hex 24'
_FIELDS = ("key", "sha256", "scope", "priority")
_PRIORITIES = range(-10, 11)


class Scope(IntEnum):
    """What a key is for; the greater one includes the lesser."""

    INFER = 1
    """To use models and to list them."""
    MANAGE = 2
    """To load, unload, add and remove them as well, and all of ``/kvsup/*``."""


_SCOPES = {scope.name.lower(): scope for scope in Scope}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a key file."""

    name: str
    scope: Scope
    digest: bytes = field(repr=False)
    """SHA-256 of the key's UTF-8 bytes."""
    priority: int = 0
    """Of its requests in the queue, beside that of the model; higher first."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Every key that a request may bring."""

    keys: tuple[Key, ...] = ()

    def key_of(self, token: str) -> Key | None:
        """Return the key that ``token`` is, None where it is none.

        It is compared with every key, each in constant time, so that how long this takes tells
        neither which key it is nor how near it came.
        """
        digest = _digest(token)
        found = [key for key in self.keys if hmac.compare_digest(key.digest, digest)]
        return found[0] if found else None


def decode_keys(source: Source) -> tuple[KeyRing, list[Problem]]:
    """Return the keys of a key file, and what is wrong in it; no problem quotes a value.

    Each key is a table, whose name is the key's: ``key`` (the key itself) or ``sha256`` (its
    SHA-256 in hexadecimal digits), ``scope``, ``"infer"`` if absent, and ``priority``, 0 if absent.
    """
    keys: list[Key] = []
    problems: list[Problem] = []
    owners: dict[bytes, str] = {}
    for name, table in source.table.items():
        if not isinstance(table, Mapping):
            # its name is not told: somebody may have written the key there
            found = source.problem(name, f"is no table; write [NAME], and in it {_MEND}")
            problems.append(dataclasses.replace(found, key=""))
            continue
        wrong = {f"{name}.{key}".rstrip("."): text for key, text in _faults(table).items()}
        problems += [source.problem(key, text) for key, text in wrong.items()]
        if wrong:
            continue
        scope, priority = _SCOPES[table.get("scope", "infer")], table.get("priority", 0)
        key = Key(name, scope, _digest_of(table), priority)
        if (owner := owners.setdefault(key.digest, name)) != name:
            problems.append(source.problem(name, f"has the same key as {owner}; write another"))
        keys.append(key)
    if not source.table:
        problems.append(source.problem("", f"holds no key; write [NAME], and in it {_MEND}"))
    return KeyRing(tuple(keys)), problems


def plain_manage_key(source: Source) -> str | None:
    """Return the first key of scope ``manage`` that a key file holds in plain text, None if none.

    A problem elsewhere in the file is none here: its owner may be about to be told of it.
    """
    for table in source.table.values():
        if isinstance(table, Mapping) and table.get("scope") == "manage":
            key = table.get("key")
            if isinstance(key, str) and is_sendable(key):
                return key
    return None


def is_sendable(key: str) -> bool:
    """Say whether ``key`` can stand in a header: visible ASCII characters, no blanks."""
    return re.fullmatch(r"[!-~]+", key) is not None


def _faults(table: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with one table, by its key; the empty one is the table itself."""
    known = ", ".join(_FIELDS)
    faults = {key: f"unknown key; known keys: {known}" for key in table if key not in _FIELDS}
    if "key" in table and "sha256" in table:
        faults[""] = "has a key and a sha256; drop one of them"
    elif "key" in table:
        key = table["key"]
        if not isinstance(key, str) or not is_sendable(key):
            faults["key"] = f"is no text of visible ASCII characters without blanks; {_MEND}"
        elif len(key) < MIN_KEY_CHARACTERS:
            faults["key"] = f"is shorter than {MIN_KEY_CHARACTERS} characters; {_MEND}"
    elif "sha256" in table:
        digest = table["sha256"]
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
            faults["sha256"] = "is no SHA-256; write its 64 hexadecimal digits"
    else:
        faults[""] = f"has no key; {_MEND}"
    scope = table.get("scope", "infer")
    if not isinstance(scope, str) or scope not in _SCOPES:
        faults["scope"] = "is no scope; write infer or manage"
    priority = table.get("priority", 0)
    if type(priority) is not int or priority not in _PRIORITIES:
        faults["priority"] = "is no priority; write a whole number from -10 to 10"
    return faults


def _digest_of(table: Mapping[str, Any]) -> bytes:
    return _digest(table["key"]) if "key" in table else bytes.fromhex(table["sha256"])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
