"""Which architectures llama.cpp b11434 knows, by the caches that it makes for them.

Source: ``create_memory`` of llama-model.cpp, ``llm_arch_is_recurrent`` and ``llm_arch_is_hybrid``
of llama-arch.cpp, and ``load_arch_hparams`` of each models/*.cpp.
"""

from dataclasses import dataclass

_NO_CACHE_NAMES = (
    "bert jina-bert-v2 jina-bert-v3 nomic-bert nomic-bert-moe neo-bert eurobert modern-bert "
    "wavtokenizer-dec gemma-embedding dream llada llada-moe rnd1 clef"
)
NO_CACHE = frozenset(_NO_CACHE_NAMES.split())
"""Encoders and diffusion models."""

_PLAIN_NAMES = (
    "llama deci falcon grok gpt2 gptneox mpt baichuan starcoder refact bloom stablelm qwen qwen2 "
    "qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe phi2 phi3 phimoe plamo codeshell orion "
    "internlm2 minicpm minicpm3 gemma starcoder2 xverse command-r dbrx olmo olmoe openelm arctic "
    "deepseek deepseek2 deepseek2-ocr mistral4 chatglm glm4 glm4moe bitnet jais jais2 nemotron "
    "exaone granite granitemoe chameleon plm bailingmoe bailingmoe2 dots1 arcee ernie4_5 "
    "ernie4_5-moe hunyuan-moe hunyuan-dense hunyuan_vl hy_v3 smollm3 seed_oss grovemoe apertus "
    "minimax-m2 cogvlm pangu-embedded mistral3 paddleocr llama-embed maincoder talkie t5 t5encoder "
    "graniteswitch hrm_text nanbeige qwen3tts pockettts"
)
_PLAIN = frozenset(_PLAIN_NAMES.split())
"""One cache over all layers, or one of latents where the header says so."""


@dataclass(frozen=True, slots=True)
class WindowRule:
    """Where an architecture has sliding-window layers, without a pattern in the file."""

    period: int | None = None
    """Of so many layers all but one have a window; None: only the file's array tells; 0: all have
    one, whatever it says."""
    is_dense_first: bool = False
    """The layer without a window is the first of each period, not the last."""
    default_tokens: int = 0
    forced_tokens: int = 0
    """The window whatever the file says, unless the file says 0."""


WINDOWS = {
    "gemma2": WindowRule(2, default_tokens=4096),
    "gemma3": WindowRule(6),
    "gemma3n": WindowRule(5),
    "gemma4": WindowRule(),
    "gpt-oss": WindowRule(2),
    "cohere2": WindowRule(4),
    "cohere2moe": WindowRule(4, is_dense_first=True),
    "laguna": WindowRule(4, is_dense_first=True),
    "smallthinker": WindowRule(4, is_dense_first=True, forced_tokens=4096),
    "llama4": WindowRule(4, default_tokens=8192, forced_tokens=8192),
    "olmo2": WindowRule(4),
    "exaone4": WindowRule(4, default_tokens=4096),
    "exaone-moe": WindowRule(4),
    "afmoe": WindowRule(4),
    "mellum": WindowRule(4),
    "muse-glimmer": WindowRule(4),
    "plamo3": WindowRule(8),
    "mimo2": WindowRule(),
    "step35": WindowRule(),
    "granite_swa": WindowRule(),
    "maple": WindowRule(),
    "spark2_5": WindowRule(),
    "lfm2": WindowRule(0),
    "dots3note": WindowRule(),
    "deepseek4": WindowRule(0),
}

RWKV = ("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")
RECURRENT = ("mamba", "mamba2", *RWKV)
DELTA_ATTENTION = ("kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next")
HYBRID_BY_HEADS = ("jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", *DELTA_ATTENTION)
"""A layer without KV heads is recurrent."""
HYBRID_BY_FEED_FORWARD = ("nemotron_h", "nemotron_h_moe")
"""A layer is a feed-forward one, or has KV heads, or is recurrent."""
HYBRID_BY_INTERVAL = {
    "qwen3next": 4,
    "qwen35": 4,
    "qwen35moe": 4,
    "qwen4exp": 4,
    "minimax-01": 8,
}
"""Every n-th layer is an attention layer, all others are recurrent."""
HYBRID_IN_EVERY_LAYER = "falcon-h1"

INDEXED = ("deepseek32", "glm-dsa", "hy_v4", "dots3note", "glm5-next", "qwen4exp", "minimax-m3")
"""Sparse attention, which picks by the keys of an indexer."""
COMPRESSED = "deepseek4"
FINE_TOKENS, COARSE_TOKENS = 4, 128
"""Tokens in a cell of its two compressed caches (llama-kv-cache-dsv4.cpp)."""
ROWS_OF_POOLED_KEYS = {"glm5-next": 3, "qwen4exp": 2}
"""Indexers that pool keys keep so many rows a token (``indexer_kpool_row``)."""
GLM_5_2_TOKENS = 1 << 20
"""A ``glm-dsa`` trained for so many shares indexers, where the file does not say otherwise."""

CACHES_PREDICTION_LAYERS = (
    *(name for name in HYBRID_BY_HEADS if name != "glm5-next"),
    *HYBRID_BY_FEED_FORWARD,
    HYBRID_IN_EVERY_LAYER,
    "hy_v4",
    "minimax-m3",
    COMPRESSED,
)
"""The model's own context, too, keeps a cache for the layers of multi-token prediction."""

EXACT = NO_CACHE.union(
    _PLAIN,
    WINDOWS,
    RECURRENT,
    HYBRID_BY_HEADS,
    HYBRID_BY_FEED_FORWARD,
    HYBRID_BY_INTERVAL,
    INDEXED,
    [HYBRID_IN_EVERY_LAYER],
)
"""Those whose caches are known to the byte; of eagle3, dflash and gemma4-assistant, which only
draft for another model, they depend on that one."""
