"""Teacher forcing by llama-server alone: each scored token is one decode step of its own.

The cache thus holds what decode steps of this pair wrote, errors that pile up included. There are
two ways; where both can be taken their log-probabilities agree (b10434, b11434):

- For the token at ``i`` the ids before it are the prompt and one token is asked for. All of the
  prompt but its last id is in the KV cache already, so exactly one is computed.
- With a sliding window without ``swa_full`` the cache is restored from a checkpoint instead, and
  six tokens are read for one (Gemma 3); so there a passage is one generation under a grammar of
  token ids (``root ::= <[504]> <[28899]>``). Recurrent state is treated alike, from the source
  alone.

The divergence. ``p`` is the next token's distribution under f16:f16, ``q`` under the pair. Of the
reference its ``K`` likeliest ids are kept, of the pair its ``K'``. Let ``S`` be the ids of which
both are known: those in both lists, and the token that stands there, whose log-probability
llama-server always tells (it is forced by a bias; log-probabilities are those before any sampler).
All other ids are one rest, ``p_r = 1 - sum(p over S)`` and ``q_r`` likewise. Then, in nats,

    KLD = sum over S of p * (ln p - ln q)  +  p_r * (ln p_r - ln q_r)

is the KL divergence of the two distributions coarsened to ``S`` and the rest. By the log-sum
inequality it is never more than the true one, and equal where ``p/q`` is constant over the rest.
Rests below 1e-6 are noise of 32-bit floats; ``q_r`` counts as 1e-6 at least, which only makes the
sum smaller, so that noise is not told as a loss. A probability of 0, whose logarithm llama-server
tells as the lowest 32-bit float (server-task.cpp, b11434), counts as ``LEAST_LOGPROB_NATS``.

What K and K' cost, and how much of the divergence they find, stands at ``TOP_REFERENCE``.
"""

import math
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from kvsup.measures import TokenScores
from kvsup.plan import Plan
from kvsup.tuning.sample import Passage, Sample
from kvsup.tuning.trial import Trial, TrialFailed

TOP_REFERENCE = 256
"""K, with ``TOP_CANDIDATE`` as K': 87 to 90 % of the true divergence are found.

K of 64 finds 71 to 79 %, of 1024 94 to 96 %; with q8_0:q8_0 and q4_0:q4_0, on 40 tokens of plain
prose, against all 49152 ids (b11434, SmolLM2). Chat text was not compared with the truth.
"""

TOP_CANDIDATE = 512
"""K'. A token costs 7.0 ms with 1, 7.7 with 256, 10.7 with 1024, over 14 tokens at little depth.

Over 300 tokens of the built-in sample it is 9.4 ms with 256 and 10.1 with 512 (b11434, SmolLM2,
1 thread; b10434 within 10 %). Gemma's 262144 ids under a grammar cost 28 ms with 256.
"""

LEAST_LOGPROB_NATS = -149 * math.log(2)
"""Of the smallest 32-bit float, -103.3: less cannot be told from the impossible."""

_REST_FLOOR = 1e-6
_FORCING_BIAS = 1e9


class Reference(Struct, frozen=True, kw_only=True):
    """What f16:f16 makes of a sample: for each scored token ``n_top`` ids, likeliest first."""

    n_top: int
    targets: bytes
    """The scored tokens, 32-bit integers."""
    target_logprobs: bytes
    """Of the scored tokens, 32-bit floats."""
    ids: bytes
    """``n_top`` for each scored token, 32-bit integers."""
    logprobs: bytes
    """Of ``ids``, 32-bit floats."""

    @classmethod
    def of(
        cls,
        *,
        targets: Iterable[int],
        target_logprobs: Iterable[float],
        tops: Sequence[Mapping[int, float]],
    ) -> "Reference":
        """Return what is known of each scored token; ``tops`` are of one size, likeliest first."""
        return cls(
            n_top=len(tops[0]),
            targets=array("i", targets).tobytes(),
            target_logprobs=array("f", target_logprobs).tobytes(),
            ids=array("i", (id_ for top in tops for id_ in top)).tobytes(),
            logprobs=array("f", (value for top in tops for value in top.values())).tobytes(),
        )

    def top(self, index: int) -> dict[int, float]:
        """Return the log-probabilities by id that are kept for the scored token ``index``."""
        part = slice(index * self.n_top, (index + 1) * self.n_top)
        ids, logprobs = memoryview(self.ids).cast("i"), memoryview(self.logprobs).cast("f")
        return dict(zip(ids[part], logprobs[part], strict=True))


