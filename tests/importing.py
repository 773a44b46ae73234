"""Imports without a disk, for tests: what was found, as the files that would be written."""

from collections.abc import Callable
from pathlib import Path

import tomli

from kvsup.importing.commandline import apply_settings
from kvsup.importing.found import Found, name_drafts
from kvsup.importing.tomlfiles import host_text, model_files, model_text
from kvsup.llama.helptext import parse_arguments

GOLDEN = Path(__file__).parent / "golden"
ARGUMENTS = parse_arguments((GOLDEN / "help_b11434.txt").read_text("utf-8"))
"""What llama-server b11434 takes."""

SWAP = (GOLDEN / "import/llama-swap.yaml").read_text("utf-8")
"""A configuration of llama-swap with ten models."""


def imported(found: Found, *, folder: str = "/there") -> dict[str, str]:
    """Return the text of each file that an import would write."""
    for draft in found.kept:
        apply_settings(found, draft, ARGUMENTS, folder=folder)
    name_drafts(found)
    files = {n: model_text(d, n) for n, d in model_files(found, {"kvsup.toml"}).items()}
    return {**files, **({"kvsup.toml": host_text(found)} if found.host else {})}


def tables(read: Callable[[], Found]) -> tuple[dict[str, dict[str, object]], list[str]]:
    """Return what the files hold, by their names without ``.toml``, and the notes as told."""
    found = read()
    files = {name.removesuffix(".toml"): tomli.loads(t) for name, t in imported(found).items()}
    return files, list(map(str, found.all_notes))
