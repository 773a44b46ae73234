"""How much memory a model takes at a given KV pair and context, from its GGUF header alone.

For each attention layer with its own cache, ``K`` is a tensor of shape
``[streams, cells, n_head_kv * head_k]`` and ``V`` one of ``[streams, cells, n_head_kv * head_v]``;
a row of ``n`` elements takes ``n / block * block_bytes`` bytes. All is allocated at load. With
``pad(x)`` = ``x`` rounded up to a multiple of 256:

- one pool for all slots (unified): ``cells = pad(n_ctx)``, 1 stream; else a stream for each slot,
  ``cells = pad(pad(n_ctx) // n_parallel)``;
- sliding-window layers have a cache of their own, of
  ``pad(min(cells, window * (n_parallel if unified else 1) + n_ubatch))`` cells;
- multi-head latent attention (MLA) stores K only;
- sparse attention stores the key of an indexer for each token, in a second cache;
- recurrent layers have a float32 state for each slot, whatever the context and the types.

Example: SmolLM2 has 30 layers of 3 heads of 64, so 256 cells take 30 * 256 * 192 elements:
1.49 MiB of K at q8_0 (34 bytes for 32) and 0.79 MiB of V at q4_0 (18 bytes for 32).

Source: llama-kv-cache.cpp and its siblings, llama-hparams.cpp, llama-context.cpp b11434; what
differs between architectures is in ``modelshape.py``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from kvsup.kvtypes import F16, FlashAttention, KVPair, KVType
from kvsup.modelshape import CacheKind, CacheShape, Layer, ModelShape, shape_of
from kvsup.slowpaths import Backend, scratch_bytes

__all__ = [
    "Cache",
    "CacheKind",
    "Draft",
    "Estimate",
    "Launch",
    "Layer",
    "ModelShape",
    "as_table",
    "estimate",
    "shape_of",
    "weights_of",
]

CELL_TOKENS = 256

_POSITION_BYTES = 12
"""Of a cell in a saved state: its position and the one sequence that it is of."""

_NONE_LEARNT: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Launch:
    """The flags that decide memory."""

    n_ctx_tokens: int
    """``-c``: tokens of all slots together; 0: what the model was trained for."""
    n_parallel: int = 4
    """``-np``; llama-server's own choice is 4, with ``unified``."""
    unified: bool = True
    """``--kv-unified``: one pool for all slots."""
    n_batch: int = 2048
    n_ubatch: int = 512
    swa_full: bool = False
    flash_attention: FlashAttention = "auto"
    embeds: bool = False
    """``--embedding`` or ``--rerank``."""
    prompt_cache_bytes: int = 8192 << 20
    """``--cache-ram``, in bytes."""
    n_checkpoints: int = 32
    """``--ctx-checkpoints``: of each slot at most."""
    backend: Backend = "cpu"
    """Where attention runs; some need room to convert K and V in."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A model that drafts for another: it has a context as long, and as many slots."""

    shape: ModelShape
    weights_bytes: int
    pair: KVPair = F16
    """``--cache-type-k-draft`` and ``--cache-type-v-draft``, which follow nothing."""


@dataclass(frozen=True, slots=True)
class Cache:
    """One KV cache, as one ``llama_kv_cache: size =`` line of the log tells it."""

    kind: CacheKind
    type_k: KVType
    type_v: KVType
    k_bytes: int
    v_bytes: int
    cells: int
    """Tokens that one stream holds; of a compressed cache, groups of tokens."""
    layers: int
    streams: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of one instance."""

    weights_bytes: int
    caches: tuple[Cache, ...]
    """In the order of the log, without the draft's."""
    recurrent_bytes: int
    compute_bytes: int
    """An allowance for the graph's buffers on a CPU, never exact."""
    is_exact: bool
    """Caches and recurrent state are equal to the byte to what b11434 allocates."""
    scratch_bytes: int = 0
    """Where a device converts K and V: room for those of one layer as f16."""
    output_bytes: int = 0
    """Logits of each slot, and its vector where the model embeds, as allocated at load."""
    prompt_cache_bytes: int = 0
    """What prompts that lost their slot may come to take in the host's memory; not in the total."""
    checkpoint_bytes: int = 0
    """One context checkpoint: what of a slot's state could not be rolled back; not in the total."""
    max_checkpoints: int = 0
    """How many there can be, in all slots; they are made as prompts are read."""
    draft: "Estimate | None" = None
    """Of the model that drafts."""

    @property
    def k_bytes(self) -> int:
        """Bytes of K in all caches, without the draft's."""
        return sum(cache.k_bytes for cache in self.caches)

    @property
    def v_bytes(self) -> int:
        """Bytes of V in all caches, without the draft's."""
        return sum(cache.v_bytes for cache in self.caches)

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V in all caches, without recurrent state and without the draft's."""
        return self.k_bytes + self.v_bytes

    @property
    def total_bytes(self) -> int:
        """All that is allocated at load, the draft's included."""
        own_bytes = self.weights_bytes + self.kv_bytes + self.recurrent_bytes
        own_bytes += self.compute_bytes + self.scratch_bytes + self.output_bytes
        return own_bytes + (self.draft.total_bytes if self.draft else 0)


