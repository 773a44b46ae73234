"""What of a GGUF header decides the model's memory: its layers, and the caches made for them.

Architectures differ in which layers have a KV cache, a sliding window, an indexer or a recurrent
state (``kvsup/architectures.py``). An architecture that is in none of those tables is taken for a
plain one, not exactly. Sizes are those of llama-hparams.cpp and llama-kv-cache*.cpp, b11434.
"""

import operator
from dataclasses import dataclass
from typing import Literal

from kvsup.architectures import (
    CACHES_PREDICTION_LAYERS,
    COARSE_TOKENS,
    COMPRESSED,
    DELTA_ATTENTION,
    EXACT,
    FINE_TOKENS,
    GLM_5_2_TOKENS,
    HYBRID_BY_FEED_FORWARD,
    HYBRID_BY_HEADS,
    HYBRID_BY_INTERVAL,
    HYBRID_IN_EVERY_LAYER,
    INDEXED,
    NO_CACHE,
    RECURRENT,
    ROWS_OF_POOLED_KEYS,
    RWKV,
    WINDOWS,
)
from kvsup.gguf import GGUFError, Metadata, Value

CacheKind = Literal["plain", "mla", "full", "swa", "main", "indexer"]
"""``plain``: the only one; ``mla``: the only one, of latents, without V; ``full``, ``swa``: of a
model with a sliding window; ``main``, ``indexer``: of a model that picks what it attends to."""

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the trunk, as the caches see it."""

    n_head_kv: int
    head_k: int
    """Elements of a head's key."""
    head_v: int
    has_cache: bool
    has_window: bool
    is_recurrent: bool


@dataclass(frozen=True, slots=True)
class CacheShape:
    """One KV cache, whatever the context and the types."""

    kind: CacheKind
    k_rows: tuple[int, ...]
    """Elements of a cell's K in each layer."""
    v_rows: tuple[int, ...]
    """Elements of a cell's V in each layer; empty where K serves as V, too."""
    n_window_tokens: int = 0
    """It holds no more of a slot than these, and a micro-batch; 0: the whole context."""
    tokens_per_cell: int = 1
    has_stream_per_slot: bool = False
    """A unified pool is still made for each slot."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides a model's memory."""

    architecture: str
    layers: tuple[Layer, ...]
    """Without those for multi-token prediction."""
    n_ctx_train_tokens: int
    n_window_tokens: int
    """Width of the sliding window; 0 where no layer has one."""
    is_latent: bool
    """Multi-head latent attention: K only."""
    state_elements: int
    """float32 elements of one recurrent layer's state for one slot."""
    max_v_row: int
    """Elements of the widest V row of any layer: the width of all, with flash attention off."""
    n_embd: int
    n_ff: int
    """Width of the widest feed-forward layer: of all experts in use together."""
    n_head: int
    n_vocab: int
    is_exact: bool
    """False for architectures whose caches differ from the formula, or are not known."""
    caches: tuple[CacheShape, ...] = ()
    """In the order in which llama-server logs them."""
    extra_state_elements: int = 0
    """float32 elements for one slot beside the recurrent layers' states."""


