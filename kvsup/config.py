"""What a person can configure of a model: the keys of its TOML file.

The types here and in ``hostconfig.py`` are the only place where a default is written. Field names
carry units; the name in the TOML file is given by ``name=`` where it differs. Texts and values are
decoded in ``kvsup/decode.py``; the JSON Schemas for editors come from these same types
(``kvsup/schema.py``).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from kvsup.keymarks import HIDDEN, doc, kind
from kvsup.kvtypes import F16, FlashAttention, KVPair
from kvsup.measures import Goal

Switch = Literal["auto", "on", "off"]
Positive = Annotated[int, Meta(ge=1)]
NumCtx = Annotated[int, Meta(ge=4)]
NumParallel = Annotated[int, Meta(ge=1, le=256)]
OptionValue = int | float | bool | str | list[str]


class RestartConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens when a llama-server dies unasked (``[restart]``)."""

    policy: Annotated[
        Literal["on-failure", "never"], doc("Restart a llama-server that died, or leave it.")
    ] = "on-failure"
    min_delay_s: Annotated[float, kind("duration", "Wait before the first restart.")] = field(
        default=1.0, name="min_delay"
    )
    max_delay_s: Annotated[float, kind("duration", "Longest wait between restarts.")] = field(
        default=60.0, name="max_delay"
    )
    max_deaths: Annotated[int, Meta(ge=1, description="Deaths in the window before giving up.")] = 5
    window_s: Annotated[float, kind("duration", "Window in which deaths are counted.")] = field(
        default=600.0, name="window"
    )
    min_uptime_s: Annotated[
        float, kind("duration", "Time ready after which the wait starts small again.")
    ] = field(default=30.0, name="min_uptime")


class FallbackStep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model gives up where its memory is not there: one table of ``fallback``.

    Its keys are the model's, and replace them; ``UNSET`` leaves what the steps before have.
    """

    num_ctx: Annotated[NumCtx | UnsetType, doc("Fewer tokens for one request.")] = UNSET
    num_parallel: Annotated[NumParallel | UnsetType, doc("Fewer requests at once.")] = UNSET
    kv_cache_type: Annotated[KVPair | UnsetType, kind("pair", "Smaller KV cache types.")] = UNSET
    kv_unified: Annotated[bool | UnsetType, doc("One KV pool for all slots.")] = UNSET
    swa_full: Annotated[bool | UnsetType, doc("false: sliding windows in their own size.")] = UNSET
    flash_attention: Annotated[FlashAttention | UnsetType, doc("on: smaller compute buffers.")] = (
        UNSET
    )
    gpu_layers: Annotated[
        Annotated[int, Meta(ge=0)] | UnsetType, doc("Fewer layers on the GPU, more in RAM.")
    ] = UNSET
    batch_size: Annotated[Positive | UnsetType, doc("Fewer prompt tokens a step.")] = UNSET
    ubatch_size: Annotated[
        Positive | UnsetType, doc("Fewer prompt tokens at once: smaller compute buffers.")
    ] = UNSET
    use_mmap: Annotated[
        bool | UnsetType, doc("true: weights that the system may drop and read again.")
    ] = UNSET
    prompt_cache_bytes: Annotated[
        int | UnsetType, kind("size", "Less host memory for prompts that lost their slot.")
    ] = field(default=UNSET, name="prompt_cache")
    draft_kv_cache_type: Annotated[
        KVPair | UnsetType, kind("pair", "Smaller KV cache types of the draft model.")
    ] = UNSET
    draft_model: Annotated[Literal["off"] | UnsetType, doc("Without the draft model.")] = UNSET
    mmproj: Annotated[
        Literal["off"] | UnsetType, doc("Without the projector: no images, no audio.")
    ] = UNSET


class WatchdogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a llama-server that lives but does nothing is ended (``[watchdog]``)."""

    enabled: Annotated[bool, doc("Watch it once it serves.")] = True
    dry_run: Annotated[bool, doc("Only tell that it hangs; do not end it.")] = False
    interval_s: Annotated[
        float, kind("duration", "Time between two looks; ten times as long while idle.")
    ] = field(default=2.0, name="interval")
    stall_s: Annotated[
        float, kind("duration", "Longest silence without any sign of life, CPU time included.")
    ] = field(default=90.0, name="stall")
    busy_stall_s: Annotated[
        float, kind("duration", "Longest silence of one that computes; a batch is never cut.")
    ] = field(default=600.0, name="busy_stall")


class MessageConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the messages that stand before each conversation: one table of ``messages``."""

    role: Annotated[Literal["system", "user", "assistant"], doc("Who says it.")]
    content: Annotated[str, doc("What is said.")]


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model, or one variant of it, as one kind of llama-server process serves it."""

    name: Annotated[str, doc("Name that clients use; the file's stem if absent.")] = ""
    aliases: Annotated[tuple[str, ...], doc("Other names for the same model.")] = ()
    model: Annotated[
        str,
        doc(
            "GGUF file: a path (~ or relative to this file), the first of a split; or kvsup:NAME,"
            " ollama:NAME, hf:ORG/REPO:TAG."
        ),
    ]
    mmproj: Annotated[str | None, doc("Projector GGUF for images or audio.")] = None
    adapters: Annotated[
        tuple[str, ...], doc("LoRA files (GGUF) that are applied to the weights, in full.")
    ] = ()
    kv_cache_type: Annotated[
        KVPair,
        kind(
            "pair",
            'KV cache types as "type_k:type_v", or one type for both, e.g. "q8_0:q5_1"; '
            '"auto": what kvsup tune found.',
            auto="kv_is_auto",
        ),
    ] = F16
    kv_is_auto: Annotated[bool, HIDDEN] = False
    """Until ``kv_cache_type`` is decided."""
    kv_goal: Annotated[Goal, doc('What kv_cache_type = "auto" looks for.')] = "balanced"
    kv_slow: Annotated[
        Literal["warn", "refuse", "fallback"],
        doc("A pair that this binary and device run slowly: say so, refuse, or use a fast one."),
    ] = "warn"
    num_ctx: Annotated[
        NumCtx,
        doc(
            'Tokens that one request may use; "auto": as many as fit in the memory that is free.',
            auto="num_ctx_is_auto",
        ),
    ] = 4096
    num_ctx_is_auto: Annotated[bool, HIDDEN] = False
    """``num_ctx`` is decided at each load; until then it is the least that is loaded."""
    num_parallel: Annotated[
        NumParallel, doc("Requests served at once, each with num_ctx tokens.")
    ] = 1
    kv_unified: Annotated[
        bool, doc("One KV pool for all slots instead of a part of its own for each.")
    ] = False
    swa_full: Annotated[
        bool, doc("Full-size cache for sliding-window layers: more memory, reusable prefixes.")
    ] = False
    keep_alive_s: Annotated[
        float, kind("duration", 'Time in memory after the last request; "-1" for ever, 0 none.')
    ] = field(default=300.0, name="keep_alive")
    flash_attention: Annotated[
        FlashAttention, doc("Flash attention; a quantized V cache needs it (auto turns it on).")
    ] = "auto"
    gpu_layers: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="Layers on the GPU; absent: as many as fit."),
    ] = None
    threads: Annotated[Positive | None, Meta(description="CPU threads; absent: one per core.")] = (
        None
    )
    main_gpu: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="The one GPU to use; absent: all of them."),
    ] = None
    use_mmap: Annotated[
        bool | None, Meta(description="Map the file instead of reading it; absent: as it suits.")
    ] = None
    batch_size: Annotated[
        Positive | None, doc("Prompt tokens a step; absent: 512, on a CPU 64.")
    ] = None
    ubatch_size: Annotated[
        Positive | None, doc("Prompt tokens computed at once; absent: batch_size, at most 512.")
    ] = None
    prompt_cache_bytes: Annotated[
        int, kind("size", "Host memory for prompts that lost their slot; 0 for none.")
    ] = field(default=1 << 30, name="prompt_cache")
    warm_swap: Annotated[
        bool | Literal["auto"],
        doc(
            "Keep conversations in files while the model is not loaded, or its process has died: "
            "auto where that works and the disk is this machine's."
        ),
    ] = "auto"
    checkpoint_after_tokens: Annotated[
        int, Meta(ge=0, description="Newly read tokens after which a slot is saved; 0: at a stop.")
    ] = 2048
    draft_model: Annotated[
        str | None, doc("Smaller GGUF of the same vocabulary that drafts tokens, or none.")
    ] = None
    draft_kv_cache_type: Annotated[
        KVPair, kind("pair", "KV cache types of the draft model; it does not follow the model's.")
    ] = F16
    system: Annotated[str | None, doc("System prompt for requests without one.")] = None
    messages: Annotated[
        tuple[MessageConfig, ...],
        doc("Messages that stand before each conversation, such as examples of answers."),
    ] = ()
    template: Annotated[str | None, doc("Jinja chat template file instead of the GGUF's.")] = None
    reasoning: Annotated[Switch, doc("Thinking, for models that can.")] = "auto"
    embedding: Annotated[
        Switch, doc("Serve embeddings: auto for embedding models, on for a chat model too.")
    ] = "auto"
    options: Annotated[
        dict[str, OptionValue], doc("Ollama options that requests start from, e.g. temperature.")
    ] = field(default_factory=dict)
    on_bigger_request: Annotated[
        Literal["reload", "clamp", "refuse"],
        doc("A request asks for more context, batch, threads or GPU layers than there are."),
    ] = "reload"
    allow_request_kv: Annotated[
        bool, doc("Let a request choose its KV cache types (options.kv_cache_type).")
    ] = True
    extra_args: Annotated[
        tuple[str, ...], doc("More llama-server arguments, one string each.")
    ] = ()
    env: Annotated[dict[str, str], doc("Environment variables of this llama-server.")] = field(
        default_factory=dict
    )
    llama_server: Annotated[str | None, doc("Another llama-server binary.")] = None
    preload: Annotated[bool, doc("Load when kvsup starts.")] = False
    pin: Annotated[bool, doc("Never evict to make room for another model.")] = False
    priority: Annotated[
        int, Meta(ge=-10, le=10, description="Higher first; one step is worth 10 s in the queue.")
    ] = 0
    weight: Annotated[
        float,
        Meta(ge=0.1, le=10.0, description="Share of turns where models contend for memory."),
    ] = 1.0
    load_timeout_s: Annotated[
        float,
        kind(
            "duration", "Longest time without progress in a load (not for all of it); 0: no limit."
        ),
    ] = field(default=300.0, name="load_timeout")
    stop_timeout_s: Annotated[float, kind("duration", "Time to end politely before SIGKILL.")] = (
        field(default=10.0, name="stop_timeout")
    )
    restart: Annotated[RestartConfig, doc("What happens after a crash.")] = field(
        default_factory=RestartConfig
    )
    resume: Annotated[
        Literal["auto", "replay", "continue", "off"],
        doc("How an answer goes on whose llama-server died: run again, continued, or not."),
    ] = "auto"
    restart_wait_s: Annotated[
        float, kind("duration", "Longest wait of a request for a restart; 0: no limit.")
    ] = field(default=300.0, name="restart_wait")
    fallback: Annotated[
        tuple[FallbackStep, ...],
        doc("What to give up, step by step, where its memory is not there."),
    ] = ()
    watchdog: Annotated[WatchdogConfig, doc("When one that hangs is ended.")] = field(
        default_factory=WatchdogConfig
    )
    source: Annotated[str, HIDDEN] = ""
    """File that the model came from, or how a store names it; not a key."""


def canonical(model: ModelConfig) -> dict[str, Any]:
    """Return every value of ``model`` as plain data with stable order, for digests and ``show``."""
    plain = msgspec.to_builtins(model, enc_hook=str)
    plain["kv_cache_type"] = "auto" if model.kv_is_auto else str(model.kv_cache_type)
    plain["draft_kv_cache_type"] = str(model.draft_kv_cache_type)
    for table, step in zip(plain["fallback"], model.fallback, strict=True):
        table |= {name: str(getattr(step, name)) for name in table if name.endswith("_type")}
    return dict(sorted(plain.items()))
