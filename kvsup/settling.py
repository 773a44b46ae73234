"""The numbers that a model leaves open, decided, and what of it decides the size of its buffers."""

import msgspec

from kvsup.config import ModelConfig
from kvsup.memory import Launch
from kvsup.slowpaths import Backend

BATCH_TOKENS = 512
CPU_BATCH_TOKENS = 64
MAX_FILL_IN_TOKENS = 2048
"""Logical batch of a model that fills in: llama-server's own default."""

MAX_EMBEDDING_TOKENS = 8192
"""Longest input to embed; the compute buffer grows with it."""


def settled(
    model: ModelConfig,
    *,
    trained_tokens: int | None,
    is_on_cpu: bool,
    embeds: bool,
    fills_in: bool,
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return ``model`` with every number that it left open, and what its owner should know.

    A client that leaves while its prompt is read is noticed after one or two steps, so on a CPU
    these are short: at 64 tokens a quantized cache reads as fast as at 512, f16 some 13 % slower
    (b11434, SmolLM2, 2 cores). ``--embedding`` demands that a whole input is one physical batch;
    ``/infill`` cuts what stands before and after to three and one quarters of the logical batch
    (server-common.cpp, b11434), so on a device models that fill in get a long one.
    """
    notes = []
    num_ctx = model.num_ctx
    if trained_tokens and trained_tokens < num_ctx:
        notes.append(f"num_ctx {num_ctx} is more than it was trained for; {trained_tokens} is used")
        num_ctx = trained_tokens
    batch = model.batch_size or (CPU_BATCH_TOKENS if is_on_cpu else BATCH_TOKENS)
    ubatch = model.ubatch_size or min(batch, BATCH_TOKENS)
    if fills_in and not is_on_cpu and model.batch_size is None:
        batch = max(batch, min(num_ctx, MAX_FILL_IN_TOKENS))
    if embeds:
        batch = ubatch = max(batch, min(num_ctx, MAX_EMBEDDING_TOKENS))
    settled = msgspec.structs.replace(model, num_ctx=num_ctx, batch_size=batch, ubatch_size=ubatch)
    return settled, tuple(notes)


def launch_of(model: ModelConfig, *, embeds: bool = False, backend: Backend = "cpu") -> Launch:
    """Return the launch parameters that decide the size of a model's buffers."""
    return Launch(
        n_ctx_tokens=model.num_ctx * model.num_parallel,
        n_parallel=model.num_parallel,
        unified=model.kv_unified,
        n_batch=model.batch_size or BATCH_TOKENS,
        n_ubatch=model.ubatch_size or BATCH_TOKENS,
        swa_full=model.swa_full,
        flash_attention=model.flash_attention,
        embeds=embeds or model.embedding == "on",
        prompt_cache_bytes=model.prompt_cache_bytes,
        backend=backend,
    )
