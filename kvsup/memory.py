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
- recurrent layers have a float32 state for each slot, whatever the context and the types.

Example: SmolLM2 has 30 layers of 3 heads of 64, so 256 cells take 30 * 256 * 192 elements:
1.49 MiB of K at q8_0 (34 bytes for 32) and 0.79 MiB of V at q4_0 (18 bytes for 32).

Source: llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-hparams.cpp, llama.cpp
b11434; what differs between architectures is in ``modelshape.py``.
"""

import math
from dataclasses import dataclass
from typing import Literal

from kvsup.kvtypes import F16, FlashAttention, KVPair, KVType
from kvsup.modelshape import Layer, ModelShape, shape_of

__all__ = ["Cache", "Estimate", "Launch", "Layer", "ModelShape", "estimate", "shape_of"]

CacheKind = Literal["full", "window"]

CELL_TOKENS = 256


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


@dataclass(frozen=True, slots=True)
class Cache:
    """One KV cache, as one ``llama_kv_cache: size =`` line of the log tells it."""

    kind: CacheKind
    type_k: KVType
    type_v: KVType
    k_bytes: int
    v_bytes: int
    cells: int
    """Tokens that one stream holds."""
    layers: int
    streams: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of one instance."""

    weights_bytes: int
    caches: tuple[Cache, ...]
    recurrent_bytes: int
    compute_bytes: int
    """A rough allowance, never exact."""
    is_exact: bool
    """Caches and recurrent state are equal to the byte to what b11434 allocates."""

    @property
    def k_bytes(self) -> int:
        """Bytes of K in all caches."""
        return sum(cache.k_bytes for cache in self.caches)

    @property
    def v_bytes(self) -> int:
        """Bytes of V in all caches."""
        return sum(cache.v_bytes for cache in self.caches)

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V in all caches, without recurrent state."""
        return self.k_bytes + self.v_bytes

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.recurrent_bytes + self.compute_bytes


def estimate(shape: ModelShape, pair: KVPair, launch: Launch, *, weights_bytes: int) -> Estimate:
    """Return the memory of ``shape`` with ``pair`` under ``launch``."""
    n_ctx = launch.n_ctx_tokens or shape.n_ctx_train_tokens
    n_ubatch = min(launch.n_ubatch, launch.n_batch, n_ctx)
    cells = _pad(n_ctx) if launch.unified else _pad(_pad(n_ctx) // launch.n_parallel)
    sharing = launch.n_parallel if launch.unified else 1
    window_cells = _pad(min(cells, shape.n_window_tokens * sharing + n_ubatch))
    sizes: dict[CacheKind, int] = {
        "full": cells,
        "window": cells if launch.swa_full else window_cells,
    }
    if shape.is_latent:
        v_row: int | None = 0
    else:  # without flash attention V is stored transposed, in rows of one width
        v_row = shape.max_v_row if launch.flash_attention == "off" else None
    kept = [layer for layer in shape.layers if layer.has_cache]
    layers: dict[CacheKind, list[Layer]] = {
        "full": [layer for layer in kept if not layer.has_window],
        "window": [layer for layer in kept if layer.has_window],
    }
    caches = tuple(
        _cache(
            kind,
            layers[kind],
            pair,
            cells=n_cells,
            streams=1 if launch.unified else launch.n_parallel,
            v_row=v_row,
        )
        for kind, n_cells in sizes.items()
        if layers[kind] or shape.n_window_tokens  # with a window there are two, one may be empty
    )
    n_recurrent = sum(layer.is_recurrent for layer in shape.layers)
    rows = {(pair.k, layer.n_head_kv * layer.head_k) for layer in kept}
    rows |= {(pair.v, layer.n_head_kv * layer.head_v) for layer in kept}
    return Estimate(
        weights_bytes=weights_bytes,
        caches=caches,
        recurrent_bytes=4 * shape.state_elements * n_recurrent * launch.n_parallel,
        compute_bytes=_compute_bytes(shape, launch, cells, n_ubatch),
        is_exact=shape.is_exact and all(_is_row_possible(*row) for row in rows),
    )


def _cache(
    kind: CacheKind,
    layers: list[Layer],
    pair: KVPair,
    *,
    cells: int,
    streams: int,
    v_row: int | None,
) -> Cache:
    """Return one cache; ``v_row`` is the elements of every V row where they are all padded."""
    k_rows = [layer.n_head_kv * layer.head_k for layer in layers]
    v_rows = [layer.n_head_kv * layer.head_v if v_row is None else v_row for layer in layers]
    return Cache(
        kind=kind,
        type_k=pair.k,
        type_v=pair.v,
        k_bytes=sum(_row_bytes(pair.k, row) for row in k_rows) * cells * streams,
        v_bytes=sum(_row_bytes(pair.v, row) for row in v_rows) * cells * streams,
        cells=cells,
        layers=len(layers),
        streams=streams,
    )


def _is_row_possible(kv_type: KVType, n_elements: int) -> bool:
    block = kv_type.block_elements
    return block is not None and n_elements % block == 0


def _row_bytes(kv_type: KVType, n_elements: int) -> int:
    """Return the bytes of a row; a type of unknown size, or that does not fit, counts as f16."""
    known = kv_type if _is_row_possible(kv_type, n_elements) else F16.k
    return known.row_bytes(n_elements) or 0


def _compute_bytes(shape: ModelShape, launch: Launch, cells: int, n_ubatch: int) -> int:
    """Return an allowance for the graph's buffers.

    Fitted to SmolLM2 on the CPU of b11434 (n_ubatch 512, flash attention on: 15.64, 18.64 and
    22.64 MiB at 1024, 4096 and 8192 cells; 87.5 MiB at 4096 with it off): activations of a
    micro-batch, its attention mask, its logits, and without flash attention its attention scores.
    """
    row_bytes = 4 * (5 * shape.n_embd + 3 * shape.n_ff) + 2 * cells
    if launch.flash_attention == "off":
        row_bytes += 4 * shape.n_head * cells
    return n_ubatch * row_bytes + 4 * shape.n_vocab * launch.n_parallel


def _pad(n_tokens: int) -> int:
    return math.ceil(n_tokens / CELL_TOKENS) * CELL_TOKENS
