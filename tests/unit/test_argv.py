"""The command line and the environment of a llama-server."""

import msgspec
import pytest

from kvsup.config import ModelConfig
from kvsup.kvtypes import parse_kv_pair
from kvsup.llama.argv import (
    NOT_ARGUMENTS,
    POOLING_RANK,
    build_argv,
    build_environment,
    owned_arguments,
    owned_variables,
)
from kvsup.llama.binary import Binary, Device

KNOWN = frozenset({"--no-ui", "--offline", "--no-cache-idle-slots", "--no-log-timestamps", "--fit"})
BINARY = Binary("/bin/llama-server", "0.6.0", 11434, ("f16",), KNOWN, ())
GPU = msgspec.structs.replace(BINARY, devices=(Device("CUDA0", "x", 1, 1),))
OLD = msgspec.structs.replace(BINARY, flags=frozenset())
MODEL = ModelConfig(name="m", model="/m.gguf", draft_model="/d.gguf")

CHANGES: dict[str, object] = {
    "name": "other",
    "model": "/other.gguf",
    "mmproj": "/mmproj.gguf",
    "kv_cache_type": parse_kv_pair("q8_0:q5_1"),
    "num_ctx": 8192,
    "num_parallel": 3,
    "kv_unified": True,
    "swa_full": True,
    "flash_attention": "on",
    "gpu_layers": 7,
    "threads": 3,
    "batch_size": 64,
    "ubatch_size": 32,
    "prompt_cache_bytes": 5 << 20,
    "template": "/t.jinja",
    "reasoning": "off",
    "embedding": "on",
    "main_gpu": 1,
    "adapters": ("/a.gguf", "/b.gguf"),
    "draft_model": "/other.gguf",
    "draft_kv_cache_type": parse_kv_pair("q8_0:q4_0"),
    "use_mmap": False,
    "extra_args": ("--rope-scale", "2"),
}
"""Another value for every field that is an argument."""


def argv_of(
    model: ModelConfig, *, binary: Binary = BINARY, is_embedding: bool = False
) -> list[str]:
    """Return the command line of a model."""
    argv = build_argv(binary, model, socket="/run/s.sock", pooling=1 if is_embedding else None)
    return list(argv)


def value_of(argv: list[str], flag: str) -> str:
    """Return the word after ``flag``, which must be there once."""
    assert argv.count(flag) == 1
    return argv[argv.index(flag) + 1]


@pytest.mark.parametrize("field", [f.name for f in msgspec.structs.fields(ModelConfig)])
def test_argv_follows_each_field_unless_it_is_listed_as_no_argument(field: str) -> None:
    """A new key of the configuration needs a row here or an entry in ``NOT_ARGUMENTS``."""
    assert (field in CHANGES) != (field in NOT_ARGUMENTS)

    if field in CHANGES:
        changed = msgspec.structs.replace(MODEL, **{field: CHANGES[field]})
        assert argv_of(changed) != argv_of(MODEL)


def test_argv_names_every_value_that_kvsup_promises() -> None:
    """Nothing is left to an environment variable or a config.ini."""
    argv = argv_of(msgspec.structs.replace(MODEL, kv_cache_type=parse_kv_pair("q8_0:q5_1")))

    assert argv[0] == "/bin/llama-server"
    assert value_of(argv, "--model") == "/m.gguf"
    assert value_of(argv, "--alias") == "m"
    assert value_of(argv, "--host") == "/run/s.sock"
    assert value_of(argv, "--cache-type-k") == "q8_0"
    assert value_of(argv, "--cache-type-v") == "q5_1"
    assert value_of(argv, "--flash-attn") == "auto"
    assert value_of(argv, "--log-verbosity") == "4"
    assert "--no-kv-unified" in argv


def test_argv_context_is_the_total_over_all_slots() -> None:
    """``num_ctx`` is what one request may use; ``-c`` is for all of them (b11434)."""
    argv = argv_of(msgspec.structs.replace(MODEL, num_ctx=1000, num_parallel=3))

    assert value_of(argv, "--ctx-size") == "3000"
    assert value_of(argv, "--parallel") == "3"


def test_argv_puts_extra_args_last() -> None:
    """So they win where llama-server takes the last of two."""
    argv = argv_of(msgspec.structs.replace(MODEL, extra_args=("--rope-scale", "2")))

    assert argv[-2:] == ["--rope-scale", "2"]


@pytest.mark.parametrize("flag", sorted(KNOWN))
def test_argv_has_flags_of_newer_builds_only_where_the_binary_lists_them(flag: str) -> None:
    """An older build would refuse to start."""
    assert flag in argv_of(MODEL)
    assert flag not in argv_of(MODEL, binary=OLD)


def test_argv_fits_to_devices_unless_there_is_nothing_to_fit() -> None:
    """With a device and no ``gpu_layers`` llama-server chooses how many layers fit."""
    assert "--fit" not in argv_of(MODEL, binary=GPU)
    assert value_of(argv_of(msgspec.structs.replace(MODEL, gpu_layers=3), binary=GPU), "--fit") == (
        "off"
    )


