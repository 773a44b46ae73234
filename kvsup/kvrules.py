"""What a model and a llama-server ask of a KV pair, known before the server is started.

The rules are the rows of ``RULES``, each with its source. A broken one refuses the pair, or warns
of it. llama-server b11434 exits on most that refuse (``llama_init_from_model`` of
llama-context.cpp), and on one it does not but should: with flash attention off, quantized K and a
head size that the block does not divide, it answers NaN or nonsense with status 200.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from kvsup import kvlooks
from kvsup.kvlooks import Observed, Setup
from kvsup.kvtypes import STOCK_TYPES, FlashAttention, KVPair, KVType, distance
from kvsup.modelshape import ModelShape

Verdict = Literal["ok", "warn", "refused", "unknown"]

_INIT = "llama_init_from_model in llama-context.cpp, b11434"
_ROTATION = "llama_kv_cache in llama-kv-cache.cpp, b11434; llama.cpp #21038"

_MISSING = {
    "shape": "the weights could not be read",
    "kv_types": "the llama-server was not asked",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of the table."""

    id: str
    severity: Literal["refuse", "warn"]
    """What becomes of a setup that breaks it."""
    expected: str
    source: str
    """File and build, or thread, that the rule is taken from."""
    look: Callable[[Setup], Observed | None]
    """Returns None where the rule does not concern a setup. ``needs`` are there."""
    needs: tuple[Literal["shape", "kv_types"], ...] = ("shape",)
    key: str = "kv_cache_type"
    """The key of the model that a person would change."""
    way_out: str = ""
    """What mends it beside another pair, worded to stand before "use …"."""
    names_nearest: bool = True


RULES = (
    Rule(
        id="known-types",
        severity="refuse",
        expected="both types are among those that the llama-server lists",
        source="its --help",
        look=kvlooks.known_types,
        needs=("kv_types",),
        names_nearest=False,
    ),
    Rule(
        id="one-type",
        severity="refuse",
        expected="latent attention: V has the type of K, though nothing of it is stored",
        source=f"{_INIT}; llama.cpp #26382",
        look=kvlooks.one_type,
    ),
    Rule(
        id="grok-values",
        severity="refuse",
        expected="Grok: V is not quantized",
        source=_INIT,
        look=kvlooks.grok_values,
    ),
    Rule(
        id="flash-for-values",
        severity="refuse",
        expected="flash attention for a quantized V",
        source=_INIT,
        look=kvlooks.flash_for_values,
        needs=(),
        way_out='set flash_attention = "auto"',
    ),
    Rule(
        id="key-blocks",
        severity="refuse",
        expected="the blocks of K divide the heads of every layer",
        source=_INIT,
        look=kvlooks.key_blocks,
    ),
    Rule(
        id="key-blocks-without-flash",
        severity="refuse",
        expected="the blocks of K divide the heads, which nothing checks without flash attention",
        source="tried on b11434 and b10434: NaN, nonsense or an abort",
        look=kvlooks.key_blocks_without_flash,
    ),
    Rule(
        id="value-blocks",
        severity="refuse",
        expected="the blocks of V divide the heads of every layer",
        source=_INIT,
        look=kvlooks.value_blocks,
    ),
    Rule(
        id="layer-types",
        severity="refuse",
        expected="the types of the first and last layers are among those that it lists",
        source="common.cpp of ik_llama.cpp, #1599",
        look=kvlooks.known_layer_types,
        needs=("kv_types",),
        key="extra_args",
        names_nearest=False,
    ),
    Rule(
        id="used-types",
        severity="warn",
        expected="types other than f16 only where there is a KV cache",
        source="create_memory in llama-model.cpp, b11434",
        look=kvlooks.used_types,
    ),
    Rule(
        id="rotation-on",
        severity="warn",
        expected="activations are rotated where a half is quantized",
        source=_ROTATION,
        look=kvlooks.rotation_on,
        needs=(),
        key="env",
        names_nearest=False,
    ),
    Rule(
        id="rotated-keys",
        severity="warn",
        expected="quantized K is rotated",
        source=_ROTATION,
        look=kvlooks.rotated_keys,
    ),
    Rule(
        id="rotated-values",
        severity="warn",
        expected="quantized V is rotated",
        source=_ROTATION,
        look=kvlooks.rotated_values,
    ),
    Rule(
        id="qwen2-keys",
        severity="warn",
        expected="Qwen up to 2.5: K of 8 bits at least",
        source="llama.cpp #6172, ollama #8332",
        look=kvlooks.distrusted(
            ("qwen", "qwen2", "qwen2moe", "qwen2vl"),
            kvlooks.has_low_bit_keys,
            "its keys have outliers that few bits cannot hold",
        ),
    ),
    Rule(
        id="gpt-oss",
        severity="warn",
        expected="gpt-oss: nothing is quantized",
        source="llama-cpp-turboquant #305",
        look=kvlooks.distrusted(
            ("gpt-oss",), kvlooks.is_quantized, "even q8_0:q8_0 changed one top token in four"
        ),
    ),
    Rule(
        id="gemma4",
        severity="warn",
        expected="Gemma 4: nothing is quantized",
        source="localbench on Gemma 4 31B and 26B-A4B",
        look=kvlooks.distrusted(
            ("gemma4",), kvlooks.is_quantized, "q8_0:q8_0 lost ten times what it loses elsewhere"
        ),
    ),
    Rule(
        id="deepseek4-keys",
        severity="warn",
        expected="DeepSeek V4: K is not quantized",
        source="llama.cpp #25382, #25391",
        look=kvlooks.distrusted(
            ("deepseek4",), kvlooks.has_quantized_keys, "gibberish on earlier builds"
        ),
    ),
    Rule(
        id="trained-context",
        severity="warn",
        expected="num_ctx is no more than the model was trained for",
        source="the key context_length of the weights",
        look=kvlooks.trained_context,
        key="num_ctx",
        names_nearest=False,
    ),
)
"""Every rule; those that refuse first, in the order in which the first broken one is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule says of one setup."""

    rule: str
    verdict: Verdict
    key: str
    expected: str
    observed: str
    evidence: str
    nearest: KVPair | None = None
    """The nearest pair that keeps this rule and all that refuse; None where no other pair helps."""
    way_out: str = ""

    @property
    def message(self) -> str:
        """What was observed and what to write instead, in one line."""
        uses = f"use {self.nearest}" if self.nearest else ""
        mend = f"{self.way_out}, or {uses}" if self.way_out and uses else self.way_out or uses
        return f"{self.observed}; {mend}" if mend else self.observed


