"""``kvsup tune`` on the demo model: what it finds, what it keeps, and what it writes."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from kvsup.cli.arguments import plan_or_file
from kvsup.runtime.paths import run_dir
from kvsup.tuning.report import StudyResult
from kvsup.tuning.scope import Wishes
from kvsup.tuning.stages import Event, Progress
from kvsup.tuning.study import study
from tests.headsizes import make_latent
from tests.running import eventually
from tests.tiny import TOOLS, TinyModels

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


def command(folder: Path, *options: str, model: str = "demo", pairs: str = PAIRS) -> list[str]:
    """Return the command line of a short study."""
    words = ("tune", model, "--config", str(folder), "--pairs", pairs, "--budget-time", "12s")
    return [sys.executable, "-m", "kvsup", *words, *options]


def ended(words: list[str], *, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command that must end with ``code``."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == code, done.stderr
    return done


def tuned(folder: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a study that must end with ``code``."""
    return ended(command(folder, *options), code=code)


def small_folder(folder: Path, llama_server: Path, **models: Path) -> Path:
    """Write a configuration of tiny models with a state of its own."""
    for name, path in models.items():
        text = f'model = "{path}"\nthreads = 1\nnum_ctx = 512\nkv_cache_type = "auto"\n'
        (folder / f"{name}.toml").write_text(text)
    (folder / "kvsup.toml").write_text(
        f'llama_server = "{llama_server}"\nstate_dir = "{folder}/state"\n'
    )
    return folder


def finish(folder: Path) -> None:
    """Go on with the study until nothing is left to measure: on a busy machine time is short."""
    eventually(lambda: json.loads(tuned(folder, "--json").stdout)["is_complete"], timeout_s=50)


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
    finish(folder)
    before = kept(folder)

    done = tuned(folder, "--goal", "small", "--plot", str(tmp_path / "plot.svg"))

    assert kept(folder) == before
    assert done.stderr == f"plot: {tmp_path / 'plot.svg'}\n"
    assert "K matters" in done.stdout
    assert "the floor: f16:f16 against itself" in done.stdout
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_tune_with_write_sets_the_pair_and_keeps_comments(folder: Path) -> None:
    """A second time replaces the comment of the first."""
    finish(folder)
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


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory, llama_server: Path) -> Path:
    """Return a configuration with a model for which only one type for K and V will do."""
    folder = tmp_path_factory.mktemp("latent")
    return small_folder(folder, llama_server, latent=make_latent(folder / "latent.gguf"))


@pytest.fixture(scope="module")
def whole(latent: Path) -> tuple[StudyResult, list[Event]]:
    """Return a complete study of all its pairs, and what was told of it."""
    seen: list[Event] = []
    plan, store, _ = plan_or_file("latent", latent)
    work = partial(study, plan, Wishes(budget_s=40), remembered=store, emit=seen.append)
    return anyio.run(work), seen


def test_tune_complete_is_what_auto_takes_from_then_on(
    latent: Path, whole: tuple[StudyResult, list[Event]]
) -> None:
    """For the goal of the model, with the day."""
    result, _ = whole
    words = [sys.executable, "-m", "kvsup", "check", str(latent), "--json"]

    said = ended(words).stdout

    assert result.is_complete
    assert {m.pair for m in result.pairs if m.quality} == {m.pair for m in result.pairs}
    assert f"KV {result.picks['balanced']}, found by kvsup tune" in said


def test_tune_progress_never_goes_back(whole: tuple[StudyResult, list[Event]]) -> None:
    """From the reference to the cross-check, and it ends with all done."""
    _, seen = whole

    parts = [e.done_s / e.total_s for e in seen if isinstance(e, Progress) and e.total_s > 0]

    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1)


