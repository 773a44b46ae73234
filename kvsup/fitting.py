"""Which settings serve a request that asks for load-time options: those there, or larger ones.

Ollama starts a model anew whenever a request's ``num_ctx``, ``num_batch``, ``num_gpu``,
``num_thread`` … differ from what runs (server/sched.go, 2026-08), so two clients that differ make
it reload at each turn. Here a model only grows while it is loaded: whatever asks for as much as is
there, or less, is served at once, and the settings of the TOML file are the least that there is,
unless memory made it step down its fallback: then it serves what is there, and does not grow;
what the file leaves to llama-server (threads, GPU layers) the first request may say that loads it.
KV cache types have no order: each pair that is asked for is a process of its own.
"""

from collections.abc import Collection, Iterator

import msgspec
from msgspec import Struct

from kvsup.config import ModelConfig
from kvsup.errors import RequestError
from kvsup.kvrules import violation
from kvsup.kvtypes import parse_kv_pair
from kvsup.modelshape import ModelShape

_MIN_NUM_CTX = 4  # as Ollama (llm/llama_server.go)

_ORDERED = {
    "num_ctx": "num_ctx",
    "num_batch": "batch_size",
    "num_gpu": "gpu_layers",
    "num_thread": "threads",
}
"""Options of which more serves whoever asks for less, with the keys that they set."""

_ALL_LAYERS = 999
"""More than any model has."""

_CHOICES = ("main_gpu", "use_mmap")
"""Options that a load takes up where the file leaves them open, and named as their keys."""


class Asked(Struct, frozen=True, kw_only=True):
    """The load-time options of one request, by Ollama's names; None is not asked."""

    kv_cache_type: str | None = None
    """kvsup's own: ``type_k:type_v``."""
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    """Negative lets llama-server decide, and so asks for nothing."""
    num_thread: int | None = None
    """0 lets llama-server decide."""
    main_gpu: int | None = None
    use_mmap: bool | None = None
    draft_num_predict: int | None = None


NOTHING = Asked()


def with_pair(
    model: ModelConfig, asked: Asked, *, kv_types: Collection[str], shape: ModelShape
) -> ModelConfig:
    """Return ``model`` with the KV cache types that the request asks for.

    Raises:
        RequestError: the model does not let requests choose, the types are none of this binary's
            ``kv_types``, or a model of this ``shape`` cannot run with them.
    """
    if asked.kv_cache_type is None:
        return model
    try:
        pair = parse_kv_pair(asked.kv_cache_type, allowed=kv_types)
    except ValueError as error:
        raise RequestError(f"kv_cache_type: {error}") from error
    if pair == model.kv_cache_type:
        return model
    if not model.allow_request_kv:
        raise RequestError(
            f"{model.name} runs with kv_cache_type {model.kv_cache_type} and takes no other from a"
            " request (allow_request_kv = false); leave the option out, or use another variant"
        )
    if broken := violation(pair, model.flash_attention, shape):
        raise RequestError(f"kv_cache_type: {broken.message}")
    return msgspec.structs.replace(model, kv_cache_type=pair)


def fit(
    model: ModelConfig,
    asked: Asked,
    *,
    decided: ModelConfig,
    is_running: bool,
    trained_tokens: int | None,
    n_processors: int | None = None,
    has_stepped_down: bool = False,
) -> ModelConfig:
    """Return the settings that serve a request: ``model`` itself, or a larger one.

    Args:
        model: what runs, or what would be loaded, as configured.
        asked: by the request.
        decided: ``model`` with what it leaves open decided, as far as kvsup does that.
        is_running: what is left open even then (threads, GPU layers) was decided by
            llama-server, and serves everyone.
        trained_tokens: the context that the weights were trained for, None where unknown.
        n_processors: of this machine; more threads only slow it down.
        has_stepped_down: its memory was short, so more is not tried before it is loaded anew.

    Raises:
        RequestError: it asks for more, and ``on_bigger_request`` is ``refuse``.
    """
    changes: dict[str, object] = {}
    if not is_running:
        changes = {
            key: value
            for key in _CHOICES
            if (value := _choice(asked, key)) is not None and getattr(model, key) is None
        }
    for option, wanted in _quantities(asked, trained_tokens, n_processors):
        key = _ORDERED[option]
        there: int | None = getattr(decided, key)
        if option == "num_ctx" and model.num_ctx_is_auto:
            continue  # it has, or gets, as much as fits
        if there is None:
            changes.update({} if is_running else {key: wanted})
        elif wanted > there and model.on_bigger_request == "reload" and not has_stepped_down:
            changes[key] = wanted
        elif wanted > there and model.on_bigger_request == "refuse":
            raise RequestError(
                f"{option} {wanted} is more than the {there} of {model.name}"
                ' (on_bigger_request = "refuse"); ask for less, or leave the option out'
            )
    return msgspec.structs.replace(model, **changes) if changes else model


def unmet(
    model: ModelConfig,
    asked: Asked,
    *,
    trained_tokens: int | None,
    n_processors: int | None = None,
) -> Iterator[str]:
    """Yield in words each option that the settings of ``model`` do not grant as asked.

    A quantity that is larger than asked is granted; so is one that llama-server decides.
    """
    for option, wanted in _quantities(asked, trained_tokens, n_processors):
        there: int | None = getattr(model, _ORDERED[option])
        if there is not None and wanted > there:
            yield f"{option} {wanted} was asked, {there} is there"
        elif there is None and wanted == 0:
            yield f"{option} 0 was asked, but llama-server decides it"
    if asked.kv_cache_type is not None:
        pair = parse_kv_pair(asked.kv_cache_type)
        if pair != model.kv_cache_type:
            yield f"kv_cache_type {pair} was asked, {model.kv_cache_type} is there"
    if asked.num_ctx is not None and trained_tokens is not None and asked.num_ctx > trained_tokens:
        yield f"num_ctx {asked.num_ctx} was asked, the model was trained for {trained_tokens}"
    if asked.num_thread and n_processors is not None and asked.num_thread > n_processors:
        yield f"num_thread {asked.num_thread} was asked, the machine has {n_processors}"
    for key in _CHOICES:
        chosen = getattr(model, key)
        is_open = chosen is None and key == "use_mmap" and asked.use_mmap
        if _choice(asked, key) not in {None, chosen} and not is_open:
            yield f"{key} is decided at the load, this one was loaded otherwise"
    if asked.draft_num_predict:
        yield "draft_num_predict is not taken from a request; see draft_model and extra_args"


def _choice(asked: Asked, key: str) -> int | bool | None:
    """Return what is asked; a negative number, such as a GPU of -1, is nothing."""
    value: int | bool | None = getattr(asked, key)
    return None if value is None or value < 0 else value


def _quantities(
    asked: Asked, trained_tokens: int | None, n_processors: int | None
) -> Iterator[tuple[str, int]]:
    limits = {
        "num_ctx": trained_tokens,
        "num_batch": trained_tokens,
        "num_gpu": _ALL_LAYERS,
        "num_thread": n_processors,
    }
    for option in _ORDERED:
        wanted: int | None = getattr(asked, option)
        if wanted is None or wanted < 0 or (wanted == 0 and option != "num_gpu"):
            continue
        wanted = min(wanted, limits.get(option) or wanted)
        yield option, max(_MIN_NUM_CTX, wanted) if option == "num_ctx" else wanted
