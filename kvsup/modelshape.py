"""What of a GGUF header decides the model's memory: its layers, as the caches see them.

Architectures differ in which layers have a KV cache, a sliding window or a recurrent state. What
llama.cpp b11434 does is in the tables here (``create_memory`` of llama-model.cpp, models/*.cpp,
llama-hparams.cpp). An architecture in none of them is taken for a plain one, not exactly.
"""

import operator
from dataclasses import dataclass

from kvsup.gguf import GGUFError, Metadata, Value

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS

_NO_CACHE = (
    "bert jina-bert-v2 jina-bert-v3 nomic-bert nomic-bert-moe neo-bert eurobert modern-bert "
    "wavtokenizer-dec gemma-embedding dream llada llada-moe rnd1 clef"
)
_PLAIN = (
    "llama deci falcon grok gpt2 gptneox mpt baichuan starcoder refact bloom stablelm qwen qwen2 "
    "qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe phi2 phi3 phimoe plamo codeshell orion "
    "internlm2 minicpm minicpm3 gemma starcoder2 xverse command-r dbrx olmo olmoe openelm arctic "
    "deepseek deepseek2 deepseek2-ocr mistral4 chatglm glm4 glm4moe bitnet jais jais2 nemotron "
    "exaone granite granitemoe chameleon plm bailingmoe bailingmoe2 dots1 arcee ernie4_5 "
    "ernie4_5-moe hunyuan-moe hunyuan-dense hunyuan_vl hy_v3 smollm3 seed_oss grovemoe apertus "
    "minimax-m2 cogvlm pangu-embedded mistral3 paddleocr llama-embed maincoder talkie"
)


@dataclass(frozen=True, slots=True)
class _WindowRule:
    """Where an architecture has sliding-window layers, without a pattern in the file."""

    period: int | None = None
    """Of so many layers all but one have a window; None: only the file's array tells."""
    is_dense_first: bool = False
    """The layer without a window is the first of each period, not the last."""
    default_tokens: int = 0
    forced_tokens: int = 0
    """The window whatever the file says, unless the file says 0."""


_WINDOWS = {
    "gemma2": _WindowRule(2, default_tokens=4096),
    "gemma3": _WindowRule(6),
    "gemma3n": _WindowRule(5),
    "gemma4": _WindowRule(),
    "gpt-oss": _WindowRule(2),
    "cohere2": _WindowRule(4),
    "cohere2moe": _WindowRule(4, is_dense_first=True),
    "laguna": _WindowRule(4, is_dense_first=True),
    "smallthinker": _WindowRule(4, is_dense_first=True, forced_tokens=4096),
    "llama4": _WindowRule(4, default_tokens=8192, forced_tokens=8192),
    "olmo2": _WindowRule(4),
    "exaone4": _WindowRule(4, default_tokens=4096),
    "exaone-moe": _WindowRule(4),
    "afmoe": _WindowRule(4),
    "mellum": _WindowRule(4),
    "muse-glimmer": _WindowRule(4),
    "plamo3": _WindowRule(8),
    "mimo2": _WindowRule(),
    "step35": _WindowRule(),
    "granite_swa": _WindowRule(),
    "maple": _WindowRule(),
    "spark2_5": _WindowRule(),
    "lfm2": _WindowRule(0),
}

_RWKV = ("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")
_RECURRENT = ("mamba", "mamba2", *_RWKV)
_DELTA_ATTENTION = ("kimi-linear", "kimi-k3", "bailingmoe3")
_HYBRID_BY_HEADS = ("jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", *_DELTA_ATTENTION)
"""A layer without KV heads is recurrent."""
_HYBRID_BY_FEED_FORWARD = ("nemotron_h", "nemotron_h_moe")
"""A layer is a feed-forward one, or has KV heads, or is recurrent."""
_HYBRID_BY_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
"""Every n-th layer is an attention layer, all others are recurrent."""
_HYBRID_IN_EVERY_LAYER = "falcon-h1"

_EXACT = frozenset(_NO_CACHE.split()).union(
    _PLAIN.split(),
    _WINDOWS,
    _RECURRENT,
    _HYBRID_BY_HEADS,
    _HYBRID_BY_FEED_FORWARD,
    _HYBRID_BY_INTERVAL,
    [_HYBRID_IN_EVERY_LAYER],
)


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
class ModelShape:
    """What decides a model's memory; layers for multi-token prediction are left out."""

    architecture: str
    layers: tuple[Layer, ...]
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


