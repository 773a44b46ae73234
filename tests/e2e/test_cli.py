"""What the commands of ``kvsup`` say of a configuration, and how they end."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvsup import __version__
from tests.e2e.commands import ROOT, json_of, out, run
from tests.running import RunningKvsup

SMOLLM2 = """
model = "{path}"
aliases = ["small"]
kv_cache_type = "q8_0:q5_1"
num_ctx = 1024
threads = 1
env = {{ KVSUP_TEST_MARK = "ours" }}

[variants.agent]
kv_cache_type = "f16"
"""

BROKEN = """
model = "{path}"
threads = 1
extra_args = ["--poll", "much"]
"""

COMMANDS = (
    "run", "check", "argv", "list", "ps", "show", "stop", "reset", "reload", "logs", "doctor",
    "setup", "schema", "version", "import",
)  # fmt: skip
WITH_JSON = ("check", "list", "ps", "doctor", "version")


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file."""
    models = {"smollm2": SMOLLM2.format(path=smollm2), "broken": BROKEN.format(path=smollm2)}
    folder = tmp_path_factory.mktemp("commands") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert running.children() == []


def test_help_lists_every_command(kvsup: RunningKvsup) -> None:
    """One line each; no command is hidden."""
    text = out(kvsup, "--help")

    for command in COMMANDS:
        assert f"\n  {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_shown(kvsup: RunningKvsup, command: str) -> None:
    """Also that of the fetch script, which ``setup`` runs."""
    assert "usage" in out(kvsup, command, "--help").lower()


@pytest.mark.parametrize("command", WITH_JSON)
def test_json_of_a_command_is_one_document(kvsup: RunningKvsup, command: str) -> None:
    """A script reads stdout whole."""
    assert json_of(kvsup, command)


def test_version_is_that_of_the_package(kvsup: RunningKvsup) -> None:
    """The same in both forms."""
    assert out(kvsup, "version") == f"kvsup {__version__}\n"
    assert json_of(kvsup, "version") == {"version": __version__}


def test_check_of_a_good_folder_has_each_model_with_its_rules(kvsup: RunningKvsup) -> None:
    """What was read, in the order of the files; below each what was looked at, and why."""
    printed = out(kvsup, "check").splitlines()

    assert len([line for line in printed if "the blocks of K divide the heads" in line]) == 1
    assert [line for line in printed if line.endswith(": fine")] == [
        "broken: f16:f16, 4096 tokens: fine",
        "smollm2: q8_0:q5_1, 1024 tokens: fine",
        "smollm2:agent: f16:f16, 1024 tokens: fine",
    ]
    told = json_of(kvsup, "check")
    assert told["problems"] == []
    assert [model["name"] for model in told["models"]] == ["broken", "smollm2", "smollm2:agent"]
    assert all(rule["verdict"] == "ok" for model in told["models"] for rule in model["rules"])


