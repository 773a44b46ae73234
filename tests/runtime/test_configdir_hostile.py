"""Configurations that once ended in a traceback: each is a problem with its place and mend."""

from pathlib import Path

import pytest

from kvsup.errors import ConfigError
from kvsup.runtime.configdir import read_configuration
from tests.runtime.folders import ConfigFolder


@pytest.fixture
def folder(tmp_path: Path, llama_server: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigFolder:
    """Return an empty configuration folder below the current one."""
    monkeypatch.chdir(tmp_path)
    return ConfigFolder(llama_server=llama_server, state=tmp_path / "state")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('model = "gone.gguf"\nvariants = 5\nmmproj = "nosuch"', "variants: is no table"),
        ('model = "~nosuchuser/x.gguf"', "model: no such file"),
        (f'model = "{"x" * 300}.gguf"', "model: no such file"),
        ('model = "a\\u0000b"', "model: no such file"),
        ('model = "gone.gguf"\nllama_server = "./a\\u0000b"', "llama_server: "),
        (f'model = "gone.gguf"\nprompt_cache = "{"9" * 400}"', "prompt_cache: "),
        (f'model = "gone.gguf"\nprompt_cache = {"9" * 400}', "prompt_cache: "),
        (f"options = {'[' * 1000}{']' * 1000}", "it nests too deep"),
    ],
)
def test_problem_of_an_impossible_value_is_told_with_its_key(
    folder: ConfigFolder, text: str, says: str
) -> None:
    """No value of a key ends the reading: a bad edit must not end a kvsup that runs."""
    problems = folder.problems(m=text)

    assert any(says in problem for problem in problems), problems


@pytest.mark.parametrize("flag", ["--gpt-oss-20b-default", "--fim-qwen-1.5b-default", "-dr"])
def test_problem_of_a_flag_that_stands_for_others_is_told(
    folder: ConfigFolder, smollm2: Path, flag: str
) -> None:
    """Presets set KV types and contexts behind kvsup's back."""
    problems = folder.problems(m=f'model = "{smollm2}"\nextra_args = ["{flag}"]')

    assert problems == [f"configs/m.toml:2: extra_args: {flag} is kvsup's own; use model"]


@pytest.mark.parametrize("state", ["/dev/null", "/dev/null/x", "a\\u0000b"])
def test_read_with_an_impossible_state_dir_names_it(
    folder: ConfigFolder, smollm2: Path, state: str
) -> None:
    """The folder that kvsup remembers in must be one."""
    folder.write("m", f'model = "{smollm2}"')
    (folder.path / "kvsup.toml").write_text(f'state_dir = "{state}"\n')

    with pytest.raises(ConfigError, match="state_dir"):
        read_configuration(folder.path, {})
