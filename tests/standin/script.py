"""Scripts for the stand-in, and the pieces that most of them share."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

STANDIN = Path(__file__).with_name("llama_standin.py")
GOLDEN = Path(__file__).parent.parent / "golden"

Steps = Sequence[Sequence[object]]

LOAD: Steps = (["listen"], ["stage", 0.0], ["stage", 1.0], ["ready"])
"""A load that goes well."""


def write_script(
    path: Path,
    *,
    starts: Sequence[Steps] = (LOAD,),
    answers: Sequence[Steps] = (),
    is_old: bool = False,
) -> str:
    """Write a script and return the TOML line that makes a model follow it.

    Args:
        path: of the script; two counters are kept beside it.
        starts: steps of each start, the last repeats.
        answers: steps of each POST, the last repeats; none: a short good stream each time.
        is_old: whether it is a build that sends no events.
    """
    script: dict[str, object] = {"starts": starts, "is_old": is_old}
    if answers:
        script["answers"] = answers
    path.write_text(json.dumps(script))
    return f'env = {{ KVSUP_STANDIN = "{path}" }}'


def n_starts(path: Path) -> int:
    """Return how often a llama-server was started on the script at ``path``."""
    counter = path.with_suffix(".starts")
    return counter.stat().st_size if counter.exists() else 0


def log_of(name: str) -> list[str]:
    """Return the lines that a real llama-server printed in the failure called ``name``."""
    return (GOLDEN / f"load_failure_{name}.log").read_text().splitlines()


def make_gate(path: Path) -> Path:
    """Make a gate at which a stand-in waits (its step ``wait``) until ``open_gate``."""
    os.mkfifo(path)
    return path


def open_gate(path: Path) -> None:
    """Let the stand-in that waits at ``path``, or will, go on."""
    path.open("wb").close()
