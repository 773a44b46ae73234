"""What a command loads before it does anything: nothing that is slow to load and not needed."""

import subprocess
import sys

import pytest

SLOW = {
    "anyio", "asyncio", "httpx", "matplotlib", "msgspec", "plotext", "psutil", "pydantic", "rich",
    "starlette", "tomli", "tomlkit", "uvicorn", "uvloop", "watchfiles",
}  # fmt: skip
"""Each takes milliseconds to load."""


def loaded_by(code: str) -> set[str]:
    """Return those of ``SLOW`` that a Python has loaded after ``code``."""
    told = f"{code}\nimport sys; sys.stderr.write('|' + '|'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=True
    )
    return SLOW & set(done.stderr.split("|"))


def command(*words: str) -> str:
    """Return code that runs a command of kvsup to its end."""
    return f"""
import sys
from kvsup.cli import main
sys.argv = {["kvsup", *words]!r}
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
"""


@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("version",)])
def test_help_loads_nothing_that_is_slow(words: tuple[str, ...]) -> None:
    """``kvsup --help`` answers at once: each command imports what it alone needs."""
    assert loaded_by(command(*words)) == set()


def test_command_with_text_and_paths_loads_no_pydantic() -> None:
    """Typer converts by pydantic, which takes longer to load than most commands to run."""
    assert loaded_by(command("schema", "model")) == {"msgspec"}


def test_supervisor_loads_no_client_of_the_command_line() -> None:
    """``kvsup run`` needs httpx only for ``image_hosts``, and prints no tables."""
    loaded = loaded_by("import kvsup.serve")

    assert {"uvicorn", "starlette"} <= loaded
    assert loaded.isdisjoint({"httpx", "matplotlib", "plotext", "pydantic", "rich"})


def test_asking_a_running_kvsup_loads_no_event_loop() -> None:
    """``kvsup ps`` and its like ask by the standard library alone."""
    loaded = loaded_by("import kvsup.cli.client")

    assert loaded.isdisjoint({"anyio", "asyncio", "httpx", "pydantic", "rich", "uvicorn"})