@dataclass(frozen=True, slots=True)
class Violation:
    """Why a pair cannot work, and what can."""

    message: str
    """What is wrong; what to write instead."""
    nearest: KVPair
    """The nearest pair of stock types that breaks no rule."""


def violation(
    pair: KVPair, flash_attention: FlashAttention, shape: ModelShape | None
) -> Violation | None:
    """Return the first refusing rule that ``pair`` breaks, or None.

    Without a shape, since the model cannot be read, only the rules that hold for every model are
    applied.
    """
    setup = Setup(pair=pair, flash_attention=flash_attention, shape=shape)
    for found in _findings(setup):
        if found.verdict == "refused":
            return Violation(found.message, found.nearest or pair)
    return None


def nearest_pair(
    pair: KVPair,
    flash_attention: FlashAttention,
    shape: ModelShape | None,
    *,
    kv_types: Collection[str] | None = None,
) -> KVPair:
    """Return the pair of stock types nearest to ``pair`` that breaks no refusing rule.

    K is kept before V, and is never given fewer bits where that can be helped: errors in K cost
    more. ``kv_types`` are the names that the binary takes; None leaves that open.
    """
    setup = Setup(pair=pair, flash_attention=flash_attention, shape=shape, kv_types=kv_types)
    return _nearest(setup)


def findings(setup: Setup) -> list[Finding]:
    """Return what each rule that concerns ``setup`` says, in the order of the table.

    The draft model's pair is held to the same rules with the draft's shape; their ids begin with
    ``draft-`` and their key is ``draft_kv_cache_type``.
    """
    found = list(_findings(setup))
    if setup.draft is not None:
        draft = Setup(
            pair=setup.draft,
            shape=setup.draft_shape,
            flash_attention=setup.flash_attention,
            kv_types=setup.kv_types,
            unrotated_because=setup.unrotated_because,
        )
        found += [
            replace(each, rule=f"draft-{each.rule}", key="draft_kv_cache_type")
            for each in _findings(draft)
        ]
    return found


def _findings(setup: Setup) -> Iterator[Finding]:
    for rule in RULES:
        if lacking := _lacking(rule, setup):
            yield _finding(rule, "unknown", f"not known: {_MISSING[lacking]}")
        elif observed := rule.look(setup):
            if not observed.is_broken:
                yield _finding(rule, "ok", observed.text)
                continue
            nearest = _nearest(setup, keeping=rule) if rule.names_nearest else setup.pair
            yield replace(
                _finding(rule, "refused" if rule.severity == "refuse" else "warn", observed.text),
                nearest=nearest if nearest != setup.pair else None,
                way_out=rule.way_out,
            )


def _finding(rule: Rule, verdict: Verdict, observed: str) -> Finding:
    return Finding(
        rule=rule.id,
        verdict=verdict,
        key=rule.key,
        expected=rule.expected,
        observed=observed,
        evidence=rule.source,
    )


def _lacking(rule: Rule, setup: Setup) -> str | None:
    return next((name for name in rule.needs if getattr(setup, name) is None), None)


def _breaks(setup: Setup, rule: Rule) -> bool:
    observed = None if _lacking(rule, setup) else rule.look(setup)
    return observed is not None and observed.is_broken


def _nearest(setup: Setup, *, keeping: Rule | None = None) -> KVPair:
    """Return the nearest pair of stock types that breaks no rule about pairs that refuses.

    Where none is left it is the pair itself.
    """
    names = [n for n in STOCK_TYPES if setup.kv_types is None or n in setup.kv_types]
    rules = [rule for rule in RULES if rule is keeping or rule.severity == "refuse"]
    others = (
        replace(setup, pair=KVPair(KVType(k), KVType(v)), layer_types=())
        for k, v in product(names, repeat=2)
    )
    possible = [o.pair for o in others if not any(_breaks(o, rule) for rule in rules)]
    return min(possible, key=lambda other: distance(setup.pair, other), default=setup.pair)
