"""Command lines as keys: the way back of ``build_argv``, and what has no key."""

import shlex
from functools import partial

import msgspec
import pytest

from kvsup.config import ModelConfig
from kvsup.importing.arguments import of_words
from kvsup.importing.commandline import apply_settings
from kvsup.importing.found import Draft, Found
from kvsup.importing.tomlfiles import plain
from kvsup.kvtypes import parse_kv_pair
from kvsup.llama.argv import _OWNED, build_argv
from kvsup.llama.binary import Binary
from kvsup.schema import model_schema
from tests.importing import ARGUMENTS

BINARY = Binary("/bin/llama-server", "0.6.0", 11434, ("f16",), frozenset(ARGUMENTS), ())
KEYS = set(model_schema()["properties"])

CHANGED = ModelConfig(
    name="m",
    model="/m.gguf",
    mmproj="/p.gguf",
    kv_cache_type=parse_kv_pair("q8_0:q5_1"),
    num_ctx=8192,
    num_parallel=3,
    kv_unified=True,
    swa_full=True,
    flash_attention="on",
    gpu_layers=7,
    threads=3,
    batch_size=64,
    ubatch_size=32,
    prompt_cache_bytes=5 << 20,
    template="/t.jinja",
    reasoning="off",
    embedding="on",
    main_gpu=1,
    draft_model="/d.gguf",
    draft_kv_cache_type=parse_kv_pair("q8_0:q4_0"),
    use_mmap=False,
    extra_args=("--rope-scale", "2"),
)


def read(line: str) -> tuple[dict[str, object], list[str]]:
    """Return the keys that a command line becomes, and the notes."""
    found, draft = Found("f"), Draft("m", 1, "m")
    draft.settings = partial(of_words, shlex.split(line), line_of=lambda _: 1)
    apply_settings(found, draft, ARGUMENTS, folder="/there")
    tables = {"options": plain(draft.options), "env": plain(draft.env)}
    values = {**plain(draft.values), **{key: held for key, held in tables.items() if held}}
    return values, [f"{note.key}: {note.message}" for note in draft.notes]


def test_command_line_of_kvsup_becomes_the_keys_it_was_made_of() -> None:
    """Each key that is an argument goes there and back."""
    argv = build_argv(BINARY, CHANGED, socket="/s.sock", pooling=1)[1:]

    values, notes = read(shlex.join(argv))

    assert notes == ["--log-verbosity 4: is kvsup's own; dropped"]
    assert values.pop("prompt_cache") == "5MiB"
    assert values.pop("extra_args") == ["--log-colors", "off", "--fit", "off", "--rope-scale", "2"]
    wanted = {f.encode_name: getattr(CHANGED, f.name) for f in msgspec.structs.fields(ModelConfig)}
    assert values == {
        key: str(wanted[key]) if key.endswith("_type") else wanted[key] for key in values
    }
    assert set(values) == {
        "model", "mmproj", "kv_cache_type", "num_ctx", "num_parallel", "kv_unified", "swa_full",
        "flash_attention", "gpu_layers", "threads", "batch_size", "ubatch_size", "template",
        "reasoning", "embedding", "main_gpu", "draft_model", "draft_kv_cache_type", "use_mmap",
    }  # fmt: skip


