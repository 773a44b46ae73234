"""Presets of llama.cpp's router as kvsup's files."""

from functools import partial

import pytest

from kvsup.errors import ConfigError
from kvsup.importing.routerini import read_router_ini
from tests.importing import tables

TEXT = """\
; presets
version = 1

[*]
ctx-size = 8192   ; for all
fa = on
n-gpu-layers = all
temp = 0.6
LLAMA_ARG_CACHE_TYPE_K = q8_0
jinja = true

[small]
model = small.gguf
alias = a, b
ctx-size = 4096
load-on-startup = true
stop-timeout = 20
parallel = 2
cont-batching = false
no-kv-unified = false
embedding = 0
LLAMA_ARG_UBATCH = 256
rope-scaling = yarn#comment
sleep-idle-seconds = 60

[org/repo:Q4]
hf-repo = org/repo:Q4

[third]
m = /third.gguf
LLAMA_ARG_CTX_SIZE = 512
mlock = on
frob = 2
warmup = perhaps
dedup-cache-models = true
"""


def test_sections_become_files_over_what_lies_under_all() -> None:
    """By long flags, short ones and variables; switches by words for on and off."""
    files, notes = tables(partial(read_router_ini, TEXT, "p.ini"))

    under = {"flash_attention": "on", "gpu_layers": 999, "options": {"temperature": 0.6}}
    assert files == {
        "small": {
            "model": "/there/small.gguf",
            "aliases": ["a", "b"],
            "kv_cache_type": "q8_0:f16",
            "num_ctx": 2048,
            "num_parallel": 2,
            "kv_unified": True,
            "keep_alive": "60s",
            "ubatch_size": 256,
            "extra_args": ["--no-cont-batching", "--rope-scaling", "yarn"],
            "stop_timeout": "20s",
            "preload": True,
            **under,
        },
        "third": {
            "model": "/third.gguf",
            "kv_cache_type": "q8_0:f16",
            "num_ctx": 512,
            "keep_alive": "-1",
            "env": {"LLAMA_ARG_LOAD_MODE": "mlock"},
            **under,
        },
    }
    assert [note for note in notes if note[6].isdigit()] == [
        (
            "p.ini:27: hf-repo = org/repo:Q4: kvsup loads files that are there; kvsup pull"
            ' hf.co/org/repo:Q4, and write model = "hf:org/repo:Q4"; org/repo:Q4 is left out'
        ),
        "p.ini:33: frob = 2: is no argument of this llama-server; dropped",
        "p.ini:34: warmup: 'perhaps' is neither on nor off; dropped",
        "p.ini:35: dedup-cache-models: no equivalent; dropped",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\n", "p.ini: holds no section"),
        ("[*]\na = 1\n", "p.ini: holds no section"),
        ("[m]\nwhat is this\n= 1\n", "p.ini:2: is neither"),
    ],
)
def test_what_is_no_preset_file_is_told(text: str, message: str) -> None:
    """With the line, where there is one."""
    with pytest.raises(ConfigError, match=message):
        read_router_ini(text, "p.ini")


def test_key_before_any_section_is_told_and_a_section_that_comes_again_counts() -> None:
    """As llama.cpp reads it."""
    text = "ctx-size = 1\n[m]\nmodel = /a\nthreads = 3\n[m]\r\nmodel = /b\nc = 8\n"

    files, notes = tables(partial(read_router_ini, text, "p.ini"))

    assert files["m"] == {"model": "/b", "num_ctx": 8, "keep_alive": "-1"}
    assert "p.ini:1: ctx-size: stands before any section; dropped" in notes


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mmap = on", {"use_mmap": True}),
        ("mmap = off", {"use_mmap": False}),
        ("no-mmap = 1", {"use_mmap": False}),
        ("no-mmap = 0", {"use_mmap": True}),
        ("mlock = false", {}),
        ("jinja = 0", {"extra_args": ["--no-jinja"]}),
        ("jinja = 1", {}),
        ("metrics = 0", {}),
        ("swa-full = off", {}),
        ("no-warmup = true", {"extra_args": ["--no-warmup"]}),
        ("no-warmup = false", {"extra_args": ["--warmup"]}),
        ("fit = off", {"extra_args": ["--fit", "off"]}),
        ("keep = 1", {"options": {"num_keep": 1}}),
        ("LLAMA_ARG_FLASH_ATTN = 0", {"flash_attention": "off"}),
    ],
)
def test_words_for_on_and_off_are_those_of_the_switch(line: str, expected: object) -> None:
    """Only a switch takes them; for a flag with a value they are that value."""
    text = f"[m]\nmodel = /m\nc = 8\n{line}\n"

    files, _ = tables(partial(read_router_ini, text, "p.ini"))

    del files["m"]["model"], files["m"]["num_ctx"], files["m"]["keep_alive"]
    assert files["m"] == expected
