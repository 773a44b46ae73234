"""KV cache types: the grammar ``type_k:type_v``, block sizes, and which pairs can work.

Block sizes and names are those of ggml as ``llama-server --help`` lists them (b10434, b11434:
f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1). A fork may know more names; they are
accepted where its ``--help`` lists them, with their size unknown until a load has told it.
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

FlashAttention = Literal["auto", "on", "off"]
"""How flash attention is asked for; whether it is on decides which pairs can work."""

STOCK_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""The names that stock llama-server takes, from most to least bits."""

_BLOCKS: dict[str, tuple[int, int]] = {  # elements a block, bytes a block (ggml-common.h, b11434)
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True, order=True)
class KVType:
    """One ggml type for the K or the V half of a KV cache."""

    name: str

    @property
    def is_quantized(self) -> bool:
        """Say whether elements are stored in blocks; unknown types count as quantized."""
        return self.block_elements != 1

    @property
    def block_elements(self) -> int | None:
        """Elements in a block, or None for a type that stock llama.cpp does not know."""
        return _BLOCKS[self.name][0] if self.name in _BLOCKS else None

    def row_bytes(self, n_elements: int) -> int | None:
        """Return the bytes of a row of ``n_elements``, or None where the type's size is unknown.

        Raises:
            ValueError: ``n_elements`` is no multiple of the block.
        """
        if self.name not in _BLOCKS:
            return None
        elements, size_bytes = _BLOCKS[self.name]
        if n_elements % elements:
            raise ValueError(f"{n_elements} elements are no multiple of {self.name}'s {elements}")
        return n_elements // elements * size_bytes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class KVPair:
    """The types of a KV cache's two halves; prints as ``type_k:type_v``."""

    k: KVType
    v: KVType

    def __str__(self) -> str:
        return f"{self.k}:{self.v}"


F16 = KVPair(KVType("f16"), KVType("f16"))

_UNKNOWN_BITS = 8.0


def distance(wanted: KVPair, other: KVPair) -> tuple[bool, float, float, bool, bool]:
    """Return how far ``other`` is from ``wanted``, to sort by: the least is the nearest.

    A K of fewer bits comes last, since errors in K cost more; then count the bits an element of K,
    those of V, and the names. A type of unknown size counts as one of 8 bits.
    """
    k_bits = _bits(other.k) - _bits(wanted.k)
    v_bits = _bits(other.v) - _bits(wanted.v)
    return k_bits < 0, abs(k_bits), abs(v_bits), other.k != wanted.k, other.v != wanted.v


def _bits(kv_type: KVType) -> float:
    size_bytes = kv_type.row_bytes(32)
    return _UNKNOWN_BITS if size_bytes is None else size_bytes / 4


def parse_kv_pair(text: str, *, allowed: Collection[str] | None = None) -> KVPair:
    """Return the pair that ``text`` names: ``type_k:type_v``, or one type for both.

    Case and blanks around names are forgiven. ``allowed`` are the names that the binary at hand
    lists, and spells (ik_llama.cpp's ``q8_KV``); without it only the grammar is checked.

    Raises:
        ValueError: with what is wrong and what to write instead.
    """
    spelling = {name.lower(): name for name in allowed or ()}
    names = [part.strip().lower() for part in text.split(":")]
    if len(names) > 2 or not all(names):
        raise ValueError(f'{text!r} is no pair of types; write "type_k:type_v", e.g. "q8_0:q5_1"')
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f'{name!r} is no type name; write e.g. "q8_0:q5_1"')
        if allowed is not None and name not in spelling:
            near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{name!r} is no KV cache type of this llama-server; {hint}"
                f"it takes {', '.join(allowed)}"
            )
    k, v = (spelling.get(name, name) for name in (names[0], names[-1]))
    return KVPair(KVType(k), KVType(v))
