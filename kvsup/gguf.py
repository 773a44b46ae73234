"""The header of a GGUF file: its keys and its tensors.

Only the header is read, and of the vocabularies in it only the lengths: 150,000 words take some
10 ms. ``read_whole_values`` reads the words, too. Nothing is allocated by a length that the file
claims: a value longer than the rest of the file is an error, and a long one is stepped over.

Format: ggml/include/gguf.h and ggml/src/gguf.cpp, llama.cpp b11434.
"""

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from kvsup.errors import KvsupError
from kvsup.ggufnames import FILE_TYPES, FIM_KEYS, FIM_TEXTS, NUMBER_TYPES, TENSOR_TYPES, UNKNOWN

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_TYPE_STRING, _TYPE_ARRAY = 8, 9
_CHUNK_BYTES = 1 << 20
_MAX_TEXT_BYTES = 1 << 20
_MAX_NAME_BYTES = 1 << 16
_MAX_KEPT_ELEMENTS = 1024
_MAX_WHOLE_ELEMENTS = 1 << 21
_MAX_ELEMENTS = 1 << 24
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 18
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_SEARCHED_BYTES = 64 << 20  # a header with 256,000 words and its merges has some 15 MiB

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class GGUFError(KvsupError):
    """A file is no usable GGUF; the message names no path, the caller knows it."""


@dataclass(frozen=True, slots=True)
class Array:
    """A value that was stepped over: an array of texts, a long array, or a text over 1 MiB."""

    element_type: str
    """``string``, a number type such as ``float32``, or ``byte`` for a long text."""
    length: int


Scalar = bool | int | float | str
Value = Scalar | tuple[int | float, ...] | Array
WholeValue = Value | tuple[str, ...]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """Elements in each dimension, the fastest first: ``(n_in, n_out)`` for a weight."""
    type_name: str | None
    """As Ollama writes it, e.g. ``Q4_K``; None for a type that b11434 does not know."""
    size_bytes: int | None
    """Bytes of the data, without padding; None where the type is unknown."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the header of one file says; of a split model, only this part's tensors."""

    version: int
    values: Mapping[str, Value]
    """Every key. Numeric arrays of up to 1,024 elements are tuples, other arrays ``Array``."""
    tensors: tuple[Tensor, ...]
    header_bytes: int = 0
    """Where the header ends in the file."""

    @property
    def n_tensors(self) -> int:
        """The number of tensors in this file."""
        return len(self.tensors)

    @property
    def n_params(self) -> int:
        """The number of elements of all tensors in this file."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int | None:
        """The bytes of all tensors, or None where one has an unknown type."""
        sizes = [tensor.size_bytes for tensor in self.tensors if tensor.size_bytes is not None]
        return sum(sizes) if len(sizes) == self.n_tensors else None

    @property
    def architecture(self) -> str:
        """``general.architecture``, or an empty string."""
        return self.text("general.architecture") or ""

    @property
    def file_type(self) -> str:
        """The quantization as Ollama shows it, e.g. ``Q4_K_M``; ``unknown`` without the key."""
        number = self.integer("general.file_type")
        if number is None or not 0 <= number < len(FILE_TYPES):
            return UNKNOWN
        return FILE_TYPES[number]

    def text(self, key: str) -> str | None:
        """Return the text under ``key``, or None where there is none or it is no text."""
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """Return the integer under ``key``, or None where there is none or it is no integer."""
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def split_paths(path: Path) -> tuple[Path, ...]:
    """Return every part of the model whose first or only file is ``path``, in order.

    Parts are named ``NAME-00001-of-00003.gguf`` (llama_split_path of llama.h, b11434).

    Raises:
        GGUFError: a part is missing, or ``path`` is a later part.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count, stem = int(match["count"]), match["stem"]
    first = path.with_name(f"{stem}-00001-of-{count:05}.gguf")
    if int(match["number"]) != 1:
        raise GGUFError(f"this is a later part of a split model; name the first: {first.name}")
    parts = [path]
    for number in range(2, count + 1):
        part = path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise GGUFError(f"part {number} of {count} of the model is missing: {part.name}")
        parts.append(part)
    return tuple(parts)


