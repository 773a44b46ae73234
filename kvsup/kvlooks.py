"""What each rule of ``kvsup/kvrules.py`` sees in a setup, in words, and whether it is broken."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kvsup.kvtypes import FlashAttention, KVPair, parse_kv_pair
from kvsup.modelshape import Layer, ModelShape

Half = Literal["K", "V"]

_REPORTED = "reported, not tried"
_ROTATED_MULTIPLE = 64
_ENOUGH_BYTES = 34
"""Bytes of 32 elements of q8_0; a K with fewer counts as low in bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a llama-server is to be started with, as far as the rules look at it."""

    pair: KVPair
    flash_attention: FlashAttention = "auto"
    shape: ModelShape | None = None
    """None where the weights could not be read: what depends on them is not known."""
    kv_types: Collection[str] | None = None
    """The names that the binary takes; None where it was not asked."""
    num_ctx: int | None = None
    """Tokens of one request."""
    layer_types: Sequence[tuple[str, str]] = ()
    """ik_llama.cpp's flags for the first and last layers, each with its value ``TYPE,N``."""
    unrotated_because: str | None = None
    """Why this binary rotates no activations, None where it does so by itself."""
    draft: KVPair | None = None
    """The types of the draft model's cache, None where there is no draft model."""
    draft_shape: ModelShape | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What a rule found."""

    text: str
    is_broken: bool = False


def _shape(setup: Setup) -> ModelShape:
    """Return the shape, of which a rule says in ``needs`` that it must be there."""
    if setup.shape is None:
        raise ValueError("a rule looks at a shape that it does not need")
    return setup.shape


def _is_without_flash(setup: Setup) -> bool:
    """Say whether flash attention will be off; Grok switches it off by itself."""
    is_grok = setup.shape is not None and setup.shape.architecture == "grok"
    return setup.flash_attention == "off" or is_grok


def _is_latent(shape: ModelShape) -> bool:
    return shape.is_latent or shape.architecture == "deepseek4"


def _has_cache(shape: ModelShape) -> bool:
    return any(layer.has_cache for layer in shape.layers)


def known_types(setup: Setup) -> Observed:
    """Look whether the binary takes both types."""
    try:
        parse_kv_pair(str(setup.pair), allowed=setup.kv_types)
    except ValueError as error:
        return Observed(str(error), is_broken=True)
    return Observed(str(setup.pair))


def one_type(setup: Setup) -> Observed | None:
    """Look, for latent attention, whether K and V have one type."""
    shape, pair = _shape(setup), setup.pair
    if not _is_latent(shape):
        return None
    if pair.k == pair.v:
        return Observed(f"{shape.architecture}, {pair}")
    text = f"{shape.architecture} needs one type for K and V, not {pair}"
    return Observed(text, is_broken=True)


def grok_values(setup: Setup) -> Observed | None:
    """Look, for Grok, whether V is plain."""
    if _shape(setup).architecture != "grok":
        return None
    if not setup.pair.v.is_quantized:
        return Observed(f"grok, V {setup.pair.v}")
    text = f"grok runs without flash attention, which quantized V ({setup.pair.v}) needs"
    return Observed(text, is_broken=True)


def flash_for_values(setup: Setup) -> Observed | None:
    """Look whether a quantized V gets the flash attention that it needs."""
    v = setup.pair.v
    if not v.is_quantized:
        return None
    if setup.flash_attention != "off":
        return Observed(f"V {v}, flash attention {setup.flash_attention}")
    return Observed(f"quantized V ({v}) needs flash attention, which is off", is_broken=True)


def key_blocks(setup: Setup) -> Observed | None:
    """Look whether the blocks of K divide the heads, where flash attention may be used."""
    return None if _is_without_flash(setup) else _blocks(setup, "K")


def value_blocks(setup: Setup) -> Observed | None:
    """Look whether the blocks of V divide the heads, where flash attention may be used."""
    return None if _is_without_flash(setup) else _blocks(setup, "V")


def key_blocks_without_flash(setup: Setup) -> Observed | None:
    """Look whether the blocks of K divide the heads, where flash attention is off."""
    observed = _blocks(setup, "K") if _is_without_flash(setup) else None
    if observed is None or not observed.is_broken:
        return observed
    text = (
        f"{observed.text}: without flash attention it loads all the same, and answers NaN or "
        "nonsense with status 200"
    )
    return Observed(text, is_broken=True)


def _blocks(setup: Setup, half: Half) -> Observed | None:
    """Return whether the blocks of one half divide the heads of every layer, cached or not."""
    kv_type = setup.pair.k if half == "K" else setup.pair.v
    block = kv_type.block_elements
    if block is None or block == 1:
        return None
    sizes = _head_sizes(_shape(setup).layers, half)
    if not sizes:
        return None
    for size in sizes:
        if size % block:
            return Observed(
                f"{half} as {kv_type} is stored in blocks of {block}, "
                f"which do not divide this model's heads of {size}",
                is_broken=True,
            )
    return Observed(f"{half} {kv_type} in blocks of {block}, heads of {_listed(sizes)}")


def _head_sizes(layers: Iterable[Layer], half: Half) -> list[int]:
    """Return the sizes that there are; a layer without attention has none."""
    sizes = (layer.head_k if half == "K" else layer.head_v for layer in layers)
    return [size for size in dict.fromkeys(sizes) if size]


def _listed(sizes: Sequence[int]) -> str:
    return " and ".join(map(str, sizes))


def used_types(setup: Setup) -> Observed | None:
    """Look, for a model without a KV cache, whether types are given in vain."""
    shape = _shape(setup)
    if _has_cache(shape):
        return None
    if setup.pair.k.name == setup.pair.v.name == "f16":
        return Observed(f"{shape.architecture} has no KV cache")
    text = f"{shape.architecture} has no KV cache: {setup.pair} has no effect"
    return Observed(text, is_broken=True)


def rotated_keys(setup: Setup) -> Observed | None:
    """Look whether llama.cpp rotates a quantized K."""
    return _rotated(setup, "K")


def rotated_values(setup: Setup) -> Observed | None:
    """Look whether llama.cpp rotates a quantized V; latent attention stores none."""
    return None if _is_latent(_shape(setup)) else _rotated(setup, "V")


def _rotated(setup: Setup, half: Half) -> Observed | None:
    """Return whether llama.cpp rotates one half; layers with and without a window are two caches.

    A fork's own types are left out: what a fork rotates is not known.
    """
    shape = _shape(setup)
    kv_type = setup.pair.k if half == "K" else setup.pair.v
    is_stock = kv_type.block_elements not in {None, 1}
    if not is_stock or not _has_cache(shape) or setup.unrotated_because:
        return None
    reason = _unrotated_because(shape, half)
    if reason is None:
        return Observed(f"{half} {kv_type}, heads of {_listed(_head_sizes(shape.layers, half))}")
    text = f"{half} as {kv_type} is not rotated, and so loses more than elsewhere: {reason}"
    return Observed(text, is_broken=True)


def _unrotated_because(shape: ModelShape, half: Half) -> str | None:
    """Return why one half is not rotated, or None.

    The first layer decides for all caches (n_embd_head_k() of llama-hparams.cpp is that of layer
    0), and in each cache the heads must be alike. Of latent attention the log tells a rotation that
    the graph does not have (tried on b11434 and b10434).
    """
    if _is_latent(shape):
        return "multi-head latent attention is computed without"
    for has_window in (False, True):
        layers = (la for la in shape.layers if la.has_cache and la.has_window == has_window)
        if len(sizes := _head_sizes(layers, half)) > 1:
            return f"heads of {_listed(sizes)} in one cache"
    first = _head_sizes(shape.layers, half)[0]
    if first % _ROTATED_MULTIPLE:
        return f"heads of {first} are no multiple of {_ROTATED_MULTIPLE}"
    return None


def rotation_on(setup: Setup) -> Observed | None:
    """Look whether a quantized pair is run by a binary that rotates by itself."""
    halves = (setup.pair.k, setup.pair.v)
    if not any(half.block_elements not in {None, 1} for half in halves):
        return None
    if setup.unrotated_because is None:
        return Observed("rotated where the head size allows")
    text = f"{setup.pair} is not rotated, and so loses more: {setup.unrotated_because}"
    return Observed(text, is_broken=True)


def distrusted(
    architectures: Collection[str], is_bad: Callable[[KVPair], bool], text: str
) -> Callable[[Setup], Observed | None]:
    """Return a look at the families that lose more than others by some pairs."""

    def look(setup: Setup) -> Observed | None:
        architecture = _shape(setup).architecture
        if architecture not in architectures:
            return None
        if not is_bad(setup.pair):
            return Observed(f"{architecture}, {setup.pair}")
        return Observed(f"{architecture} with {setup.pair}: {text} ({_REPORTED})", is_broken=True)

    return look


def has_low_bit_keys(pair: KVPair) -> bool:
    """Say whether K has fewer bits than q8_0; a type of unknown size counts as such."""
    return (pair.k.row_bytes(32) or 0) < _ENOUGH_BYTES


def is_quantized(pair: KVPair) -> bool:
    """Say whether a half is quantized."""
    return pair.k.is_quantized or pair.v.is_quantized


def has_quantized_keys(pair: KVPair) -> bool:
    """Say whether K is quantized."""
    return pair.k.is_quantized


def trained_context(setup: Setup) -> Observed | None:
    """Look whether the context is no more than the model was trained for."""
    trained = _shape(setup).n_ctx_train_tokens
    if setup.num_ctx is None or not trained:
        return None
    if setup.num_ctx <= trained:
        return Observed(f"num_ctx {setup.num_ctx}, trained for {trained}")
    text = f"num_ctx {setup.num_ctx} is more than the {trained} tokens it was trained for"
    return Observed(text, is_broken=True)


def known_layer_types(setup: Setup) -> Observed | None:
    """Look whether the binary takes the types for the first and last layers."""
    if not setup.layer_types:
        return None
    for flag, value in setup.layer_types:
        name, _, n_layers = value.partition(",")
        if name not in (setup.kv_types or ()) or not n_layers.isdecimal():
            taken = ", ".join(setup.kv_types or ())
            text = f"{flag} {value}: write TYPE,N with a type of this llama-server: {taken}"
            return Observed(text, is_broken=True)
    return Observed(" ".join(f"{flag} {value}" for flag, value in setup.layer_types))