class _Likely(Struct, frozen=True):
    id: int
    logprob: float


class _Token(Struct, frozen=True):
    id: int
    logprob: float
    """Of the forced token."""
    top_logprobs: tuple[_Likely, ...]
    """Likeliest first."""

    @property
    def nats(self) -> float:
        return floored(self.logprob)

    @property
    def top(self) -> dict[int, float]:
        return {one.id: floored(one.logprob) for one in self.top_logprobs}


class _Timings(Struct, frozen=True):
    prompt_n: int


class _Answer(Struct, frozen=True):
    completion_probabilities: tuple[_Token, ...]
    timings: _Timings


async def reference(
    trial: Trial,
    sample: Sample,
    *,
    n_probs: int = TOP_REFERENCE,
    on_token: Callable[[], None] | None = None,
) -> Reference:
    """Return what the pair on trial, which should be f16:f16, makes of each scored token.

    Args:
        trial: with at least the context that ``sample`` was prepared for.
        sample: what is read and scored.
        n_probs: K, at most the size of the vocabulary.
        on_token: called after each scored token.

    Raises:
        TrialFailed: the process died, or does not compute one token at a time.
    """
    targets: list[int] = []
    target_logprobs: list[float] = []
    tops: list[dict[int, float]] = []
    async for target, token in _forced(trial, sample, n_probs):
        targets.append(target)
        target_logprobs.append(token.nats)
        tops.append(token.top)
        if on_token is not None:
            on_token()
    return Reference.of(targets=targets, target_logprobs=target_logprobs, tops=tops)


async def score(
    trial: Trial,
    sample: Sample,
    reference: Reference,
    *,
    n_probs: int = TOP_CANDIDATE,
    on_token: Callable[[], None] | None = None,
) -> TokenScores:
    """Return what the pair on trial loses at each scored token.

    Args:
        trial: of the pair.
        sample: that of the reference, or ``Sample.first`` of it.
        reference: of f16:f16.
        n_probs: K'.
        on_token: called after each scored token.

    Raises:
        TrialFailed: as ``reference``.
        ValueError: the reference is of another sample.
    """
    targets = array("i", (target for passage in sample.passages for target in _scored(passage)))
    if not reference.targets.startswith(targets.tobytes()):
        raise ValueError("the reference is of another sample")
    reference_logprobs = memoryview(reference.target_logprobs).cast("f")[: len(targets)].tolist()
    klds: list[float] = []
    same_tops: list[bool] = []
    logprobs: list[float] = []
    async for target, token in _forced(trial, sample, n_probs):
        index = len(klds)
        p = reference.top(index)
        q = token.top
        same_tops.append(next(iter(p)) == next(iter(q)))
        p[target], q[target] = reference_logprobs[index], token.nats
        klds.append(coarse_kld_nats(p, q))
        logprobs.append(token.nats)
        if on_token is not None:
            on_token()
    return TokenScores(
        kld_nats=tuple(klds),
        is_same_top=tuple(same_tops),
        logprob=tuple(logprobs),
        reference_logprob=tuple(reference_logprobs),
        blocks=sample.blocks,
    )


def floored(logprob: float) -> float:
    """Return a log-probability as it counts, in nats: ``LEAST_LOGPROB_NATS`` at least."""
    return max(logprob, LEAST_LOGPROB_NATS)


