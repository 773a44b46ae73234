"""The file of a saved slot, and what it is good for (``/slots/{id}?action=save``, b10434, b11434).

llama-server checks types and shapes of a file that it restores, nothing else: one of other weights
of the same shape, of another rope scale or LoRA is taken with HTTP 200, and the answers are noise
(tried). So its identity is kvsup's own, and any difference is a miss.
"""

import hashlib
import struct
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import pairwise

import msgspec

from kvsup.warmth import Tokens

HEAD_BYTES = 12
_MAGIC = 0x67677371
"""``LLAMA_STATE_SEQ_MAGIC`` of llama.h; the version behind it is 2 (b10435) or 4 (b11434)."""
_PACKED = 1
"""What the token list begins with, behind -1: the form with media (server-common.cpp)."""
_MAX_WORDS = 1 << 26

_WITHOUT_EFFECT: Mapping[str, int] = {
    "--host": 1, "--alias": 1, "--threads": 1, "--cache-ram": 1, "--slot-save-path": 1,
    "--batch-size": 1, "--ubatch-size": 1, "--slots": 0, "--metrics": 0, "--log-verbosity": 1,
    "--log-colors": 1, "--no-log-timestamps": 0, "--no-ui": 0, "--offline": 0, "--fit": 1,
    "--no-cache-idle-slots": 0, "--jinja": 0, "--load-mode": 1, "--reasoning": 1,
}  # fmt: skip
"""Flags that kvsup writes, with the number of their values, which change nothing in a cache."""

_VECTOR = "--control-vector"
_ADAPTERS = ("--lora", f"{_VECTOR}-", f"{_VECTOR}=")
"""Flags of LoRAs, and of control vectors in the forms that are not taken apart (arg.cpp)."""
_VARIABLES = ("GGML_", "LLAMA_")
_SHARES = ("--slot-prompt-similarity", "-sps")
_DEFAULT_SHARE = 0.1


class SlotFileError(ValueError):
    """It is no saved slot that kvsup knows."""


def n_words(head: bytes) -> int:
    """Return how many words of the token list follow the first ``HEAD_BYTES``.

    Raises:
        SlotFileError: it is no saved slot.
    """
    if len(head) < HEAD_BYTES:
        raise SlotFileError("the file is shorter than its head")
    magic, _version, words = struct.unpack_from("<III", head)
    if magic != _MAGIC:
        raise SlotFileError("it is no saved slot")
    if words > _MAX_WORDS:
        raise SlotFileError(f"its head tells of {words} tokens")
    return int(words)


def tokens_of(words: bytes) -> Tokens:
    """Return the tokens of a slot from the words behind the head; one of a medium is -1.

    Raises:
        SlotFileError: it is no list of tokens.
    """
    if len(words) % 4:
        raise SlotFileError("the list of tokens breaks off")
    listed = array("i", words)
    if not listed:
        return listed
    if len(listed) < 3 or (listed[0], listed[1]) != (-1, _PACKED):
        return listed  # a build that writes the bare tokens
    n_tokens = listed[2]
    if not 0 <= n_tokens <= len(listed) - 3:
        raise SlotFileError("the list of tokens breaks off")
    return listed[3 : 3 + n_tokens]


class Identity(msgspec.Struct, frozen=True):
    """All that the K and V of a slot depend on; equal for those that may be exchanged."""

    build: str
    arguments: tuple[str, ...]
    """The command line without what changes nothing, each file by its SHA-256."""
    variables: tuple[tuple[str, str], ...]
    weights: tuple[str, ...]
    """SHA-256 of every part of the weights."""
    template: str

    @property
    def digest(self) -> str:
        """Return it as one short text."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


def identity(
    *,
    build: str,
    argv: Iterable[str],
    variables: Mapping[str, str],
    sums: Mapping[str, str],
    weights: Iterable[str],
    template: str | None,
) -> Identity:
    """Return the identity of what a llama-server keeps in its slots.

    Args:
        build: version and build of the program.
        argv: its command line, the program first.
        variables: its environment.
        sums: SHA-256 of each file that the command line names, by its path as written there.
        weights: paths, keys of ``sums``, of all parts of the weights.
        template: the chat template in force.

    Raises:
        KeyError: a file has no sum.
    """
    words = iter(list(argv)[1:])
    kept: list[str] = []
    for word in words:
        if word in _WITHOUT_EFFECT:
            for _ in range(_WITHOUT_EFFECT[word]):
                next(words, None)
            continue
        kept.append(sums.get(word, word))
    return Identity(
        build=build,
        arguments=tuple(kept),
        variables=tuple(sorted((k, v) for k, v in variables.items() if k.startswith(_VARIABLES))),
        weights=tuple(sums[path] for path in weights),
        template=hashlib.sha256((template or "").encode()).hexdigest(),
    )


def named_files(argv: Iterable[str]) -> tuple[str, ...]:
    """Return every word of a command line that may be the path of a file."""
    return tuple(word for word in list(argv)[1:] if "/" in word)


def has_adapters(argv: Iterable[str]) -> bool:
    """Say whether a LoRA, or a control vector that is not taken apart, is on a command line."""
    return any(word.startswith(_ADAPTERS) for word in argv)


def is_certain(argv: Iterable[str], sums: Mapping[str, str]) -> bool:
    """Say whether all that changes the K and V of a slot is on the command line, with its sum.

    It is not with a LoRA: its scale may be another in each request, and by ``/lora-adapters``.
    """
    words = list(argv)
    return not has_adapters(words) and all(
        following in sums for flag, following in pairwise(words) if flag == _VECTOR
    )


def least_share(argv: Iterable[str]) -> float | None:
    """Return the share of a prompt above which llama-server chooses a slot that holds it.

    Below it takes the slot that has been idle for longest (``get_available_slot`` in
    server-context.cpp; b10434 and b11434, tried). None: always that one.
    """
    share = _DEFAULT_SHARE
    for flag, following in pairwise(argv):
        if flag in _SHARES:
            with suppress(ValueError):  # llama-server does not start with it
                share = float(following)
    return share or None