def shape_of(metadata: Metadata) -> ModelShape:
    """Return what decides the memory of the model with this header.

    Raises:
        GGUFError: the header lacks what llama-server needs, e.g. since it is no language model.
    """
    keys = _Keys(metadata)
    n_embd, name = keys.number("embedding_length"), metadata.architecture
    heads = keys.numbers("attention.head_count", (0,) * keys.n_all)
    n_ff = keys.numbers("feed_forward_length", (0,) * keys.n_all)
    experts = keys.numbers("expert_used_count", (0,) * keys.n_all)
    expert_ff = keys.numbers("expert_feed_forward_length", (0,) * keys.n_all)
    vocabulary = metadata.values.get("tokenizer.ggml.tokens")
    n_window, windows = _windows(keys)
    layers = _layers(keys, n_embd // heads[0] if heads[0] else 0, windows, n_ff)
    n_trunk = len(layers) - (keys.n_all - keys.n_trunk)
    is_latent = all(keys.number(f"attention.{x}_length_mla", 0) for x in ("key", "value"))
    trunk = layers[:n_trunk]
    kept = layers if name in CACHES_PREDICTION_LAYERS else trunk
    is_recurrent = any(layer.is_recurrent for layer in trunk)
    head_k = layers[0].head_k
    return ModelShape(
        architecture=name,
        layers=trunk,
        n_ctx_train_tokens=keys.number("context_length", 0),
        n_window_tokens=n_window,
        is_latent=is_latent,
        state_elements=_state_elements(keys, n_embd, heads[0], head_k) if is_recurrent else 0,
        max_v_row=max(layer.n_head_kv * layer.head_v for layer in layers),
        n_embd=n_embd,
        n_ff=max(*n_ff, *map(operator.mul, experts, expert_ff)),
        n_head=max(heads),
        n_vocab=getattr(vocabulary, "length", keys.number("vocab_size", 0)),
        is_exact=name in EXACT and n_trunk > 0,
        caches=_caches(keys, kept, n_window, is_latent=is_latent),
        extra_state_elements=_extra_state_elements(keys, n_embd, head_k),
    )


class _Keys:
    """The keys under the architecture's name, checked."""

    def __init__(self, metadata: Metadata) -> None:
        self.architecture = metadata.architecture
        self._values = metadata.values
        self.n_all = self.number("block_count")
        if not 0 < self.n_all <= _MAX_LAYERS:
            raise GGUFError(f"the header claims {self.n_all} layers")
        self.n_trunk = max(0, self.n_all - self.number("nextn_predict_layers", 0))

    def get(self, name: str) -> Value | None:
        return self._values.get(f"{self.architecture}.{name}")

    def number(self, name: str, default: int | None = None) -> int:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise GGUFError(f"the key {self.architecture}.{name} is missing or no whole number")
        return value

    def numbers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return a number for each layer, from one number or an array."""
        value = self.get(name)
        if not isinstance(value, tuple):
            return default if value is None else (self.number(name),) * self.n_all
        numbers = tuple(int(element) for element in value)
        if len(numbers) != self.n_all or min(numbers) < 0:
            raise GGUFError(f"the array {self.architecture}.{name} does not fit the layers")
        return numbers

    def listed(self, name: str) -> tuple[int, ...]:
        """Return an array of any length, or one number, for each layer; 0 beyond its end."""
        value = self.get(name)
        if not isinstance(value, tuple):
            return (0 if value is None else self.number(name),) * self.n_all
        return (*map(int, value), *(0,) * self.n_all)[: self.n_all]


def _layers(
    keys: _Keys, head: int, windows: tuple[bool, ...], n_ff: tuple[int, ...]
) -> tuple[Layer, ...]:
    """Return all layers, those of multi-token prediction last; ``head`` is the default size."""
    name = keys.architecture
    heads = keys.numbers("attention.head_count", (0,) * keys.n_all)
    heads_kv = keys.numbers("attention.head_count_kv", heads)
    has_heads = heads[0] > 0 or name == "plamo2"
    k = keys.number("attention.key_length", head) if has_heads else 0
    v = keys.number("attention.value_length", head) if has_heads else 0
    k_window = keys.number("attention.key_length_swa", k)
    v_window = keys.number("attention.value_length_swa", v)
    recurrent = _recurrent_layers(keys, heads_kv, n_ff)
    kept = _cached_layers(keys, recurrent, n_ff)
    layers = tuple(
        Layer(heads_kv[i], k_window if w else k, v_window if w else v, kept[i], w, recurrent[i])
        for i, w in enumerate(windows)
    )
    if name == "graniteswitch":  # one head more, which routes to adapters
        router = Layer(1, k, v, has_cache=True, has_window=False, is_recurrent=False)
        return (*layers, router)
    if name == "nanbeige":  # a pass through all layers caches them anew
        return layers * max(1, keys.number("num_loops", 1))
    return layers


def _windows(keys: _Keys) -> tuple[int, tuple[bool, ...]]:
    """Return the window in tokens, and for each layer whether it has one."""
    rule = WINDOWS.get(keys.architecture)
    none = (False,) * keys.n_all
    if rule is None or (keys.architecture == "exaone4" and keys.n_trunk != 64):
        return 0, none
    n_tokens = keys.number("attention.sliding_window", rule.default_tokens)
    n_tokens = (n_tokens and rule.forced_tokens) or n_tokens
    pattern = keys.get("attention.sliding_window_pattern")
    if not n_tokens or (pattern is None and rule.period is None):
        return 0, none
    if rule.period == 0:
        return n_tokens, (True,) * keys.n_all
    if isinstance(pattern, tuple):
        return n_tokens, (*map(bool, pattern), *none)[: keys.n_all]
    period = keys.number("attention.sliding_window_pattern", rule.period)
    dense = 0 if rule.is_dense_first else period - 1
    trunk = (period == 0 or i % period != dense for i in range(keys.n_trunk))
    return n_tokens, (*trunk, *none)[: keys.n_all]


def _caches(
    keys: _Keys, layers: tuple[Layer, ...], n_window: int, *, is_latent: bool
) -> tuple[CacheShape, ...]:
    name = keys.architecture
    if name in NO_CACHE or name in RECURRENT:
        return ()
    wide = [layer for layer in layers if layer.has_cache and not layer.has_window]
    narrow = [layer for layer in layers if layer.has_cache and layer.has_window]
    if name == COMPRESSED:
        return _compressed_caches(keys, narrow, n_window)
    indexer = _indexer(keys, layers)
    alone: CacheKind = "mla" if is_latent else "plain"
    caches = [
        _cache("main" if indexer else "full" if n_window else alone, wide, is_latent=is_latent)
    ]
    if indexer:
        caches.append(indexer)
    if n_window:  # then there are two, of which one may be empty
        caches.append(_cache("swa", narrow, n_window, is_latent=is_latent))
    return tuple(caches)


def _cache(
    kind: CacheKind, layers: list[Layer], n_window: int = 0, *, is_latent: bool
) -> CacheShape:
    k_rows = tuple(layer.n_head_kv * layer.head_k for layer in layers)
    v_rows = () if is_latent else tuple(layer.n_head_kv * layer.head_v for layer in layers)
    return CacheShape(kind, k_rows, v_rows, n_window)


def _indexer(keys: _Keys, layers: tuple[Layer, ...]) -> CacheShape | None:
    """Return the cache of one key a token by which sparse attention picks, if there is one."""
    name = keys.architecture
    if name not in INDEXED or (name == "hy_v4" and not keys.number("attention.indexer.top_k", 0)):
        return None
    if name == "minimax-m3":
        n_dense = keys.number("leading_dense_block_count", 0)
        owns = tuple(i >= n_dense for i in range(len(layers)))
    elif name in {"deepseek32", "qwen4exp"}:
        owns = (True,) * len(layers)
    elif keys.get("attention.indexer.types") is not None:
        owns = tuple(map(bool, keys.listed("attention.indexer.types")))
    else:
        owns = _default_indexers(keys)
    owners = [layer for layer, has_one in zip(layers, owns, strict=False) if has_one]
    owners = [layer for layer in owners if layer.has_cache]
    row = keys.number("attention.indexer.key_length")
    if name == "glm5-next" or any(keys.listed("attention.compress_ratios")):
        row *= ROWS_OF_POOLED_KEYS.get(name, 1)
    v_rows = tuple(layer.head_v for layer in owners) if name == "minimax-m3" else ()
    return CacheShape("indexer", (row,) * len(owners), v_rows)


def _default_indexers(keys: _Keys) -> tuple[bool, ...]:
    """Return which layers have an indexer of their own where the file does not say."""
    if keys.architecture == "glm-dsa" and keys.number("context_length", 0) >= GLM_5_2_TOKENS:
        return tuple(i < 2 or (i - 2) % 4 == 0 for i in range(keys.n_all))
    return (keys.architecture in {"glm-dsa", "glm5-next"},) * keys.n_all


def _compressed_caches(keys: _Keys, layers: list[Layer], n_window: int) -> tuple[CacheShape, ...]:
    """Return those of deepseek4: none for the whole context, but one of a cell for 4 or 128."""
    ratios = keys.listed("attention.compress_ratios")
    rows = tuple(layer.n_head_kv * layer.head_k for layer in layers)
    fine = tuple(row for row, ratio in zip(rows, ratios, strict=True) if ratio == FINE_TOKENS)
    coarse = tuple(row for row, ratio in zip(rows, ratios, strict=True) if ratio == COARSE_TOKENS)
    index = (keys.number("attention.indexer.key_length"),) * len(fine)
    return (
        CacheShape("full", (), (), has_stream_per_slot=True),
        CacheShape("swa", rows, (), n_window, has_stream_per_slot=True),
        CacheShape("main", fine, (), 0, FINE_TOKENS, has_stream_per_slot=True),
        CacheShape("main", coarse, (), 0, COARSE_TOKENS, has_stream_per_slot=True),
        CacheShape("indexer", index, (), 0, FINE_TOKENS, has_stream_per_slot=True),
    )


def _recurrent_layers(
    keys: _Keys, heads_kv: tuple[int, ...], n_ff: tuple[int, ...]
) -> tuple[bool, ...]:
    name = keys.architecture
    if name in HYBRID_BY_HEADS:
        return tuple(n == 0 for n in heads_kv)
    if name in HYBRID_BY_FEED_FORWARD:
        return tuple(n == 0 and ff == 0 for n, ff in zip(heads_kv, n_ff, strict=True))
    if name in HYBRID_BY_INTERVAL:
        interval = keys.number("full_attention_interval", HYBRID_BY_INTERVAL[name]) or 1
        by_interval = tuple(int((i + 1) % interval != 0) for i in range(keys.n_all))
        return tuple(map(bool, keys.numbers("attention.recurrent_layers", by_interval)))
    return (name in RECURRENT or name == HYBRID_IN_EVERY_LAYER,) * keys.n_all


def _cached_layers(
    keys: _Keys, recurrent: tuple[bool, ...], n_ff: tuple[int, ...]
) -> tuple[bool, ...]:
    """Return for each layer whether it owns a KV cache; some reuse an earlier layer's."""
    name = keys.architecture
    if name in NO_CACHE:
        return (False,) * keys.n_all
    if name == HYBRID_IN_EVERY_LAYER:
        return (True,) * keys.n_all
    if name in HYBRID_BY_FEED_FORWARD:
        return tuple(not r and ff == 0 for r, ff in zip(recurrent, n_ff, strict=True))
    n_owners = 20 if name == "gemma3n" else keys.n_all
    if name == "gemma4":
        n_owners -= keys.number("attention.shared_kv_layers", 0)
    return tuple(not r and i < n_owners for i, r in enumerate(recurrent))


def _state_elements(keys: _Keys, n_embd: int, n_head: int, head_k: int) -> int:
    """Return the elements of one layer's state: R + S of llama_hparams::n_embd_r and n_embd_s."""
    name = keys.architecture
    if name in RWKV:
        return n_embd * (keys.number("token_shift_count", 2) + keys.number("wkv.head_size"))
    if name in {"lfm2", "lfm2moe"}:
        return n_embd * (keys.number("shortconv.l_cache") - 1)
    if name == "minimax-01":
        return head_k * head_k * n_head
    n_past = keys.number("ssm.conv_kernel") - 1
    if name in DELTA_ATTENTION:
        size = keys.number("kda.head_dim")
        return size * n_head * (3 * (n_past if n_past >= 0 else 3) + size)
    inner, state = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
    groups = 0 if name in {"mamba", "jamba"} else keys.number("ssm.group_count")
    return max(0, n_past) * (inner + 2 * groups * state) + state * inner


def _extra_state_elements(keys: _Keys, n_embd: int, head_k: int) -> int:
    """Return deepseek4's states of compressors, and qwen4exp's history of n-grams."""
    if keys.architecture == COMPRESSED:
        ratios = keys.listed("attention.compress_ratios")[: keys.n_trunk]
        index = keys.number("attention.indexer.key_length")
        fine = 2 * FINE_TOKENS * 2 * (head_k + index)
        coarse = COARSE_TOKENS * head_k
        return 2 * (ratios.count(FINE_TOKENS) * fine + ratios.count(COARSE_TOKENS) * coarse)
    if keys.architecture == "qwen4exp" and keys.get("ple.layers") is not None:
        streams = keys.number("hyper_connection.count")
        n_past = keys.number("ple.conv_kernel") - 1
        return n_past * keys.number("ple.ngram_size") * streams * n_embd
    return 0