def estimate(
    shape: ModelShape,
    pair: KVPair,
    launch: Launch,
    *,
    weights_bytes: int,
    bytes_per_element: Mapping[str, float] = _NONE_LEARNT,
    draft: Draft | None = None,
) -> Estimate:
    """Return the memory of ``shape`` with ``pair`` under ``launch``.

    Args:
        shape: what its header says.
        pair: types of K and V.
        launch: the flags that decide memory.
        weights_bytes: size of its files.
        bytes_per_element: of types that stock llama.cpp does not know, as an earlier load told
            them; a type that is unknown here, too, counts as f16, and not exactly.
        draft: the model that drafts for it.
    """
    n_ctx = launch.n_ctx_tokens or shape.n_ctx_train_tokens
    n_ubatch = min(launch.n_ubatch, launch.n_batch, n_ctx)
    launch = replace(launch, n_ctx_tokens=n_ctx, n_ubatch=n_ubatch)
    caches = tuple(_cache(each, shape, pair, launch, bytes_per_element) for each in shape.caches)
    n_recurrent = sum(layer.is_recurrent for layer in shape.layers)
    state_bytes = 4 * (shape.state_elements * n_recurrent + shape.extra_state_elements)
    checkpoint_bytes = state_bytes + sum(
        _window_bytes(cache, each, launch) for cache, each in zip(caches, shape.caches, strict=True)
    )
    return Estimate(
        weights_bytes=weights_bytes,
        caches=caches,
        recurrent_bytes=state_bytes * launch.n_parallel,
        compute_bytes=_compute_bytes(shape, launch, caches),
        scratch_bytes=max(
            (
                _scratch_bytes(cache, each, launch)
                for cache, each in zip(caches, shape.caches, strict=True)
            ),
            default=0,
        ),
        is_exact=shape.is_exact and _are_known(shape, pair, bytes_per_element),
        output_bytes=4 * launch.n_parallel * (shape.n_vocab + launch.embeds * shape.n_embd),
        prompt_cache_bytes=launch.prompt_cache_bytes,
        checkpoint_bytes=checkpoint_bytes,
        max_checkpoints=launch.n_checkpoints * launch.n_parallel if checkpoint_bytes else 0,
        draft=_drafting(draft, launch, bytes_per_element) if draft else None,
    )


def as_table(result: Estimate) -> dict[str, object]:
    """Return the estimate as plain values that JSON can hold, for people and other programs."""
    return {
        "caches": [
            {
                "kind": cache.kind,
                "type_k": str(cache.type_k),
                "type_v": str(cache.type_v),
                "k_bytes": cache.k_bytes,
                "v_bytes": cache.v_bytes,
                "cells": cache.cells,
                "layers": cache.layers,
                "streams": cache.streams,
            }
            for cache in result.caches
        ],
        "k_bytes": result.k_bytes,
        "v_bytes": result.v_bytes,
        "recurrent_bytes": result.recurrent_bytes,
        "weights_bytes": result.weights_bytes,
        "compute_bytes": result.compute_bytes,
        "scratch_bytes": result.scratch_bytes,
        "output_bytes": result.output_bytes,
        "draft": as_table(result.draft) if result.draft else None,
        "total_bytes": result.total_bytes,
        "prompt_cache_bytes": result.prompt_cache_bytes,
        "checkpoint_bytes": result.checkpoint_bytes,
        "max_checkpoints": result.max_checkpoints,
        "is_exact": result.is_exact,
    }


def weights_of(result: Estimate) -> Estimate:
    """Return the part of an estimate that is weights, the draft's included."""
    draft_bytes = result.draft.weights_bytes if result.draft else 0
    return Estimate(
        weights_bytes=result.weights_bytes + draft_bytes,
        caches=(),
        recurrent_bytes=0,
        compute_bytes=0,
        is_exact=True,
    )


def _drafting(draft: Draft, launch: Launch, bytes_per_element: Mapping[str, float]) -> Estimate:
    """Return the memory of a draft, whose context is what its model's became by rounding up."""
    n_streams = 1 if launch.unified else launch.n_parallel
    launch = replace(
        launch,
        n_ctx_tokens=_stream_tokens(launch) * n_streams,
        embeds=False,
        prompt_cache_bytes=0,
        n_checkpoints=0,
    )
    return estimate(
        draft.shape,
        draft.pair,
        launch,
        weights_bytes=draft.weights_bytes,
        bytes_per_element=bytes_per_element,
    )


