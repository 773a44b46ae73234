"""The command line and environment of a llama-server: one row per key of ``ModelConfig``.

Every value that kvsup promises is on the command line, since ``LLAMA_ARG_*`` variables and
``config.ini`` files (``/etc/llama.cpp``, ``$XDG_CONFIG_HOME/llama.cpp``) change what is not
(common/arg.cpp, b11434; precedence config.ini < environment < command line).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from kvsup.config import ModelConfig
from kvsup.llama import childmode
from kvsup.llama.binary import Binary

NOT_ARGUMENTS = frozenset(
    {
        "aliases", "keep_alive_s", "system", "messages", "options", "env", "llama_server",
        "preload", "pin",
        "load_timeout_s", "stop_timeout_s", "restart", "watchdog", "restart_wait_s", "resume",
        "source",
        "on_bigger_request", "allow_request_kv", "kv_is_auto", "kv_goal", "kv_slow",
        "num_ctx_is_auto", "priority", "weight", "fallback", "warm_swap", "checkpoint_after_tokens",
    }
)  # fmt: skip
"""Fields of ``ModelConfig`` that are kvsup's own business."""

EMPTY_CONFIG_DIR = "none"
"""Name of the empty folder, beside the sockets, where children look for configuration."""

POOLING_RANK = 4
"""``pooling_type`` of a model that scores documents (enum llama_pooling_type, llama.h, b11434)."""

_FLAG = re.compile(r"--?[A-Za-z][\w-]*")

_OWNED: dict[str, str] = {  # flag: what to write instead
    "-m": "model", "--model": "model", "-mm": "mmproj", "--mmproj": "mmproj",
    "--lora": "adapters", "-a": "name", "--alias": "name",
    "-c": "num_ctx", "--ctx-size": "num_ctx", "-np": "num_parallel", "--parallel": "num_parallel",
    "-kvu": "kv_unified", "--kv-unified": "kv_unified", "-no-kvu": "kv_unified",
    "--no-kv-unified": "kv_unified", "--swa-full": "swa_full",
    "-ctk": "kv_cache_type", "--cache-type-k": "kv_cache_type",
    "-ctv": "kv_cache_type", "--cache-type-v": "kv_cache_type",
    "-md": "draft_model", "--model-draft": "draft_model", "--spec-draft-model": "draft_model",
    "-ctkd": "draft_kv_cache_type", "--cache-type-k-draft": "draft_kv_cache_type",
    "-ctvd": "draft_kv_cache_type", "--cache-type-v-draft": "draft_kv_cache_type",
    "--spec-draft-type-k": "draft_kv_cache_type", "--spec-draft-type-v": "draft_kv_cache_type",
    "-fa": "flash_attention", "--flash-attn": "flash_attention",
    "-ngl": "gpu_layers", "--gpu-layers": "gpu_layers", "--n-gpu-layers": "gpu_layers",
    "-t": "threads", "--threads": "threads",
    "-mg": "main_gpu", "--main-gpu": "main_gpu",
    "-lm": "use_mmap", "--load-mode": "use_mmap", "--mmap": "use_mmap", "--no-mmap": "use_mmap",
    "-b": "batch_size", "--batch-size": "batch_size",
    "-ub": "ubatch_size", "--ubatch-size": "ubatch_size",
    "-cram": "prompt_cache", "--cache-ram": "prompt_cache",
    "--chat-template-file": "template", "-rea": "reasoning", "--reasoning": "reasoning",
    "--embedding": "embedding", "--embeddings": "embedding",
    "--host": "", "--port": "", "--reuse-port": "", "--api-key": "", "--api-key-file": "",
    "--api-prefix": "", "--ssl-key-file": "", "--ssl-cert-file": "", "--slot-save-path": "",
    "-hf": "model", "-hfr": "model", "--hf-repo": "model", "-mu": "model", "--model-url": "model",
    "-lv": "", "--verbosity": "", "--log-verbosity": "", "--log-disable": "", "--log-file": "",
    "--log-jsonl": "", "-v": "", "--verbose": "", "--log-verbose": "", "--no-slots": "",
    "--sleep-idle-seconds": "keep_alive", "--models-dir": "", "--models-preset": "",
    "--help": "", "-h": "", "--version": "", "--list-devices": "", "--offline": "",
    "--cache-idle-slots": "", "--no-cache-idle-slots": "",
    "-dr": "model", "--docker-repo": "model", "-hff": "model", "--hf-file": "model",
    "-mmu": "mmproj", "--mmproj-url": "mmproj", "--usage": "", "--cache-list": "", "-cl": "",
    "--completion-bash": "",
}  # fmt: skip

