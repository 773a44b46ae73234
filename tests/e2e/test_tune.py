"""``kvsup tune`` on the demo model: what it finds, what it keeps, and what it writes."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvsup.runtime.paths import run_dir
from tests.running import eventually

PAIRS = "q8_0:q4_0,q4_0:q8_0"
FILE = """# The demo model.
model = "{path}"
threads = 1
num_ctx = 1024

# Keys matter most.
kv_cache_type = "f16" # exact
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path) -> Path:
    """Return a configuration folder whose state is shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "demo.toml").write_text(FILE.format(path=smollm2))
    (folder / "kvsup.toml").write_text(
        f'llama_server = "{llama_server}"\nstate_dir = "{folder}/state"\n'
    )
    return folder


def command(folder: Path, *options: str) -> list[str]:
    """Return the command line of a short study."""
    words = ("tune", "demo", "--config", str(folder), "--pairs", PAIRS, "--budget-time", "12s")
    return [sys.executable, "-m", "kvsup", *words, *options]


def tuned(folder: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a study that must end with ``code``."""
    done = subprocess.run(
        command(folder, *options), capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def kept(folder: Path) -> dict[Path, int]:
    """Return each document of a study with when it was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "state" / "tune").glob("*.json")}


def test_tune_interrupted_keeps_what_it_measured_and_goes_on(folder: Path) -> None:
    """Exit code 130; what is there is not measured again, and then the whole study is there."""
    with subprocess.Popen(
        command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        eventually(lambda: kept(folder), timeout_s=50)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    before = kept(folder)

    result: dict[str, Any] = json.loads(tuned(folder, "--json").stdout)

    assert process.returncode == 130
    assert "interrupted; what was measured is kept" in said
    after = kept(folder)
    assert {path: after[path] for path in before} == before
    assert {pair["pair"] for pair in result["pairs"]} == {"f16:f16", *PAIRS.split(",")}


def test_tune_again_measures_nothing_and_says_the_same(folder: Path, tmp_path: Path) -> None:
    """Table, finding, pick and plot come from what is kept."""
    tuned(folder)
    before = kept(folder)

    done = tuned(folder, "--goal", "small", "--plot", str(tmp_path / "plot.svg"))

    assert kept(folder) == before
    assert done.stderr == f"plot: {tmp_path / 'plot.svg'}\n"
    assert "K matters" in done.stdout
    assert "the floor: f16:f16 against itself" in done.stdout
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_tune_with_write_sets_the_pair_and_keeps_comments(folder: Path) -> None:
    """A second time replaces the comment of the first."""
    path = folder / "demo.toml"
    text = path.read_text()
    picked = json.loads(tuned(folder, "--json", "--max-kld", "0.03").stdout)["pick"]

    for _ in range(2):
        tuned(folder, "--write", "--max-kld", "0.03")

    lines = path.read_text().splitlines()
    assert [line for line in lines if not line.startswith("# kvsup tune")] == [
        line.replace('"f16"', f'"{picked}"') for line in text.splitlines()
    ]
    assert sum(line.startswith("# kvsup tune ") for line in lines) == 1
    assert "b11434" in lines[-2]
    assert picked == "q8_0:q4_0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--goal", "best"], "--goal best: write accurate, balanced, small or fast"),
        (["--pairs", "q9:q9"], "--pairs: 'q9' is no KV cache type"),
        (["--plot", "plot.pdf"], ".png or .svg"),
        (["--text", "gone.txt"], "--text gone.txt: cannot be read"),
        (["--memory", "much"], "--memory: 'much' is no size"),
    ],
)
def test_tune_with_a_wrong_option_ends_with_2_before_it_measures(
    folder: Path, options: list[str], message: str
) -> None:
    """The message says what to write."""
    before = kept(folder)

    done = tuned(folder, *options, code=2)

    assert message in done.stderr
    assert kept(folder) == before


def test_tune_leaves_no_llama_server_behind(folder: Path) -> None:
    """Nor a folder of sockets."""
    run = run_dir(folder / "state")

    assert list(run.parent.glob(f"{run.name}-*")) == []
