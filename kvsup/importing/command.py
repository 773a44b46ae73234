"""A command that starts a llama-server: its program, its words, what stands before it.

llama-swap runs ``cmd`` without a shell: comment lines are dropped, then the words are parted as a
POSIX shell would (its config.example.yaml, 2026-08).
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import PurePath

_PROGRAM = re.compile(r"llama-server|server(\.exe)?$", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_ELSEWHERE = {
    "docker": "runs in a container", "podman": "runs in a container",
    "nerdctl": "runs in a container", "kubectl": "runs in a container",
    "apptainer": "runs in a container", "toolbox": "runs in a container",
    "distrobox": "runs in a container", "ssh": "runs on another machine",
    "bash": "is a shell's script", "sh": "is a shell's script", "zsh": "is a shell's script",
    "cmd.exe": "is a shell's script", "powershell": "is a shell's script",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Command:
    """A command, taken apart."""

    program: str
    words: tuple[str, ...]
    """Its arguments."""
    env: tuple[tuple[str, str], ...] = ()
    """What ``env`` sets for it."""
    wrapper: tuple[str, ...] = ()
    """What runs it: ``numactl --cpunodebind=0``."""


def read_command(text: str) -> Command:
    """Return the llama-server that ``text`` starts.

    Raises:
        ValueError: it starts something else, or in another place; the message says what.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    try:
        words = shlex.split(re.sub(r"\\\s*$", " ", "\n".join(lines), flags=re.MULTILINE))
    except ValueError as error:
        raise ValueError(f"cannot be parted into words: {error}") from error
    if not words:
        raise ValueError("is empty")
    first = PurePath(words[0]).name
    if first.lower() in _ELSEWHERE:
        raise ValueError(f"{_ELSEWHERE[first.lower()]}; kvsup starts llama-server itself")
    at = next((i for i, word in enumerate(words) if _is_llama_server(word)), None)
    if at is None:
        raise ValueError(f"starts {first}, and kvsup runs only llama-server")
    before = words[:at]
    env = tuple(_pair(word) for word in before if _ASSIGNMENT.match(word))
    wrapper = tuple(word for word in before if not _ASSIGNMENT.match(word))
    is_env = wrapper[:1] and PurePath(wrapper[0]).name == "env"
    return Command(words[at], tuple(words[at + 1 :]), env, wrapper[1:] if is_env else wrapper)


def _is_llama_server(word: str) -> bool:
    return _PROGRAM.match(PurePath(word).name) is not None


def _pair(assignment: str) -> tuple[str, str]:
    name, _, value = assignment.partition("=")
    return name, value