def _cache(
    cache: CacheShape,
    shape: ModelShape,
    pair: KVPair,
    launch: Launch,
    bytes_per_element: Mapping[str, float],
) -> Cache:
    is_unified = launch.unified and not cache.has_stream_per_slot
    streams = 1 if is_unified else launch.n_parallel
    cells = _pad(math.ceil(_stream_tokens(launch) / cache.tokens_per_cell))
    if cache.n_window_tokens and not launch.swa_full:
        sharing = launch.n_parallel if is_unified else 1
        cells = _pad(min(cells, cache.n_window_tokens * sharing + launch.n_ubatch))
    v_rows = cache.v_rows
    if launch.flash_attention == "off" and cache.kind != "indexer":
        v_rows = (shape.max_v_row,) * len(v_rows)  # stored transposed, in rows of one width
    return Cache(
        kind=cache.kind,
        type_k=pair.k,
        type_v=pair.v,
        k_bytes=_bytes(pair.k, cache.k_rows, cells * streams, bytes_per_element),
        v_bytes=_bytes(pair.v, v_rows, cells * streams, bytes_per_element),
        cells=cells,
        layers=len(cache.k_rows),
        streams=streams,
    )


def _scratch_bytes(cache: Cache, shape: CacheShape, launch: Launch) -> int:
    return scratch_bytes(
        KVPair(cache.type_k, cache.type_v),
        launch.backend,
        n_cells=cache.cells * cache.streams,
        k_elements=max(shape.k_rows, default=0),
        v_elements=max(shape.v_rows, default=0),
    )


def _window_bytes(cache: Cache, shape: CacheShape, launch: Launch) -> int:
    """Return what a context checkpoint keeps of a cache: the window of one slot."""
    if not shape.n_window_tokens or launch.swa_full:
        return 0
    n_cells = min(shape.n_window_tokens, cache.cells)
    row_bytes = (cache.k_bytes + cache.v_bytes) // (cache.cells * cache.streams)
    return n_cells * (row_bytes + _POSITION_BYTES)


def _are_known(shape: ModelShape, pair: KVPair, bytes_per_element: Mapping[str, float]) -> bool:
    halves = [(pair.k, cache.k_rows) for cache in shape.caches]
    halves += [(pair.v, cache.v_rows) for cache in shape.caches]
    return all(
        _fits(kv_type, rows) or kv_type.name in bytes_per_element
        for kv_type, rows in halves
        if rows
    )


def _fits(kv_type: KVType, rows: tuple[int, ...]) -> bool:
    """Say whether the type's size is known, and its blocks divide every row."""
    block = kv_type.block_elements
    return block is not None and not any(row % block for row in rows)


def _bytes(
    kv_type: KVType, rows: tuple[int, ...], n_cells: int, bytes_per_element: Mapping[str, float]
) -> int:
    """Return the bytes of one half of a cache; what cannot be known counts as f16."""
    n_elements = sum(rows) * n_cells
    if kv_type.block_elements is None and kv_type.name in bytes_per_element:
        return round(n_elements * bytes_per_element[kv_type.name])
    return (kv_type if _fits(kv_type, rows) else F16.k).row_bytes(n_elements) or 0


def _compute_bytes(shape: ModelShape, launch: Launch, caches: tuple[Cache, ...]) -> int:
    """Return an allowance for the graph's buffers.

    Fitted to the CPU of b11434: SmolLM2 and Gemma 3 270M come within 1 % with f16, in 18 settings
    of context, slots, micro-batch and flash attention, and within 3 % with quantized types. Of 128
    tiny models plain ones take at most 1.3 times as much (grok 2.5), those with recurrent layers
    2.7, those with an indexer 7.
    """
    has_flash = launch.flash_attention != "off"
    width = sum(cache.cells for cache in caches if cache.layers)
    if not shape.caches and not shape.state_elements:
        width = launch.n_ubatch  # an encoder attends to its micro-batch alone
    masks_bytes = (2 if has_flash else 4) * launch.n_ubatch * width
    # Who serves vectors has every token for an output, and a model that writes its logits, too.
    n_outputs = launch.n_ubatch if launch.embeds and shape.caches else launch.n_parallel
    logits_bytes = 4 * n_outputs * shape.n_vocab
    activation_bytes = 4 * launch.n_ubatch * 5 * shape.n_embd
    activation_bytes += max(4 * launch.n_ubatch * 3 * shape.n_ff, logits_bytes)
    if not has_flash:
        q_row = shape.n_head * max(layer.head_k for layer in shape.layers)
        scores = shape.n_head * max(
            (cache.cells for cache in caches if cache.layers), default=width
        )
        row = shape.n_embd + 5 * q_row + 2 * shape.max_v_row + scores
        activation_bytes = max(activation_bytes, 4 * launch.n_ubatch * row)
    return masks_bytes + activation_bytes


def _stream_tokens(launch: Launch) -> int:
    """Return the tokens that one stream of a cache without a window holds."""
    n_tokens = _pad(launch.n_ctx_tokens)
    return n_tokens if launch.unified else _pad(n_tokens // launch.n_parallel)


def _pad(n_tokens: int) -> int:
    return math.ceil(n_tokens / CELL_TOKENS) * CELL_TOKENS
