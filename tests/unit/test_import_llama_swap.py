"""Configurations of llama-swap as kvsup's files, and what of them has no equivalent."""

import re
from functools import partial

import pytest
import tomli

from kvsup.decode import Source, decode_host, decode_models
from kvsup.errors import ConfigError
from kvsup.importing.llamaswap import read_llama_swap
from kvsup.importing.macros import Macros
from kvsup.importing.yamltext import MAX_CHARACTERS, MAX_DEPTH
from tests.importing import GOLDEN, SWAP, imported, tables

ENVIRON = {"MODELS": "/models", "BIN": "/opt/llama"}


def one(model: str, *, top: str = "") -> tuple[dict[str, dict[str, object]], list[str]]:
    """Return files and notes of a configuration with the one model ``m``."""
    lines = "\n".join(f"    {line}" for line in model.splitlines())
    text = f"{top}\nmodels:\n  m:\n{lines}\n"
    return tables(partial(read_llama_swap, text, "s.yaml", ENVIRON))


def test_ten_models_become_the_golden_files_and_notes() -> None:
    """Every value with where it comes from; every line without an equivalent told once."""
    found = read_llama_swap(SWAP, "llama-swap.yaml", ENVIRON)

    files = imported(found)

    notes = "\n".join(map(str, found.all_notes))
    told = "".join(f"#### {name}\n{text}\n" for name, text in files.items())
    assert f"{told}#### notes\n{notes}\n" == (GOLDEN / "import/llama-swap.txt").read_text("utf-8")


def test_files_of_ten_models_decode_without_a_problem() -> None:
    """Each key and value is one that kvsup takes."""
    for name, text in imported(read_llama_swap(SWAP, "s.yaml", ENVIRON)).items():
        source = Source(name, tomli.loads(text), text)
        if name == "kvsup.toml":
            assert decode_host(source, Source("", {}))[1] == []
        else:
            assert decode_models(source, {}, stem=name)[1] == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("vllm serve model", "starts vllm, and kvsup runs only llama-server"),
        ("docker run ghcr.io/x llama-server -m /m.gguf", "runs in a container"),
        ("bash -c 'llama-server -m /m.gguf'", "is a shell's script"),
        ("llama-server -hf org/repo:Q4", "-hf org/repo:Q4: kvsup loads files that are there"),
        ("llama-server -c 512", "no --model names its file"),
        ("llama-server 'oops", "cannot be parted into words"),
        ("llama-server -m ${nope}", "${nope} is not defined"),
        ("llama-server -m ${env.NOPE}", "the variable NOPE is not set here"),
        ("# only a comment", "is empty"),
    ],
)
def test_model_that_kvsup_cannot_run_is_left_out_with_the_reason(command: str, reason: str) -> None:
    """It gets no file, and the note says so."""
    files, notes = one(f'cmd: "{command}"')

    assert "m" not in files
    assert any(reason in note and note.endswith("m is left out") for note in notes)


def test_macros_of_a_model_win_and_hold_others() -> None:
    """A comment in a command is no place where a macro counts."""
    top = 'macros: {dir: /all, file: "${dir}/m.gguf", port: "--port ${PORT}"}'

    files, _ = one(
        'macros: {dir: "/own/${MODEL_ID}"}\n'
        "cmd: |\n  # ${nope}\n  llama-server ${port} -m ${file} -c 64",
        top=top,
    )

    assert files["m"]["model"] == "/own/m/m.gguf"


def test_macros_that_grow_end_with_a_note() -> None:
    """Ten macros that each hold the one before ten times are no command."""
    grown = {f"m{n}": f"${{m{n - 1}}}" * 10 for n in range(1, 11)} | {"m0": "x" * 100}

    with pytest.raises(ValueError, match="grow without end"):
        Macros(grown, {}, "m").expand("${m10}")
    with pytest.raises(ValueError, match="grow without end"):
        Macros({"a": "${a}x"}, {}, "m").expand("${a}")


def test_note_of_a_flag_has_its_line_in_the_command_or_the_macro() -> None:
    """As the owner of the file would look for it."""
    top = "macros:\n  server: >\n    llama-server\n    --verbose"

    _, notes = one("cmd: |\n  ${server}\n  -m /m.gguf -c 64\n  --frob 1", top=top)

    assert "s.yaml:4: --verbose: is kvsup's own; dropped" in notes
    assert "s.yaml:10: --frob 1: is no argument of this llama-server; dropped" in notes


