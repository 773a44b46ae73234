"""``kvsup setup``: run the fetch script, from the package's data or from the source tree."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kvsup.errors import KvsupError

_NAME = "fetch_llama_server.sh"


def fetch(arguments: Sequence[str]) -> int:
    """Run the script with ``arguments``, by default with the demo model; return its exit code.

    Raises:
        KvsupError: the script is not there, or there is no bash.
    """
    script = _script()
    words = list(arguments) or ["--demo-model"]
    environment = {**os.environ, "PYTHON": sys.executable}
    try:
        bash = ["bash", str(script), *words]
        return subprocess.run(bash, env=environment, check=False).returncode
    except FileNotFoundError as error:
        raise KvsupError("bash is not on PATH; install it and run kvsup setup again") from error


def _script() -> Path:
    package = Path(__file__).resolve().parents[1]
    for path in (package / "data" / _NAME, package.parent / "scripts" / _NAME):
        if path.is_file():
            return path
    raise KvsupError(f"{_NAME} is missing from this installation; install kvsup again")