def coarse_kld_nats(p: Mapping[int, float], q: Mapping[int, float]) -> float:
    """Return the KL divergence of ``q`` from ``p`` over their common ids and one rest, in nats.

    Args:
        p: natural log-probabilities by id; any part of the vocabulary.
        q: the same of the other distribution.
    """
    common = [(p[id_], q[id_]) for id_ in p if id_ in q]
    p_rest = 1.0 - math.fsum(math.exp(log_p) for log_p, _ in common)
    q_rest = 1.0 - math.fsum(math.exp(log_q) for _, log_q in common)
    total = math.fsum(math.exp(log_p) * (log_p - log_q) for log_p, log_q in common)
    if p_rest > 0.0:
        total += p_rest * math.log(p_rest / max(q_rest, _REST_FLOOR))
    return max(0.0, total)


async def _forced(trial: Trial, sample: Sample, n_probs: int) -> AsyncIterator[tuple[int, _Token]]:
    """Yield each scored token and what was known before it, one decode step each."""
    read = _stepped if _can_be_cut_back(trial.plan) else _generated
    for passage in sample.passages:
        async for scored in read(trial, passage, n_probs):
            yield scored


async def _stepped(
    trial: Trial, passage: Passage, n_probs: int
) -> AsyncIterator[tuple[int, _Token]]:
    """Ask for one token at a time; any build with ``n_probs`` can.

    At a torn one, too, so that the token before it has a decode step of its own; but a whole token
    is forced, since b10434 answers 500 to a text that ends within a character.
    """
    whole, torn = _scored(passage)[0], frozenset(passage.torn)
    for position in range(passage.scored_from, len(passage.tokens)):
        target = whole if position in torn else passage.tokens[position]
        body = {
            "prompt": passage.tokens[:position],
            "n_predict": 1,
            "logit_bias": [[target, _FORCING_BIAS]],
            **_asking(n_probs),
        }
        answer = await trial.ask("/completion", body, shape=_Answer)
        n_read = answer.timings.prompt_n
        if position > passage.scored_from and n_read != 1:
            raise _unforced(trial, f"{n_read} tokens were read for one")
        if position not in torn:
            yield target, answer.completion_probabilities[0]


async def _generated(
    trial: Trial, passage: Passage, n_probs: int
) -> AsyncIterator[tuple[int, _Token]]:
    """Have the whole passage generated, but for torn tokens; the grammar leaves no choice."""
    for run in passage.runs:
        targets = passage.tokens[run.start : run.stop]
        body = {
            "prompt": passage.tokens[: run.start],
            "n_predict": len(targets),
            "grammar": "root ::= " + " ".join(f"<[{target}]>" for target in targets),
            **_asking(n_probs),
        }
        answer = await trial.ask("/completion", body, shape=_Answer)
        told = answer.completion_probabilities
        if tuple(token.id for token in told) != targets:
            raise _unforced(trial, "this llama-server knows no grammars of token ids")
        for target, token in zip(targets, told, strict=True):
            yield target, token


def _asking(n_probs: int) -> dict[str, object]:
    return {
        "n_probs": n_probs,
        "cache_prompt": True,
        "temperature": 0,
        "samplers": [],
        "response_fields": ["completion_probabilities", "timings"],
    }


def _can_be_cut_back(plan: Plan) -> bool:
    """Say whether the cache can be continued at any token (server-context.cpp, b11434)."""
    shape = plan.file.shape
    has_short_window = shape.n_window_tokens > 0 and not plan.model.swa_full
    return not has_short_window and not any(layer.is_recurrent for layer in shape.layers)


def _unforced(trial: Trial, reason: str) -> TrialFailed:
    return TrialFailed(
        f"{trial.plan.name} with {trial.pair} cannot be scored token by token: {reason}"
    )


def _scored(passage: Passage) -> tuple[int, ...]:
    return tuple(passage.tokens[index] for index in passage.scored)