_PRESETS = ("--*-default", "--fim-*", "--models-*")
"""Flags that stand for a whole set of others, KV types and contexts among them (arg.cpp)."""

_OWNED_ENVIRONMENT = (
    "LLAMA_API_KEY", "LLAMA_ARG_API_KEY*", "LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_CACHE_*",
    "LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_N_PARALLEL", "LLAMA_ARG_KV_*", "LLAMA_SERVER_*", "AIP_*",
    "XDG_CONFIG_HOME",
)  # fmt: skip

_INHERITED = (
    "PATH", "HOME", "USER", "LANG", "LC_*", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_*",
    "CUDA_*", "NVIDIA_*", "HIP_*", "ROCR_*", "ROCM_*", "HSA_*", "GPU_DEVICE_ORDINAL", "MUSA_*",
    "GGML_*", "VK_*", "ZE_*", "ONEAPI_*", "SYCL_*", "OMP_*", "MESA_*", "XDG_RUNTIME_DIR",
)  # fmt: skip


def build_argv(
    binary: Binary,
    model: ModelConfig,
    *,
    socket: str,
    pooling: int | None,
    slot_dir: str | None = None,
) -> tuple[str, ...]:
    """Return the exact command line that serves ``model`` on the UNIX socket ``socket``.

    ``-c`` is the total over all slots, so it is ``num_ctx`` times ``num_parallel``; ``-np`` and the
    unified switch are always given, since without ``-np`` llama-server takes four slots over one
    pool (b11434). Verbosity 4 is the first at which buffer sizes are logged. ``pooling`` is the
    GGUF's ``pooling_type``, None where it has none; ``slot_dir`` a folder that is there when it
    starts, for its slots, None where none is saved.
    """
    embedding = _embedding(model, pooling)
    saves = ("--slot-save-path", slot_dir) if slot_dir else ()
    arguments = _arguments(binary, model, socket)
    return (binary.path, *arguments, *saves, *embedding, *model.extra_args)


def _arguments(binary: Binary, model: ModelConfig, socket: str) -> Iterator[str]:
    yield from ("--model", model.model, "--alias", model.name, "--host", socket)
    yield from ("--ctx-size", str(model.num_ctx * model.num_parallel))
    yield from ("--parallel", str(model.num_parallel))
    yield "--kv-unified" if model.kv_unified else "--no-kv-unified"
    yield from ("--cache-type-k", str(model.kv_cache_type.k))
    yield from ("--cache-type-v", str(model.kv_cache_type.v))
    yield from ("--flash-attn", model.flash_attention)
    if model.batch_size is not None:
        yield from ("--batch-size", str(model.batch_size))
    if model.ubatch_size is not None:
        yield from ("--ubatch-size", str(model.ubatch_size))
    yield from ("--cache-ram", str(model.prompt_cache_bytes >> 20))
    if model.swa_full:
        yield "--swa-full"
    if model.mmproj is not None:
        yield from ("--mmproj", model.mmproj)
    if model.adapters:
        yield from ("--lora", ",".join(model.adapters))
    if model.draft_model is not None:
        draft = model.draft_kv_cache_type
        yield from ("--model-draft", model.draft_model)
        yield from ("--cache-type-k-draft", str(draft.k), "--cache-type-v-draft", str(draft.v))
    if model.gpu_layers is not None:
        yield from ("--gpu-layers", str(model.gpu_layers))
    if model.main_gpu is not None:
        yield from ("--split-mode", "none", "--main-gpu", str(model.main_gpu))
    if model.use_mmap is not None:
        yield from ("--load-mode", "mmap" if model.use_mmap else "none")
    if model.threads is not None:
        yield from ("--threads", str(model.threads))
    yield "--jinja"
    if model.template is not None:
        yield from ("--chat-template-file", model.template)
    if model.reasoning != "auto":
        yield from ("--reasoning", model.reasoning)
    yield from ("--slots", "--metrics", "--log-verbosity", "4", "--log-colors", "off")
    yield from _where_known(binary, model)