def test_check_of_a_bad_folder_ends_with_2_and_every_problem(tmp_path: Path) -> None:
    """On stderr for people, as a list for scripts; nothing is started."""
    (tmp_path / "kvsup.toml").write_text('state_dir = "state"\nprot = 1\n')
    (tmp_path / "m.toml").write_text('model = "gone.gguf"\nnum_ctx = "8k"\n')
    gone = f"no such file: {tmp_path}/gone.gguf; write the path of a GGUF file"
    lines = [
        "kvsup.toml:2: prot: unknown key; did you mean port?",
        f"m.toml:1: model: {gone}",
        'm.toml:2: num_ctx: expected int, got str; write a number or "auto"',
    ]

    for command in (["check", "."], ["run", "."], ["list", "-c", "."], ["argv", "m", "-c", "."]):
        done = run(*command, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines() == lines
    done = run("check", ".", "--json", cwd=tmp_path)

    assert done.returncode == 2
    assert json.loads(done.stdout)["problems"] == [
        {
            "source": "kvsup.toml",
            "line": 2,
            "key": "prot",
            "message": "unknown key; did you mean port?",
        },
        {"source": "m.toml", "line": 1, "key": "model", "message": gone},
        {
            "source": "m.toml",
            "line": 2,
            "key": "num_ctx",
            "message": 'expected int, got str; write a number or "auto"',
        },
    ]


def test_folder_is_the_argument_then_the_variable_then_here_then_the_users(tmp_path: Path) -> None:
    """Each place is looked at only where the one before it is not given."""
    for place in ("argument", "variable", "here/configs", "user/kvsup"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "m.toml").write_text(f'model = "m.gguf"\nwrong = "{place}"\n')
        (folder / "kvsup.toml").write_text(f'state_dir = "{tmp_path}/state"\n')
    variable = {"KVSUP_CONFIG_DIR": str(tmp_path / "variable")}
    user = {"XDG_CONFIG_HOME": str(tmp_path / "user")}

    tried = (
        run("check", "--json", "../argument", cwd=tmp_path / "here", **variable, **user),
        run("check", "--json", cwd=tmp_path / "here", **variable, **user),
        run("check", "--json", cwd=tmp_path / "here", **user),
        run("check", "--json", cwd=tmp_path, **user),
    )

    found = [json.loads(done.stdout)["problems"][0]["source"] for done in tried]
    assert [Path(path).parent.name for path in found] == [
        "argument",
        "variable",
        "configs",
        "kvsup",
    ]


def test_check_of_a_folder_with_one_problem_prints_just_that_line(tmp_path: Path) -> None:
    """Editors and terminals jump to ``file:line``, be it one or many."""
    (tmp_path / "kvsup.toml").write_text('state_dir = "state"\nprot = 1\n')

    done = run("check", ".", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr == "kvsup.toml:2: prot: unknown key; did you mean port?\n"


@pytest.mark.parametrize("command", ["check", "run"])
def test_missing_folder_ends_with_2(tmp_path: Path, command: str) -> None:
    """The message says what to make."""
    done = run(command, "gone", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith("kvsup: gone: no such folder; make it and write one TOML file")


@pytest.mark.parametrize("arguments", [["ps", "--wrong"], ["nonsense"], ["schema", "x"], ["argv"]])
def test_wrong_command_line_ends_with_2(tmp_path: Path, arguments: list[str]) -> None:
    """As a wrong configuration does."""
    done = run(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["ps"], ["stop", "m"], ["reset", "m"], ["reload"], ["logs", "m"]]
)
def test_command_without_a_running_kvsup_ends_with_3(tmp_path: Path, arguments: list[str]) -> None:
    """The message has the address that was tried, from the variable that names it."""
    (tmp_path / "kvsup.toml").write_text('state_dir = "state"\n')

    done = run(*arguments, cwd=tmp_path, KVSUP_CONFIG_DIR=str(tmp_path), OLLAMA_HOST="127.0.0.1:9")

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("kvsup: no kvsup answers on http://127.0.0.1:9: ")
    assert "start it: kvsup run" in done.stderr


def test_command_with_a_host_file_that_is_no_toml_ends_with_2(tmp_path: Path) -> None:
    """A slip in kvsup.toml is told, not thrown."""
    (tmp_path / "kvsup.toml").write_text("port = = 1\n")

    done = run("ps", cwd=tmp_path, KVSUP_CONFIG_DIR=".")

    assert done.returncode == 2
    assert done.stderr.startswith("kvsup.toml:1: is no TOML: ")


def test_list_tells_the_bytes_of_each_half(kvsup: RunningKvsup) -> None:
    """Estimated from the weights' header, before anything is loaded."""
    models = {model["name"]: model for model in json_of(kvsup, "list")}
    elements = 30 * 1024 * 192

    assert list(models) == ["broken", "smollm2", "smollm2:agent"]
    assert models["smollm2"]["kv_cache_type"] == "q8_0:q5_1"
    assert models["smollm2"]["k_bytes"] == elements * 34 // 32
    assert models["smollm2"]["v_bytes"] == elements * 24 // 32
    assert models["smollm2:agent"]["k_bytes"] == models["smollm2:agent"]["v_bytes"] == elements * 2
    assert models["smollm2"]["is_exact"]
    header, *rows = out(kvsup, "list").splitlines()
    assert header.split()[:2] == ["MODEL", "KV-CACHE"]
    assert [row.split()[0] for row in rows] == list(models)


def test_show_tells_everything_of_a_model(kvsup: RunningKvsup) -> None:
    """By any of its names; the configuration in full for scripts."""
    shown = json_of(kvsup, "show", "small")

    assert shown["name"] == "smollm2"
    assert shown["config"]["kv_cache_type"] == "q8_0:q5_1"
    assert shown["config"]["num_ctx"] == 1024
    text = out(kvsup, "show", "smollm2")
    assert "K q8_0 5.98 MiB, V q5_1 4.22 MiB" in text
    assert "1 x 1024" in text
    assert "kept, and gone on with from where a prompt parts from them" in text
    assert shown["conversations"] == {"are_kept": True, "why_not": "", "reuse": "prefix"}


def test_doctor_of_a_wrong_configuration_ends_with_1_and_says_bad(tmp_path: Path) -> None:
    """Everything else is looked at all the same."""
    (tmp_path / "m.toml").write_text('model = "gone.gguf"\nfrobnicate = 1\n')
    (tmp_path / "kvsup.toml").write_text('state_dir = "state"\n')

    done = run("doctor", ".", cwd=tmp_path)

    assert done.returncode == 1
    assert "BAD configuration: m.toml:2: frobnicate: unknown key" in done.stdout
    assert "address" in done.stdout


@pytest.mark.parametrize("kind", ["model", "host"])
def test_schema_is_the_checked_in_one(kvsup: RunningKvsup, kind: str) -> None:
    """What editors read is what the command prints."""
    path = ROOT / "schemas" / f"{kind}.schema.json"

    assert out(kvsup, "schema", kind) == path.read_text("utf-8")