def test_tune_with_text_and_tools_measures_on_them(
    tmp_path: Path, llama_server: Path, tiny: TinyModels
) -> None:
    """The text stands in for the built-in ones; calls are compared, or said to be missing."""
    small_folder(tmp_path, llama_server, calls=tiny.one_call(), talks=tiny.plain())
    text, tools = tmp_path / "text.txt", tmp_path / "tools.json"
    text.write_text("The keeper counted seven sails before dark.\n" * 20)
    asked = {"messages": [{"role": "user", "content": "Weather in Paris?"}], "tools": TOOLS}
    tools.write_text(json.dumps([asked]))
    options = ("--text", str(text), "--tools", str(tools), "--json")

    calls, talks = (
        json.loads(ended(command(tmp_path, *options, model=name, pairs="q8_0:q8_0")).stdout)
        for name in ("calls", "talks")
    )

    for result in (calls, talks):
        assert result["environment"]["text_kinds"] == ["text"]
        assert [m["trajectory"]["same_tool_calls"] for m in result["pairs"]] == [[True], [True]]
    silent = "f16:f16 calls no tool in 1 of 1 cases"
    assert (silent in calls["notes"], silent in talks["notes"]) == (False, True)


def test_tune_of_pairs_that_cannot_run_measures_the_others_and_names_the_mend(
    latent: Path,
) -> None:
    """None of the others: nothing is measured."""
    broken = "q8_0:q4_0"

    some = ended(command(latent, "--json", model="latent", pairs=f"{broken},q8_0:q8_0"))
    none = ended(command(latent, model="latent", pairs=broken), code=2)

    result = json.loads(some.stdout)
    assert {m["pair"] for m in result["pairs"]} == {"f16:f16", "q8_0:q8_0"}
    assert list(result["refused"]) == [broken]
    assert result["notes"][0].startswith("q8_0:q4_0 is left out: deepseek2 needs one type")
    assert "use q8_0:q8_0" in result["notes"][0]
    assert "--pairs: q8_0:q4_0: " in none.stderr
    assert "use q8_0:q8_0" in none.stderr


def test_tune_for_more_context_than_trained_for_says_what_it_counts_with(folder: Path) -> None:
    """Bytes and pick would otherwise be taken for those of the context that was asked for."""
    finish(folder)

    result = json.loads(tuned(folder, "--json", "--context", "32768").stdout)

    assert result["environment"]["num_ctx"] == 8192
    assert "num_ctx 32768 is more than it was trained for; 8192 is used" in result["notes"]


def test_tune_for_memory_that_no_pair_fits_names_a_context_that_does(folder: Path) -> None:
    """Before anything is measured."""
    before = kept(folder)

    done = tuned(folder, "--context", "8192", "--memory", "200MiB", "--fresh", code=2)

    assert "--memory: no pair fits in 200 MiB" in done.stderr
    assert "use --context " in done.stderr
    assert kept(folder) == before


def test_tune_whose_cross_check_fails_keeps_what_it_measured(
    tmp_path: Path, llama_server: Path, latent: Path
) -> None:
    """The second opinion is missing, which is said, and nothing else."""
    beside = tmp_path / "bin"
    beside.mkdir()
    (beside / "llama-server").symlink_to(llama_server)
    (beside / "llama-perplexity").write_text("#!/bin/sh\necho no room >&2\nexit 3\n")
    (beside / "llama-perplexity").chmod(0o755)
    small_folder(tmp_path, beside / "llama-server", latent=latent / "latent.gguf")
    pairs = "q8_0,q5_1,q5_0,q4_0"

    done = ended(command(tmp_path, "--json", model="latent", pairs=pairs))

    result = json.loads(done.stdout)
    assert len([m for m in result["pairs"] if m["quality"]]) == 5
    assert result["rank_agreement"] is None
    assert "not compared with llama-perplexity's" in result["notes"][-1]
    assert "it ended with 3; its last lines: no room" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_tune_that_is_ended_leaves_no_folder_behind(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As with Ctrl-C, with the exit code of the signal; ``--fresh`` would begin anew."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    run = run_dir(folder / "state")
    with subprocess.Popen(
        command(folder, "--fresh"), stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        eventually(lambda: list(run.parent.glob(f"{run.name}-*/*.sock")), timeout_s=50)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)

    assert process.returncode == 128 + number
    assert "the same command with --resume instead of --fresh goes on" in said
    assert list(tmp_path.iterdir()) == []
    assert list(run.parent.glob(f"{run.name}-*")) == []