def read_metadata_of(path: Path) -> Metadata:
    """Return the header of the file at ``path``.

    Raises:
        GGUFError: the file is no usable GGUF.
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return read_metadata(file)


def read_whole_values(path: Path) -> dict[str, WholeValue]:
    """Return every key of the file at ``path`` with its arrays, of up to two million elements each.

    Takes about a second for a large vocabulary; raises as ``read_metadata_of``.
    """
    with path.open("rb", buffering=0) as file:
        cursor = _Cursor(file)
        _, _, n_keys = _read_start(cursor)
        return _read_values(cursor, n_keys, _MAX_WHOLE_ELEMENTS, _read_texts)


def has_fim_tokens(path: Path, metadata: Metadata) -> bool:
    """Say whether llama-server finds tokens for prefix, suffix and middle of a text with a gap.

    They are named by keys or known by their texts (llama-vocab.cpp, b11434). The texts are looked
    for in the bytes of the header, which ``metadata`` is: no word is decoded.

    Raises:
        OSError: the file cannot be read.
    """
    unnamed = [
        place
        for place in range(3)
        if all(metadata.integer(f"tokenizer.ggml.{keys[place]}") is None for keys in FIM_KEYS)
    ]
    if not unnamed:
        return True
    with path.open("rb", buffering=0) as file:
        header = file.read(min(metadata.header_bytes, _MAX_SEARCHED_BYTES))
    return all(any(_as_stored(texts[place]) in header for texts in FIM_TEXTS) for place in unnamed)


def _as_stored(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def read_metadata(file: BinaryIO) -> Metadata:
    """Return the header of a GGUF version 2 or 3, little endian, from the start of ``file``.

    Raises:
        GGUFError: wrong magic, version or byte order; a truncated or malformed header.
    """
    cursor = _Cursor(file)
    version, n_tensors, n_keys = _read_start(cursor)
    values = _read_values(cursor, n_keys, _MAX_KEPT_ELEMENTS, _skip_texts)
    tensors = tuple(_read_tensor(cursor) for _ in range(n_tensors))
    if len({tensor.name for tensor in tensors}) != n_tensors:
        raise GGUFError("two tensors have the same name")
    return Metadata(version, values, tensors, cursor.place)


class _Cursor:
    """A place in a file, behind which one chunk is held in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size_bytes = file.seek(0, 2)
        self._start = 0  # offset in the file of the chunk
        self._chunk = b""
        self._at = 0  # offset in the chunk; may lie behind its end

    @property
    def place(self) -> int:
        """Offset in the file."""
        return self._start + self._at

    @property
    def _left_bytes(self) -> int:
        return self.size_bytes - self.place

    def take(self, n_bytes: int) -> bytes:
        """Return the next bytes; the caller has bounded their number."""
        self._need(n_bytes)
        if self._at + n_bytes > len(self._chunk):
            self._load(n_bytes)
        taken = self._chunk[self._at : self._at + n_bytes]
        self._at += n_bytes
        return taken

    def skip(self, n_bytes: int) -> None:
        self._need(n_bytes)
        self._at += n_bytes

    def number(self, layout: str) -> int:
        (value,) = struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))
        return int(value)

    def name(self, what: str) -> str:
        length = self.number("Q")
        if length > _MAX_NAME_BYTES:
            raise GGUFError(f"{what} claims a name of {length} bytes")
        return self.text(length, what)

    def text(self, n_bytes: int, what: str) -> str:
        try:
            return self.take(n_bytes).decode()
        except UnicodeDecodeError:
            raise GGUFError(f"{what} is no UTF-8 text") from None

    def skip_strings(self, count: int) -> None:
        """Step over ``count`` strings by their lengths, without decoding one."""
        unpack_from = struct.Struct("<Q").unpack_from
        while True:
            chunk, at = self._chunk, self._at
            try:
                while count:
                    at += 8 + unpack_from(chunk, at)[0]
                    count -= 1
            except (struct.error, OverflowError):  # the next length lies behind this chunk
                pass
            self._at = at
            if not count:
                self._need(0)
                return
            self._need(8)
            self._load(8)

    def strings(self, count: int) -> tuple[str, ...]:
        found = []
        for _ in range(count):
            (length,) = struct.unpack("<Q", self.take(8))
            found.append(self.take(length).decode(errors="replace"))
        return tuple(found)

    def _need(self, n_bytes: int) -> None:
        if n_bytes > self._left_bytes:
            raise GGUFError("the file ends within its header; it is truncated or damaged")

    def _load(self, n_bytes: int) -> None:
        """Make the next bytes, and what follows of a chunk, the chunk."""
        self._start += self._at
        self._at = 0
        self._file.seek(self._start)
        wanted_bytes = min(max(n_bytes, _CHUNK_BYTES), self.size_bytes - self._start)
        parts = []
        while wanted_bytes and (part := self._file.read(wanted_bytes)):
            parts.append(part)
            wanted_bytes -= len(part)
        if wanted_bytes:
            raise GGUFError("the file became shorter while it was read")
        self._chunk = b"".join(parts)