@pytest.mark.parametrize("flag", sorted(_OWNED))
def test_flag_that_kvsup_owns_never_becomes_an_extra_argument(flag: str) -> None:
    """``kvsup check`` would refuse it."""
    values, _ = read(f"-m /m.gguf {flag} 1")

    assert flag not in values.get("extra_args", ())  # type: ignore[operator]
    assert set(values) <= KEYS


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-c 32768", {"num_ctx": 32768}),
        ("-c 32768 -np 4", {"num_ctx": 8192, "num_parallel": 4}),
        ("-c 32768 -np 4 -kvu", {"num_ctx": 8192, "num_parallel": 4, "kv_unified": True}),
        ("-c 32768 -np 4 -kvu -no-kvu", {"num_ctx": 8192, "num_parallel": 4}),
        ("-c 8192 -np -1", {"num_ctx": 8192}),
        ("-c 0 -np 2", {"num_ctx": "auto", "num_parallel": 2}),
        ("-c 8 -c 16", {"num_ctx": 16}),
        ("--ctx_size=64", {"num_ctx": 64}),
        ("-c 8 -ctk q8_0", {"num_ctx": 8, "kv_cache_type": "q8_0:f16"}),
        ("-c 8 -ctv Q4_0", {"num_ctx": 8, "kv_cache_type": "f16:q4_0"}),
        ("-c 8 -ctkd q8_0", {"num_ctx": 8}),
        ("-c 8 -fa", {"num_ctx": 8, "flash_attention": "on"}),
        ("-c 8 -fa 0", {"num_ctx": 8, "flash_attention": "off"}),
        ("-c 8 -fa auto", {"num_ctx": 8}),
        ("-c 8 -ngl auto", {"num_ctx": 8}),
        ("-c 8 -ngl -1", {"num_ctx": 8}),
        ("-c 8 -ngl 0", {"num_ctx": 8, "gpu_layers": 0}),
        ("-c 8 -sm none", {"num_ctx": 8, "main_gpu": 0}),
        ("-c 8 -sm row", {"num_ctx": 8, "extra_args": ["-sm", "row"]}),
        ("-c 8 --mmap", {"num_ctx": 8, "use_mmap": True}),
        ("-c 8 --no-mmap", {"num_ctx": 8, "use_mmap": False}),
        ("-c 8 --mlock --no-mmap", {"num_ctx": 8, "env": {"LLAMA_ARG_LOAD_MODE": "mlock"}}),
        ("-c 8 -dio", {"num_ctx": 8, "env": {"LLAMA_ARG_LOAD_MODE": "dio"}}),
        ("-c 8 -lm auto", {"num_ctx": 8}),
        ("-c 8 --cache-ram 0", {"num_ctx": 8, "prompt_cache": 0}),
        ("-c 8 --cache-ram -1", {"num_ctx": 8, "prompt_cache": "1TiB"}),
        ("-c 8 --sleep-idle-seconds 90", {"num_ctx": 8, "keep_alive": "90s"}),
        ("-c 8 --temp 0.5 -s 3", {"num_ctx": 8, "options": {"temperature": 0.5, "seed": 3}}),
        ("-c 8 -n -1 --keep 4", {"num_ctx": 8, "options": {"num_predict": -1, "num_keep": 4}}),
        ("-c 8 --jinja --metrics --no-webui --host x --port 1 --offline", {"num_ctx": 8}),
        ("-c 8 --no-jinja", {"num_ctx": 8, "extra_args": ["--no-jinja"]}),
        ("-c 8 --mirostat 1", {"num_ctx": 8, "extra_args": ["--mirostat", "1"]}),
        (
            "-c 8 --lora a,/b --lora ~/c",
            {"num_ctx": 8, "adapters": ["/there/a", "/b", "~/c"]},
        ),
        (
            "-c 8 --lora-scaled a:0.5",
            {"num_ctx": 8, "extra_args": ["--lora-scaled", "a:0.5"]},
        ),
        (
            "-c 8 --control-vector-layer-range 1 2",
            {"num_ctx": 8, "extra_args": ["--control-vector-layer-range", "1", "2"]},
        ),
        (
            "-c 8 -ot a=CPU -ot b=CPU",
            {"num_ctx": 8, "extra_args": ["-ot", "a=CPU", "-ot", "b=CPU"]},
        ),
        ("-c 8 -md d.gguf", {"num_ctx": 8, "draft_model": "/there/d.gguf"}),
        ("-c 8 --mmproj ~/p", {"num_ctx": 8, "mmproj": "~/p"}),
    ],
)
def test_flags_become_keys(line: str, expected: dict[str, object]) -> None:
    """The last of a flag counts, as at llama-server."""
    values, notes = read(f"-m /m.gguf {line}")

    assert notes == []
    assert values == {"model": "/m.gguf", **expected}


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("--frob 1 2", "--frob 1 2: is no argument of this llama-server; dropped"),
        ("stray", "stray: is no argument; dropped"),
        ("--jinja stray", "stray: is no argument; dropped"),
        ("--draft-max 4", "--draft-max 4: is gone from llama-server; it is --spec-draft-n-max now"),
        ("--api-key sk-x", "--api-key: name the keys in a file, see api_keys of kvsup.toml"),
        (
            "--slot-save-path /x",
            "--slot-save-path /x: kvsup keeps conversations itself, see warm_swap",
        ),
        ("--no-slots", "--no-slots: is kvsup's own; dropped"),
        ("-t many", "-t many: 'many' is no value for threads; dropped"),
        ("--temp warm", "--temp warm: is no number; dropped"),
        ("-ctk q8", ""),
        ("-ctk 8bit", "-ctk 8bit: '8bit' is no type name; write e.g. \"q8_0:q5_1\"; dropped"),
        (
            "-mg 1",
            "-mg 1: counts only with --split-mode none or row; main_gpu would use that GPU alone",
        ),
        ("--rea maybe", "--rea maybe: is no argument of this llama-server; dropped"),
        ("--reasoning maybe", "--reasoning maybe: 'maybe' is no value for reasoning; dropped"),
    ],
)
def test_flag_without_equivalent_is_told(line: str, note: str) -> None:
    """And not a word of it is lost silently."""
    _, notes = read(f"-m /m.gguf -c 8 {line}")

    assert notes == ([note] if note else [])
