"""What has been measured of KV pairs, as it is kept: speeds, losses, and which pair was found best.

Plain values that are written to the state folder and read back; how they come about is
``kvsup/tuning/``'s, how they are judged ``kvsup/divergence.py``'s and ``kvsup/pareto.py``'s.
"""

from typing import Literal

from msgspec import Struct

Goal = Literal["accurate", "balanced", "small", "fast"]
"""What a person wants of a pair."""

Method = Literal["server", "perplexity"]
"""How losses were measured: teacher forcing through llama-server, or by llama-perplexity."""


class Speed(Struct, frozen=True, kw_only=True):
    """Speeds behind ``depth_tokens`` tokens that the KV cache holds already."""

    depth_tokens: int
    prompt_tokens_per_s: float
    generation_tokens_per_s: float


class SpeedProbe(Struct, frozen=True, kw_only=True):
    """A pair beside f16:f16 on one binary, device and architecture, at the same depth."""

    pair: str
    speed: Speed
    baseline: Speed
    graph_splits: int | None = None
    """Of the pair's graph, as the log told it."""
    baseline_splits: int | None = None

    @property
    def prompt_ratio(self) -> float:
        """Return the pair's prompt speed as a part of f16:f16's."""
        return self.speed.prompt_tokens_per_s / self.baseline.prompt_tokens_per_s

    @property
    def ratios(self) -> tuple[float, float]:
        """Return both ratios, of prompts and of generation."""
        return self.prompt_ratio, self.generation_ratio

    @property
    def generation_ratio(self) -> float:
        """Return the pair's generation speed as a part of f16:f16's."""
        return self.speed.generation_tokens_per_s / self.baseline.generation_tokens_per_s


class TokenScores(Struct, frozen=True, kw_only=True):
    """What a pair makes of each scored token; but for ``blocks`` all have one element a token."""

    kld_nats: tuple[float, ...]
    """KL divergence from f16:f16."""
    is_same_top: tuple[bool, ...]
    """The most likely token is that of f16:f16."""
    logprob: tuple[float, ...]
    """Of the token that stands there, under this pair."""
    reference_logprob: tuple[float, ...]
    """The same under f16:f16."""
    blocks: tuple[int, ...]
    """Tokens of each block (conversation or chunk), in order: what is resampled as one."""


class Quality(Struct, frozen=True, kw_only=True):
    """What a pair loses against f16:f16, over all scored tokens."""

    n_tokens: int
    mean_kld_nats: float
    low_kld_nats: float
    """Lower end of the 95 % interval of the mean, by block bootstrap."""
    high_kld_nats: float
    p999_kld_nats: float
    max_kld_nats: float
    same_top: float
    """Part of tokens, 0 to 1."""
    perplexity_ratio: float


class Trajectory(Struct, frozen=True, kw_only=True):
    """Greedy answers beside those of f16:f16, one element a prompt."""

    first_difference: tuple[int | None, ...]
    """Index of the first token that differs; None where none does."""
    lengths: tuple[int, ...]
    """Tokens compared."""
    same_tool_calls: tuple[bool, ...] = ()
    """For each prompt of ``--tools``: the calls are the same."""


class PairMeasurement(Struct, frozen=True, kw_only=True):
    """All that one study knows of one pair; None is not measured."""

    pair: str
    k_bytes: int
    v_bytes: int
    """As allocated at the study's context."""
    is_exact: bool = True
    scratch_bytes: int = 0
    """More compute buffer than f16:f16 needs."""
    quality: Quality | None = None
    predicted_kld_nats: float | None = None
    """From its two halves, where it was not worth measuring: K's loss and V's added."""
    speeds: tuple[Speed, ...] = ()
    trajectory: Trajectory | None = None
    verdict: str = ""
    """Where attention runs, as far as is known: ``fast``, ``converted``, ``cpu`` …"""
    failure: str | None = None
    """Why it could not be measured, or is refused."""


class Tuned(Struct, frozen=True, kw_only=True):
    """What a study found for one model, binary and machine."""

    model: str
    binary: str
    measured_at: str
    """ISO date and time, UTC."""
    picks: dict[str, str]
    """Pair for each goal that has one."""
    sentence: str
    """What was found, for a person."""


class Probes(Struct, frozen=True, kw_only=True):
    """All probes of one binary, device and model shape, by pair."""

    by_pair: dict[str, SpeedProbe] = {}


class SizesMeasured(Struct, frozen=True, kw_only=True):
    """What one load took, as the log told it."""

    num_ctx: int
    """Tokens of one request in that load."""
    bytes_by_device: dict[str, int]
    """Weights, KV, state and buffers in ``RAM`` and in each device's memory."""
    mapped_bytes: int
    """The part of ``RAM`` that is the mapped model file."""
    k_bytes: int
    v_bytes: int
    graph_splits: int | None = None
    """Of the graph of one token; None: not told."""
    load_s: float = 0.0
    """From the start of the process until it served; 0: not told."""

    @property
    def total_bytes(self) -> int:
        """All of it, in all memories."""
        return sum(self.bytes_by_device.values())


class TypeSize(Struct, frozen=True, kw_only=True):
    """The size of one KV type that kvsup does not know, as a load told it."""

    bytes_per_element: float
    seen_bytes: int
    """Of the half cache that told it: the log is rounded, so the largest is the most exact."""


class TypeSizes(Struct, frozen=True, kw_only=True):
    """Sizes of KV types that loads of one binary told, by name."""

    by_type: dict[str, TypeSize] = {}


class BinaryFacts(Struct, frozen=True, kw_only=True):
    """What a binary tells of itself only when it loads a model."""

    fa_quants: tuple[str, ...] | None = None
    """Pairs ``k-v`` with CUDA kernels of their own; None: not told."""