def _read_start(cursor: _Cursor) -> tuple[int, int, int]:
    """Return the version and the numbers of tensors and keys."""
    if cursor.size_bytes < 4 or cursor.take(4) != _MAGIC:
        raise GGUFError("this is no GGUF file: it does not start with the letters GGUF")
    version = cursor.number("I")
    if version not in _VERSIONS:
        if version & 0xFFFF == 0:
            raise GGUFError("the file is big endian; convert it for this machine's byte order")
        raise GGUFError(f"GGUF version {version} is not known, only 2 and 3; convert it anew")
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
        raise GGUFError(f"the header claims {n_tensors} tensors and {n_keys} keys")
    return version, n_tensors, n_keys


def _read_values(
    cursor: _Cursor, n_keys: int, max_kept: int, read_texts: Callable[[_Cursor, int], T]
) -> dict[str, Value | T]:
    values: dict[str, Value | T] = {}
    for _ in range(n_keys):
        key = cursor.name("a key")
        if key in values:
            raise GGUFError(f"the key {key!r} stands in the header twice")
        values[key] = _read_value(cursor, key, max_kept, read_texts)
    return values


def _read_value(
    cursor: _Cursor, key: str, max_kept: int, read_texts: Callable[[_Cursor, int], T]
) -> Value | T:
    kind = cursor.number("I")
    if kind == _TYPE_STRING:
        length = cursor.number("Q")
        if length <= _MAX_TEXT_BYTES:
            return cursor.text(length, f"the value of {key!r}")
        cursor.skip(length)
        return Array("byte", length)
    if kind != _TYPE_ARRAY:
        return _read_numbers(cursor, kind, 1, key)[0]
    kind, length = cursor.number("I"), cursor.number("Q")
    if length > _MAX_ELEMENTS:
        raise GGUFError(f"the array {key!r} claims {length} elements")
    if kind == _TYPE_STRING:
        return read_texts(cursor, length)
    if kind == _TYPE_ARRAY:
        raise GGUFError(f"the value of {key!r} is an array of arrays, which GGUF forbids")
    if length <= max_kept:
        return _read_numbers(cursor, kind, length, key)
    name, layout = _number_type(kind, key)
    cursor.skip(length * struct.calcsize("<" + layout))
    return Array(name, length)


def _skip_texts(cursor: _Cursor, length: int) -> Array:
    cursor.skip_strings(length)
    return Array("string", length)


def _read_texts(cursor: _Cursor, length: int) -> tuple[str, ...] | Array:
    if length > _MAX_WHOLE_ELEMENTS:
        return _skip_texts(cursor, length)
    return cursor.strings(length)


def _read_numbers(cursor: _Cursor, kind: int, count: int, key: str) -> tuple[int | float, ...]:
    layout = f"<{count}{_number_type(kind, key)[1]}"
    return struct.unpack(layout, cursor.take(struct.calcsize(layout)))


def _number_type(kind: int, key: str) -> tuple[str, str]:
    if kind not in NUMBER_TYPES:
        raise GGUFError(f"the value of {key!r} has the unknown type {kind}")
    return NUMBER_TYPES[kind]


def _read_tensor(cursor: _Cursor) -> Tensor:
    name = cursor.name("a tensor")
    n_dimensions = cursor.number("I")
    if n_dimensions > _MAX_DIMENSIONS:
        raise GGUFError(f"the tensor {name!r} claims {n_dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(n_dimensions))
    n_elements = math.prod(shape)
    if n_elements >= 1 << 63:
        raise GGUFError(f"the tensor {name!r} claims {n_elements} elements")
    kind, _offset = cursor.number("I"), cursor.number("Q")
    if kind not in TENSOR_TYPES:
        return Tensor(name, shape, None, None)
    type_name, block_elements, block_bytes = TENSOR_TYPES[kind]
    if (shape[0] if shape else 1) % block_elements:
        raise GGUFError(f"the rows of the tensor {name!r} are no multiple of {type_name}'s block")
    return Tensor(name, shape, type_name, n_elements // block_elements * block_bytes)