def shape_of(metadata: Metadata) -> ModelShape:
    """Return what decides the memory of the model with this header.

    Raises:
        GGUFError: the header lacks what llama-server needs, e.g. since it is no language model.
    """
    keys = _Keys(metadata)
    n_embd, n_trunk, name = keys.number("embedding_length"), keys.n_trunk, metadata.architecture
    heads = keys.numbers("attention.head_count", (0,) * keys.n_all)
    heads_kv = keys.numbers("attention.head_count_kv", heads)
    n_ff = keys.numbers("feed_forward_length", (0,) * keys.n_all)
    head = n_embd // heads[0] if heads[0] else 0
    has_heads = heads[0] > 0 or name == "plamo2"
    k = keys.number("attention.key_length", head) if has_heads else 0
    v = keys.number("attention.value_length", head) if has_heads else 0
    k_window = keys.number("attention.key_length_swa", k)
    v_window = keys.number("attention.value_length_swa", v)
    n_window, windows = _windows(keys)
    recurrent = _recurrent_layers(keys, heads_kv, n_ff)
    kept = _cached_layers(keys, recurrent, n_ff)
    layers = tuple(
        Layer(heads_kv[i], k_window if w else k, v_window if w else v, kept[i], w, recurrent[i])
        for i, w in enumerate(windows)
    )
    experts = keys.numbers("expert_used_count", (0,) * keys.n_all)
    expert_ff = keys.numbers("expert_feed_forward_length", (0,) * keys.n_all)
    vocabulary = metadata.values.get("tokenizer.ggml.tokens")
    is_hybrid = name in (*_HYBRID_BY_HEADS, *_HYBRID_BY_FEED_FORWARD, _HYBRID_IN_EVERY_LAYER)
    return ModelShape(
        architecture=name,
        layers=layers[:n_trunk],
        n_ctx_train_tokens=keys.number("context_length", 0),
        n_window_tokens=n_window,
        is_latent=all(keys.number(f"attention.{x}_length_mla", 0) for x in ("key", "value")),
        state_elements=_state_elements(keys, n_embd, heads[0], k) if any(recurrent) else 0,
        max_v_row=max(layer.n_head_kv * layer.head_v for layer in layers),
        n_embd=n_embd,
        n_ff=max(*n_ff, *map(operator.mul, experts, expert_ff)),
        n_head=max(heads),
        n_vocab=getattr(vocabulary, "length", keys.number("vocab_size", 0)),
        is_exact=name in _EXACT and n_trunk > 0 and not (is_hybrid and n_trunk < keys.n_all),
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


def _windows(keys: _Keys) -> tuple[int, tuple[bool, ...]]:
    """Return the window in tokens, and for each layer whether it has one."""
    rule = _WINDOWS.get(keys.architecture)
    none = (False,) * keys.n_all
    if rule is None or (keys.architecture == "exaone4" and keys.n_trunk != 64):
        return 0, none
    n_tokens = keys.number("attention.sliding_window", rule.default_tokens)
    n_tokens = (n_tokens and rule.forced_tokens) or n_tokens
    pattern = keys.get("attention.sliding_window_pattern")
    if not n_tokens or (pattern is None and rule.period is None):
        return 0, none
    if isinstance(pattern, tuple):
        return n_tokens, (*map(bool, pattern), *none)[: keys.n_all]
    period = keys.number("attention.sliding_window_pattern", rule.period)
    dense = 0 if rule.is_dense_first else period - 1
    trunk = (period == 0 or i % period != dense for i in range(keys.n_trunk))
    return n_tokens, (*trunk, *none)[: keys.n_all]


def _recurrent_layers(
    keys: _Keys, heads_kv: tuple[int, ...], n_ff: tuple[int, ...]
) -> tuple[bool, ...]:
    name = keys.architecture
    if name in _HYBRID_BY_HEADS:
        return tuple(n == 0 for n in heads_kv)
    if name in _HYBRID_BY_FEED_FORWARD:
        return tuple(n == 0 and ff == 0 for n, ff in zip(heads_kv, n_ff, strict=True))
    if name in _HYBRID_BY_INTERVAL:
        interval = keys.number("full_attention_interval", _HYBRID_BY_INTERVAL[name]) or 1
        by_interval = tuple(int((i + 1) % interval != 0) for i in range(keys.n_all))
        return tuple(map(bool, keys.numbers("attention.recurrent_layers", by_interval)))
    return (name in _RECURRENT or name == _HYBRID_IN_EVERY_LAYER,) * keys.n_all


def _cached_layers(
    keys: _Keys, recurrent: tuple[bool, ...], n_ff: tuple[int, ...]
) -> tuple[bool, ...]:
    """Return for each layer whether it owns a KV cache; some reuse an earlier layer's."""
    name = keys.architecture
    if name in _NO_CACHE.split():
        return (False,) * keys.n_all
    if name == _HYBRID_IN_EVERY_LAYER:
        return (True,) * keys.n_all
    if name in _HYBRID_BY_FEED_FORWARD:
        return tuple(not r and ff == 0 for r, ff in zip(recurrent, n_ff, strict=True))
    n_owners = 20 if name == "gemma3n" else keys.n_all
    if name == "gemma4":
        n_owners -= keys.number("attention.shared_kv_layers", 0)
    return tuple(not r and i < n_owners for i, r in enumerate(recurrent))


def _state_elements(keys: _Keys, n_embd: int, n_head: int, head_k: int) -> int:
    """Return the elements of one layer's state: R + S of llama_hparams::n_embd_r and n_embd_s."""
    name = keys.architecture
    if name in _RWKV:
        return n_embd * (keys.number("token_shift_count", 2) + keys.number("wkv.head_size"))
    if name in {"lfm2", "lfm2moe"}:
        return n_embd * (keys.number("shortconv.l_cache") - 1)
    if name == "minimax-01":
        return head_k * head_k * n_head
    n_past = keys.number("ssm.conv_kernel") - 1
    if name in _DELTA_ATTENTION:
        size = keys.number("kda.head_dim")
        return size * n_head * (3 * (n_past if n_past >= 0 else 3) + size)
    inner, state = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
    groups = 0 if name in {"mamba", "jamba"} else keys.number("ssm.group_count")
    return max(0, n_past) * (inner + 2 * groups * state) + state * inner
