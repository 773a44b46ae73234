"""What a person can configure of the host: the keys of ``kvsup.toml``.

As in ``config.py`` the types are the only place where a default is written.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from kvsup.config import NumCtx, NumParallel, Positive
from kvsup.keymarks import HIDDEN, doc, kind
from kvsup.kvtypes import FlashAttention, KVPair
from kvsup.measures import Goal


class SourcesConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stores whose models are served without a file for each (``[sources]``)."""

    ollama: Annotated[bool | str, doc("Ollama's store: true, or its folder.")] = False
    huggingface: Annotated[bool | str, doc("Hugging Face's cache: true, or its folder.")] = False
    folders: Annotated[tuple[str, ...], doc("Folders of GGUF files.")] = ()


class HostConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host's settings (``kvsup.toml``); under them lie Ollama's environment variables.

    Keys that a model has too (``kv_cache_type`` …) are defaults for every model.
    """

    host: Annotated[str, doc("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on.")] = 11434
    origins: Annotated[
        tuple[str, ...], doc("Web origins allowed beside the local ones, as OLLAMA_ORIGINS.")
    ] = ()
    api_keys: Annotated[
        str | None, doc("File of API keys, mode 0600; absent: no key is asked for.")
    ] = None
    max_body_bytes: Annotated[int, kind("size", "Largest request body.")] = field(
        default=100 << 20, name="max_body"
    )
    max_bodies_memory_bytes: Annotated[
        int | None,
        kind("size", "Memory for all request bodies at once; absent: four times max_body."),
    ] = field(default=None, name="max_bodies_memory")
    client_timeout_s: Annotated[
        float,
        kind("timeout", "Time for the head of a request, and for each next part of its body."),
    ] = field(default=60.0, name="client_timeout")
    idle_timeout_s: Annotated[
        float, kind("timeout", "Time that a connection without a request stays open.")
    ] = field(default=120.0, name="idle_timeout")
    slow_reader_timeout_s: Annotated[
        float,
        kind(
            "timeout",
            'Time after which a client that takes none of its answer is cut; "-1": never.',
        ),
    ] = field(default=600.0, name="slow_reader_timeout")
    image_hosts: Annotated[
        tuple[str, ...], doc("Hosts from which kvsup fetches images that a request names by URL.")
    ] = ()
    models_dir: Annotated[
        str | None,
        doc("Folder for models that kvsup fetches and makes; absent: in the user's data folder."),
    ] = None
    registries: Annotated[
        tuple[str, ...],
        doc("Hosts that models come from and go to; http://HOST:PORT for one without TLS."),
    ] = ("registry.ollama.ai", "hf.co")
    sources: Annotated[SourcesConfig, doc("Stores whose models are served as they are.")] = field(
        default_factory=SourcesConfig
    )
    max_loaded_models: Annotated[
        Positive | None,
        doc("Models in memory at once; absent: memory decides."),
    ] = None
    memory_bytes: Annotated[
        int | None, kind("size", 'Memory for all models, e.g. "16GiB"; "auto": what is free.')
    ] = field(default=None, name="memory")
    memory_headroom_bytes: Annotated[int, kind("size", "Memory left free when memory is auto.")] = (
        field(default=1 << 30, name="memory_headroom")
    )
    max_queue: Annotated[
        int, Meta(ge=0, description="Requests that may wait; one more is told the server is busy.")
    ] = 512
    probe_after_s: Annotated[
        float,
        kind(
            "duration", 'Time without any request after which a new KV pair is probed; "-1": never.'
        ),
    ] = field(default=20.0, name="probe_after")
    watch: Annotated[
        bool, doc("Take up edits, new weights and new llama-servers as they come.")
    ] = True
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], doc("Least severe line to print.")
    ] = "info"
    state_dir: Annotated[
        str | None, doc("Folder for what kvsup remembers; absent: the user's state folder.")
    ] = None
    max_kv_files_bytes: Annotated[
        int, kind("size", "Disk for the saved conversations of all models (warm_swap).")
    ] = field(default=20 << 30, name="max_kv_files")
    shutdown_timeout_s: Annotated[
        float, kind("duration", "Time for running requests to end when kvsup stops.")
    ] = field(default=10.0, name="shutdown_timeout")

    kv_cache_type: Annotated[
        KVPair | UnsetType, kind("pair", "Default for every model.", auto="kv_is_auto")
    ] = UNSET
    kv_is_auto: Annotated[bool, HIDDEN] = False
    keep_alive_s: Annotated[float | UnsetType, kind("duration", "Default for every model.")] = (
        field(default=UNSET, name="keep_alive")
    )
    kv_goal: Annotated[Goal | UnsetType, doc("Default for every model.")] = UNSET
    kv_slow: Annotated[
        Literal["warn", "refuse", "fallback"] | UnsetType, doc("Default for every model.")
    ] = UNSET
    num_ctx: Annotated[
        NumCtx | UnsetType, doc("Default for every model.", auto="num_ctx_is_auto")
    ] = UNSET
    num_ctx_is_auto: Annotated[bool, HIDDEN] = False
    num_parallel: Annotated[NumParallel | UnsetType, doc("Default for every model.")] = UNSET
    flash_attention: Annotated[FlashAttention | UnsetType, doc("Default for every model.")] = UNSET
    load_timeout_s: Annotated[float | UnsetType, kind("duration", "Default for every model.")] = (
        field(default=UNSET, name="load_timeout")
    )
    llama_server: Annotated[str | UnsetType, doc("llama-server binary for every model.")] = UNSET


SHARED_KEYS = (
    "kv_cache_type",
    "kv_goal",
    "kv_slow",
    "keep_alive",
    "num_ctx",
    "num_parallel",
    "flash_attention",
    "load_timeout",
    "llama_server",
)
"""TOML keys of the host that are defaults for every model."""
