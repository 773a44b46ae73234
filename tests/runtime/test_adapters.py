"""LoRAs that a configuration names: what is refused of them, and what depends on them."""

import os
import re
from pathlib import Path

import pytest

from kvsup.runtime.watching import look
from tests.adapters import make_lora
from tests.runtime.folders import ConfigFolder
from tests.tiny import TinyModels

WRITE = "write the path of a LoRA as a GGUF file"


@pytest.fixture
def folder(
    tmp_path: Path,
    llama_server: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> ConfigFolder:
    """Return an empty configuration folder; what a binary told is kept from test to test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return ConfigFolder(llama_server=llama_server, state=tmp_path_factory.getbasetemp() / "state")


def _lora(path: Path, tiny: TinyModels, **settings: str) -> Path:
    return make_lora(path, tiny.plain(), after="", says=" told", **settings)


def test_adapters_go_to_llama_server_by_their_paths(folder: ConfigFolder, tiny: TinyModels) -> None:
    """In one argument, from the folder of the file or from the home; a variant has its own."""
    one, two = _lora(folder.path / "one.gguf", tiny), _lora(Path("home/two.gguf"), tiny)

    plain, bare = folder.read(
        a=f"""\
        model = "{tiny.plain()}"
        adapters = ["one.gguf", "~/two.gguf"]
        [variants.bare]
        adapters = []
        """
    ).plans

    given = plain.argv[plain.argv.index("--lora") + 1]
    assert given == f"{one.absolute()},{two.absolute()}"
    assert "--lora" not in bare.argv
    added = one.stat().st_size + two.stat().st_size
    assert plain.file.weights_bytes(plain.model) - bare.file.weights_bytes(bare.model) == added
    assert plain.estimate.total_bytes - bare.estimate.total_bytes == added


@pytest.mark.parametrize("changed", ['["two.gguf", "one.gguf"]', '["one.gguf"]', "[]"])
def test_other_adapters_are_another_process(
    folder: ConfigFolder, tiny: TinyModels, changed: str
) -> None:
    """Another order, too."""
    for name in ("one", "two"):
        _lora(folder.path / f"{name}.gguf", tiny)
    text = f'model = "{tiny.plain()}"\nadapters = {{}}\n'

    [before] = folder.read(a=text.format('["one.gguf", "two.gguf"]')).plans
    [after] = folder.read(a=text.format(changed)).plans

    assert after.identity != before.identity
    assert after.digest != before.digest


def test_adapter_that_is_written_anew_is_another_process(
    folder: ConfigFolder, tiny: TinyModels
) -> None:
    """And it is noticed."""
    lora = _lora(folder.path / "one.gguf", tiny)
    text = f'model = "{tiny.plain()}"\nadapters = ["one.gguf"]\n'
    before = folder.read(a=text)
    seen = look(before)

    os.utime(lora, ns=(1, 1))
    after = folder.read(a=text)

    assert look(before) != seen
    assert after.plans[0].identity != before.plans[0].identity


def test_file_that_is_no_adapter_of_the_model_is_refused(
    folder: ConfigFolder, tiny: TinyModels
) -> None:
    """At the key, with what to do, each that is wrong."""
    _lora(folder.path / "good.gguf", tiny)
    _lora(folder.path / "a,b.gguf", tiny)
    _lora(folder.path / "other.gguf", tiny, architecture="bert")
    half = _lora(folder.path / "half.gguf", tiny)
    half.write_bytes(half.read_bytes()[:-600])
    (folder.path / "text.gguf").write_text("LoRA")
    named = ("good", "gone", "a,b", "other", "text")
    adapters = [*(f"{name}.gguf" for name in named), str(tiny.plain()), ".", "half.gguf"]

    problems = folder.problems(a=f'model = "{tiny.plain()}"\nadapters = {adapters}\n')

    at = "configs/a.toml:2: adapters:"
    here = folder.path.absolute()
    for_bert = "is made for bert models, and this one is llama; name one that was made for it"
    *others, cut = [re.sub(r"\d+ bytes|behind \d+", "N", problem) for problem in problems]
    assert others == [
        f"{at} no such file: {here}/gone.gguf; {WRITE}",
        f"{at} {here}/a,b.gguf has a comma in its name, which parts those of several; rename it",
        f"{at} {here}/other.gguf {for_bert}",
        f"{at} {here}/text.gguf: this is no GGUF file: it does not start with the letters GGUF",
        f"{at} {tiny.plain()} is no LoRA; one is made by convert_lora_to_gguf.py of llama.cpp",
        f"{at} no such file: {here}; {WRITE}",
    ]
    assert cut == (
        f"{at} {here}/half.gguf: half.gguf has N, its tensors alone end N: it is truncated;"
        " fetch it again"
    )


def test_adapter_among_extra_args_is_refused(folder: ConfigFolder, tiny: TinyModels) -> None:
    """Its bytes would not be counted."""
    problems = folder.problems(
        a=f'model = "{tiny.plain()}"\nextra_args = ["--lora", "x.gguf"]\n',
    )

    assert problems == ["configs/a.toml:2: extra_args: --lora is kvsup's own; use adapters"]