def _embedding(model: ModelConfig, pooling: int | None) -> Iterator[str]:
    """Yield what makes it serve vectors; a chat model serves both with a pooling of its own."""
    if model.embedding == "on" and pooling is None:
        yield from ("--embedding", "--pooling", "mean")
    elif model.embedding != "off" and pooling is not None:
        yield "--rerank" if pooling == POOLING_RANK else "--embedding"


def _where_known(binary: Binary, model: ModelConfig) -> Iterator[str]:
    """Yield what not every build takes: no web UI, no downloads, slots that keep what they hold.

    ``--fit`` measures the model with dummy allocations (0.09 s for 135M on CPU) and changes only
    what is unset; with no device, or with ``gpu_layers`` given, there is nothing left to fit.
    """
    unfitted = not binary.devices or model.gpu_layers is not None
    rows = (
        (("--no-ui",), True),
        (("--offline",), True),
        (("--no-cache-idle-slots",), True),
        (("--no-log-timestamps",), True),
        (("--fit", "off"), unfitted),
    )
    for words, wanted in rows:
        if wanted and words[0] in binary.flags:
            yield from words


def owned_arguments(extra_args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each flag of ``extra_args`` that kvsup owns, with the key to use instead, or ""."""
    for argument in extra_args:
        key = owned_key(argument)
        if key is not None:
            yield argument, key


def owned_key(argument: str) -> str | None:
    """Return the key that stands for a flag, "" where kvsup sets it itself, None where it is free.

    A value joined to the flag by ``=`` does not count.
    """
    flag = _flag(argument)
    return "model" if flag not in _OWNED and _matches(flag, _PRESETS) else _OWNED.get(flag)


def unknown_arguments(extra_args: Sequence[str], binary: Binary) -> Iterator[str]:
    """Yield each flag that ``binary`` does not list in its ``--help``, but for kvsup's own."""
    for argument in extra_args:
        flag = _flag(argument)
        if _FLAG.fullmatch(flag) and flag not in binary.flags and flag not in _OWNED:
            yield flag


def _flag(argument: str) -> str:
    """Return the flag without its value; llama-server takes ``_`` for ``-`` (common/arg.cpp)."""
    return argument.split("=", 1)[0].replace("_", "-")


def owned_variables(names: Iterable[str]) -> Iterator[str]:
    """Yield each of ``names`` that would change what kvsup promises on the command line."""
    return (name for name in names if _matches(name, _OWNED_ENVIRONMENT))


def build_environment(
    inherited: Mapping[str, str], own: Mapping[str, str], *, config_home: str
) -> dict[str, str]:
    """Return the child's environment: a short list of inherited names, ours, then the model's.

    Args:
        inherited: the environment of kvsup.
        own: the model's ``env`` table.
        config_home: an empty folder, so that no ``llama.cpp/config.ini`` of the user is read.
    """
    kept = {name: value for name, value in inherited.items() if _matches(name, _INHERITED)}
    ours = {"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": config_home, **childmode.ENVIRONMENT}
    return {**kept, **ours, **own}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