@pytest.mark.parametrize(
    ("switch", "is_embedding", "words"),
    [
        ("auto", False, []),
        ("auto", True, ["--embedding"]),
        ("on", False, ["--embedding", "--pooling", "mean"]),
        ("on", True, ["--embedding"]),
        ("off", True, []),
    ],
)
def test_argv_serves_embeddings_as_model_and_switch_say(
    *, switch: str, is_embedding: bool, words: list[str]
) -> None:
    """A chat model that serves them needs a pooling; an embedding model has its own."""
    plain = argv_of(msgspec.structs.replace(MODEL, embedding="off"))

    argv = argv_of(msgspec.structs.replace(MODEL, embedding=switch), is_embedding=is_embedding)

    assert argv == plain + words


@pytest.mark.parametrize(
    ("switch", "words"), [("auto", ["--rerank"]), ("on", ["--rerank"]), ("off", [])]
)
def test_argv_of_a_model_that_scores_documents_serves_rerank(switch: str, words: list[str]) -> None:
    """``--embedding`` alone would answer its vectors and no scores (b11434)."""
    model = msgspec.structs.replace(MODEL, embedding=switch)
    plain = argv_of(msgspec.structs.replace(MODEL, embedding="off"))

    argv = build_argv(BINARY, model, socket="/run/s.sock", pooling=POOLING_RANK)

    assert [*argv] == plain + words


@pytest.mark.parametrize("pooling", [0, 1, 2, 3])
def test_argv_of_every_other_pooling_serves_vectors(pooling: int) -> None:
    """Pooling 0 is none at all, and still that of a model that embeds."""
    argv = build_argv(BINARY, MODEL, socket="/run/s.sock", pooling=pooling)

    assert "--embedding" in argv
    assert not {"--rerank", "--pooling"} & {*argv}


@pytest.mark.parametrize("index", [0, 2])
def test_argv_of_one_gpu_uses_that_one_alone(index: int) -> None:
    """Without a split mode the index would only say where intermediate results lie."""
    argv = argv_of(msgspec.structs.replace(MODEL, main_gpu=index), binary=GPU)

    assert value_of(argv, "--split-mode") == "none"
    assert value_of(argv, "--main-gpu") == str(index)
    assert "--split-mode" not in argv_of(MODEL, binary=GPU)


@pytest.mark.parametrize(("use_mmap", "mode"), [(True, "mmap"), (False, "none")])
def test_argv_maps_the_file_or_reads_it_as_chosen(*, use_mmap: bool, mode: str) -> None:
    """Left open, llama-server decides by its devices (``auto``, b11434)."""
    argv = argv_of(msgspec.structs.replace(MODEL, use_mmap=use_mmap))

    assert value_of(argv, "--load-mode") == mode
    assert "--load-mode" not in argv_of(MODEL)


@pytest.mark.parametrize("flag", ["-mg", "--main-gpu", "--main_gpu=1"])
def test_owned_arguments_names_the_key_for_one_gpu(flag: str) -> None:
    """What a request may choose is kvsup's to write."""
    assert list(owned_arguments([flag])) == [(flag, "main_gpu")]


@pytest.mark.parametrize("flag", ["-lm", "--load-mode", "--mmap", "--no-mmap"])
def test_owned_arguments_names_the_key_for_mapping(flag: str) -> None:
    """A second word about the same thing would win over what a request was told it got."""
    assert list(owned_arguments([flag])) == [(flag, "use_mmap")]


@pytest.mark.parametrize(
    ("words", "owned"),
    [
        (("--rope-scale", "2"), []),
        (("--host", "0.0.0.0"), [("--host", "")]),
        (("--port=80",), [("--port=80", "")]),
        (("-ctk", "f32"), [("-ctk", "kv_cache_type")]),
        (("--cache_type_k=f32",), [("--cache_type_k=f32", "kv_cache_type")]),
        (("-c", "1"), [("-c", "num_ctx")]),
        (("--api-key", "x"), [("--api-key", "")]),
        (("--slot-save-path", "/tmp"), [("--slot-save-path", "")]),
    ],
)
def test_owned_arguments_finds_each_flag_in_any_spelling(
    words: tuple[str, ...], owned: list[tuple[str, str]]
) -> None:
    """``extra_args`` may not smuggle in what kvsup owns; the key to use instead is told."""
    assert list(owned_arguments(words)) == owned


def test_owned_variables_finds_what_would_change_a_promise() -> None:
    """A model's ``env`` may hold the rest."""
    names = ["LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_NO_REPACK", "AIP_MODE", "CUDA_VISIBLE_DEVICES"]

    assert list(owned_variables(names)) == ["LLAMA_ARG_CACHE_TYPE_K", "AIP_MODE"]


def test_environment_is_built_not_inherited() -> None:
    """What changes KV types behind our back does not come through; what finds a GPU does."""
    inherited = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "LLAMA_ARG_CACHE_TYPE_K": "q4_0",
        "AIP_MODE": "PREDICTION",
        "SECRET": "x",
        "XDG_CONFIG_HOME": "/home/me",
        "LD_LIBRARY_PATH": "/lib",
    }

    environment = build_environment(inherited, {"PATH": "/own", "A": "b"}, config_home="/empty")

    assert environment == {
        "PATH": "/own",
        "A": "b",
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_LIBRARY_PATH": "/lib",
        "GGML_NO_BACKTRACE": "1",
        "XDG_CONFIG_HOME": "/empty",
        "LLAMA_SERVER_ROUTER_PORT": "1",
    }
