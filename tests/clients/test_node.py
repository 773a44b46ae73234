"""Clients written in JavaScript, each with its own tests in ``node/``, against the kvsup of all."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.running import RunningKvsup

NODE = Path(__file__).parent / "node"
FILES = sorted(NODE.glob("*.test.mjs"))

TIMEOUT_S = 50


@pytest.fixture(scope="module")
def node() -> str:
    """Return the program ``node``, once the packages of the clients are there too."""
    found = shutil.which("node")
    if found is None:
        pytest.fail("there is no node on the PATH; install Node.js 20 or newer")
    if not (NODE / "node_modules").is_dir():
        pytest.fail(f"the clients are not installed; run: npm ci --prefix {NODE}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.removesuffix(".test.mjs"))
def test_client_in_node_does_all_that_it_does_with_ollama(
    kvsup: RunningKvsup, registry_host: str, node: str, file: Path
) -> None:
    """Every test in the file passes; the environment holds nothing by which one could report."""
    environment = {
        "PATH": os.environ["PATH"],
        "NO_COLOR": "1",
        "KVSUP_URL": kvsup.url,
        "KVSUP_REGISTRY": registry_host,
    }

    ran = subprocess.run(
        [node, "--test", "--test-reporter=spec", file],
        cwd=NODE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_each_package_in_node_has_an_exact_version_and_a_test() -> None:
    """A range would change under us; a package that nothing imports would only seem tested."""
    packages = json.loads((NODE / "package.json").read_text())["dependencies"]

    text = "".join(file.read_text() for file in NODE.glob("*.mjs"))
    assert [name for name in packages if f"from '{name}" not in text] == []
    assert [version for version in packages.values() if not version[0].isdigit()] == []