def test_secrets_stay_where_they_are() -> None:
    """Neither a file nor a note has a key that stood in the configuration."""
    text = "apiKeys: [sk-one]\nmodels: {m: {cmd: llama-server -m /m.gguf --api-key sk-two -c 8}}"
    found = read_llama_swap(text, "s.yaml", {})

    written = "".join(imported(found).values()) + "".join(map(str, found.all_notes))

    assert "sk-" not in written
    assert "api_keys" in written


@pytest.mark.parametrize(
    ("ttl", "top", "expected"),
    [
        ("ttl: 60", "", "60s"),
        ("ttl: 0", "globalTTL: 60", "-1"),
        ("ttl: -1", "globalTTL: 60", "60s"),
        ("", "globalTTL: 60", "60s"),
        ("", "", "-1"),
    ],
)
def test_keep_alive_is_the_ttl_that_counts(ttl: str, top: str, expected: str) -> None:
    """0 is for ever there, and at once here."""
    files, _ = one(f"cmd: llama-server -m /m.gguf\n{ttl}", top=top)

    assert files["m"]["keep_alive"] == expected


def test_aliases_by_anchors_and_merge_keys_are_followed() -> None:
    """As llama-swap's own YAML reader does."""
    text = (
        "base: &base {ttl: 60, env: [A=1]}\n"
        "models:\n  m:\n    <<: *base\n    cmd: llama-server -m /m.gguf -c 8\n    ttl: 5\n"
    )
    files, notes = tables(partial(read_llama_swap, text, "s.yaml", {}))

    assert files["m"]["keep_alive"] == "5s"
    assert files["m"]["env"] == {"A": "1"}
    assert "s.yaml:1: base: is no key of llama-swap that kvsup knows; dropped" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "s.yaml:1: is no YAML"),
        ("a: &a [*a]", "nests too deep"),
        ("models: {m: *nobody}", "undefined alias"),
        ("", "is empty"),
        ("- 1", "models: holds no model"),
        ("models: {}", "models: holds no model"),
        ("a: 1\n---\nb: 1", "is no YAML"),
        ("? [a]\n: 1", "has a key that is no text"),
        ("a: \x00", "is no YAML"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nests too deep"),
        ("[" * 5000 + "]" * 5000, "nests too deep"),
        ("#" * (MAX_CHARACTERS + 1), "is longer than"),
        (f"a: {'9' * 5000}", "is no YAML"),
        (
            "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            + "\n".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}*a{n - 1}]" for n in range(1, 12)),
            "holds more values than a configuration can",
        ),
    ],
)
def test_hostile_or_broken_yaml_is_told_and_does_nothing(text: str, message: str) -> None:
    """Bombs of aliases, cycles and depth end at a bound."""
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read_llama_swap(text, "s.yaml", {})


def test_tags_build_no_object() -> None:
    """What would run a command in other readers is a text here, and no key."""
    text = (
        "models:\n  m:\n    cmd: !!python/object/apply:os.system [touch /tmp/kvsup-was-here]\n"
        "  n:\n    cmd: !mine llama-server -m /m.gguf -c 8\n"
    )
    files, notes = tables(partial(read_llama_swap, text, "s.yaml", {}))

    assert set(files) == {"n"}
    assert "s.yaml:3: cmd: is missing; m is left out" in notes


def test_names_are_made_valid_and_each_has_one_model() -> None:
    """A name of a file has no slash; two that become one are told."""
    cmd = "{cmd: llama-server -m /m.gguf -c 8}"
    names = ["org/Model:Q4", "a b", "a?b", "..", "KVSUP", "x:y:z"]
    text = "models:\n" + "".join(f'  "{name}": {cmd}\n' for name in names)
    found = read_llama_swap(text, "s.yaml", {})

    files = imported(found)

    assert list(files) == [
        "org-model-q4.toml",
        "a-b.toml",
        "model.toml",
        "kvsup-2.toml",
        "x-y-z.toml",
    ]
    assert [draft.name for draft in found.kept] == [
        "org/Model:Q4",
        "a-b",
        "model",
        "KVSUP",
        "x:y-z",
    ]
    assert any("'a-b' is another model's name" in str(note) for note in found.all_notes)


def test_example_of_the_document_is_what_an_import_writes() -> None:
    """docs/import.md shows a configuration, and the file that it becomes."""
    document = (GOLDEN.parents[1] / "docs/import.md").read_text("utf-8")
    (there,) = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)
    (here,) = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)

    files = imported(read_llama_swap(there, "llama-swap.yaml", {}))

    assert files == {"qwen3.toml": here}
