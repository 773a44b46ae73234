"""Ollama's own program, with ``OLLAMA_HOST`` pointed at kvsup; only where there is one."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.asking import MODEL
from tests.running import RunningKvsup
from tests.tiny import ANSWER, TinyModels


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home without anything of whoever runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    return home


def _ollama(kvsup: RunningKvsup, home: Path, *words: object, stdin: str = "") -> str:
    done = subprocess.run(
        ["ollama", *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "OLLAMA_HOST": kvsup.url},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_program_makes_sends_fetches_and_runs_models(
    kvsup: RunningKvsup, registry_host: str, home: Path, tmp_path: Path
) -> None:
    """Create from a file, show, list, push, cp, rm, pull, run, ps, stop."""
    weights = TinyModels(tmp_path).plain()
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f"FROM {weights}\nPARAMETER num_ctx 512\nSYSTEM Be brief.\n")
    name = f"{registry_host}/go/made:v1"

    _ollama(kvsup, home, "create", name, "-f", modelfile)
    shown = _ollama(kvsup, home, "show", name)
    _ollama(kvsup, home, "push", "--insecure", name)
    _ollama(kvsup, home, "cp", name, "go-copy")
    _ollama(kvsup, home, "rm", name)
    listed = _ollama(kvsup, home, "list")
    _ollama(kvsup, home, "pull", "--insecure", name)
    said = _ollama(kvsup, home, "run", name, "Hi")
    running = _ollama(kvsup, home, "ps")
    _ollama(kvsup, home, "stop", name)
    _ollama(kvsup, home, "rm", name, "go-copy")

    assert "Be brief." in shown
    assert "go-copy:latest" in listed
    assert name not in listed
    assert ANSWER in said
    assert name in running
    assert "go-copy" not in _ollama(kvsup, home, "list")


def test_program_makes_a_model_of_one_that_is_there(
    kvsup: RunningKvsup, home: Path, tmp_path: Path
) -> None:
    """Of one that kvsup serves from a file of its own."""
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f"FROM {MODEL}\nPARAMETER temperature 0\nPARAMETER num_predict 4\n")

    _ollama(kvsup, home, "create", "go-derived", "-f", modelfile)
    shown = _ollama(kvsup, home, "show", "--modelfile", "go-derived")
    said = _ollama(kvsup, home, "run", "go-derived", "Hi")
    _ollama(kvsup, home, "rm", "go-derived")

    assert "PARAMETER num_predict 4" in shown
    assert said.strip()
