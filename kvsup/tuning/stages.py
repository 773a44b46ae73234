"""How a study is cut to its time: how much is measured of how many pairs, and of which. Pure."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from kvsup.kvtypes import KVPair
from kvsup.pareto import ALWAYS, SMALL_KLD_NATS, front, predicted
from kvsup.units import format_duration

Stage = Literal["reference", "screen", "measure", "cross-check"]

MAX_SLOWNESS = 10.0
"""A pair that takes so many times as long as f16:f16 is given up: no goal is served by it."""
LEAST_PATIENCE_S = 60.0
"""With one pair, however little was planned for it."""
OVERRUN = 2.0
"""So many times as long as was planned a pair may take that was begun, though time is up."""
HOPELESS_KLD_NATS = 3 * SMALL_KLD_NATS
"""Pairs predicted to lose more serve no goal."""

MAX_FULL_TOKENS = 4096
"""More is for tables of tails."""
MIN_FULL_TOKENS = 256
MAX_SCREEN_TOKENS = 512
MIN_SCREEN_TOKENS = 64
PROMPTS = 30
"""Chats answered greedily: fewer say nothing of how soon answers part."""
SPEED_ROUNDS = 2
"""At each depth; the faster one counts, since whatever else runs only ever slows one down."""

_PLANNED = 0.33
"""Part of the time that is planned for. What f16:f16 takes is known, not how much slower other
pairs are; and llama-perplexity is asked in what is left."""
_SCREEN_PART = 0.2
_DEEP_PART = 0.3
_MIN_DEEP_TOKENS = 512
_SLOWER_DEEP = 1.5
"""How much longer a prompt takes on its way to the depth: the cache is read, too."""
_BASELINES = 2
"""Full measurements beside the finalists': the reference and its floor."""
_SPEED_TOKENS = (128, 32)
"""Of a prompt and of an answer, in each round."""

_LEVELS = ((10, 24), (8, 24), (8, 16), (6, 16), (4, 8))
"""Finalists and tokens of a greedy answer, the first that leaves tokens enough to score, and time
to look at speeds at depth."""


class Costs(Struct, frozen=True, kw_only=True):
    """Seconds that f16:f16 took on this machine."""

    load_s: float
    score_s: float
    """A scored token."""
    answer_s: float
    """A generated token."""
    prompt_s: float
    """A token of a prompt."""


class Schedule(Struct, frozen=True, kw_only=True):
    """How much is measured; kept, so that a study that goes on finds what it measured before."""

    screen_tokens: int
    """Scored for each type alone."""
    full_tokens: int
    """Scored for each finalist."""
    n_finalists: int
    answer_tokens: int
    """Of each greedy answer."""
    deep_tokens: int
    """Depth of the second measurement of speeds; 0: there is none."""
    costs: Costs

    @property
    def answers_s(self) -> float:
        """Return the seconds that the greedy answers of one pair take."""
        return _answers_s(self.costs, self.answer_tokens)

    @property
    def speeds_s(self) -> float:
        """Return the seconds that the speeds of one pair take."""
        return _speeds_s(self.costs, self.deep_tokens)

    @property
    def screen_s(self) -> float:
        """Return the seconds that one type alone takes."""
        return self.costs.load_s + self.screen_tokens * self.costs.score_s

    @property
    def reference_s(self) -> float:
        """Return the seconds that the reference takes, once its costs are known."""
        return self.full_tokens * self.costs.score_s + self.answers_s

    @property
    def full_s(self) -> float:
        """Return the seconds that one finalist takes."""
        return self.costs.load_s + self.reference_s + self.speeds_s

    def expected_s(self, n_halves: int) -> float:
        """Return the seconds that all takes that follows the costs, but for llama-perplexity."""
        return n_halves * self.screen_s + self.reference_s + (1 + self.n_finalists) * self.full_s


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a study is, in seconds of expected work."""

    stage: Stage
    what: str
    """The pair at work."""
    done_s: float
    total_s: float
    left_s: float
    """At the pace that was seen so far."""


@dataclass(frozen=True, slots=True)
class PairDone:
    """A pair was measured."""

    stage: Stage
    pair: str
    mean_kld_nats: float


@dataclass(frozen=True, slots=True)
class PairFailed:
    """A pair could not be measured; the study goes on."""

    stage: Stage
    pair: str
    reason: str


@dataclass(frozen=True, slots=True)
class Noted:
    """Something goes otherwise than was asked for."""

    text: str


Event = Progress | PairDone | PairFailed | Noted


def schedule(
    costs: Costs,
    *,
    budget_s: float,
    n_halves: int,
    n_wanted: int | None,
    max_deep_tokens: int,
) -> Schedule:
    """Return how much fits in ``budget_s``.

    Args:
        costs: of f16:f16.
        budget_s: what is left of the time.
        n_halves: types to screen alone; 0 where the pairs were named.
        n_wanted: pairs to measure in full; None: as many as fit.
        max_deep_tokens: the greatest depth that the context holds.
    """
    time_s = _PLANNED * budget_s
    screen_tokens = 0
    if n_halves:
        affordable = (_SCREEN_PART * time_s / n_halves - costs.load_s) / costs.score_s
        screen_tokens = _clamped(affordable, MIN_SCREEN_TOKENS, MAX_SCREEN_TOKENS)
        time_s -= n_halves * (costs.load_s + screen_tokens * costs.score_s)
    levels = _LEVELS if n_wanted is None else [(n_wanted, answer) for _, answer in _LEVELS]
    tokens, n_finalists, answer_tokens, deep_tokens = 0.0, 0, 0, 0
    for n_finalists, answer_tokens in levels:
        each_s = time_s / (n_finalists + _BASELINES)
        deep_tokens = _deep(costs, _DEEP_PART * each_s, max_deep_tokens)
        rest_s = each_s - costs.load_s - _speeds_s(costs, deep_tokens)
        tokens = (rest_s - _answers_s(costs, answer_tokens)) / costs.score_s
        if tokens >= MIN_FULL_TOKENS and (deep_tokens or max_deep_tokens < _MIN_DEEP_TOKENS):
            break
    return Schedule(
        screen_tokens=screen_tokens,
        full_tokens=_clamped(tokens, MIN_SCREEN_TOKENS, MAX_FULL_TOKENS),
        n_finalists=n_finalists,
        answer_tokens=answer_tokens,
        deep_tokens=deep_tokens,
        costs=costs,
    )


def patience_s(step_s: float, *, left_s: float) -> float:
    """Return how long a step may take that should take ``step_s``, with ``left_s`` of the time."""
    in_time_s = max(left_s, OVERRUN * step_s)
    return max(min(MAX_SLOWNESS * step_s, in_time_s), LEAST_PATIENCE_S)


def shortfall(plan: Schedule, n_halves: int, *, spent_s: float, budget_s: float) -> str:
    """Say what is missing where not even the least fits in the time; else return an empty text.

    Args:
        plan: the schedule.
        n_halves: types to screen alone.
        spent_s: what the costs took to learn.
        budget_s: all of the time.
    """
    needed_s = spent_s + plan.expected_s(n_halves)
    if needed_s <= budget_s:
        return ""
    time = format_duration(60 * math.ceil(needed_s / 60))
    fewer = ", or name fewer --pairs" if plan.n_finalists > 1 else ""
    return f"it needs about {time} with this model; give --budget-time {time}{fewer}"


def _clamped(tokens: float, least: int, most: int) -> int:
    """Return a number of tokens in steps of 64."""
    return min(max(int(tokens) // 64 * 64, least), most)


def _deep(costs: Costs, each_s: float, max_deep_tokens: int) -> int:
    """Return the greatest depth that is read in ``each_s``, by halves; 0 below 512 tokens."""
    deep = max_deep_tokens
    while deep >= _MIN_DEEP_TOKENS and _filling_s(costs, deep) > each_s:
        deep //= 2
    return deep if deep >= _MIN_DEEP_TOKENS else 0


def _answers_s(costs: Costs, answer_tokens: int) -> float:
    return PROMPTS * answer_tokens * costs.answer_s


def _speeds_s(costs: Costs, deep_tokens: int) -> float:
    n_prompt, n_answer = _SPEED_TOKENS
    each_s = SPEED_ROUNDS * (n_prompt * costs.prompt_s + n_answer * costs.answer_s)
    return each_s + (_filling_s(costs, deep_tokens) + each_s if deep_tokens else 0.0)


def _filling_s(costs: Costs, deep_tokens: int) -> float:
    return deep_tokens * costs.prompt_s * _SLOWER_DEEP


def finalists(
    pairs: Collection[KVPair],
    sizes: Mapping[KVPair, int],
    losses: Mapping[KVPair, float],
    *,
    n_most: int,
    max_bytes: float = math.inf,
    max_kld: float | None = None,
) -> tuple[KVPair, ...]:
    """Return the pairs to measure in full, those first that a study broken off misses most.

    They are the pairs that people ask for, and of the front of predicted losses against bytes what
    fits and is not hopeless, evenly thinned to ``n_most`` in all. Where nothing can be predicted,
    since K and V must be of one type, all are kept.

    Args:
        pairs: all that can run, without f16:f16.
        sizes: bytes of each.
        losses: measured of types alone, in nats.
        n_most: how many; the pairs that people ask for are never left out.
        max_bytes: what a pair may take.
        max_kld: a limit on the loss, where it may be greater than any goal's.
    """
    hopeless_nats = max(HOPELESS_KLD_NATS, 3 * (max_kld or 0.0))
    fitting = [pair for pair in pairs if sizes[pair] <= max_bytes]
    asked = [pair for name in ALWAYS for pair in pairs if str(pair) == name]
    predictions = {pair: predicted(pair, losses) for pair in fitting}
    unknown = [pair for pair, loss in predictions.items() if loss is None]
    known = {pair: loss for pair, loss in predictions.items() if loss is not None}
    ordered = front(known, lambda pair: (sizes[pair], known[pair]))
    useful = [p for p in ordered if known[p] <= hopeless_nats and p not in asked]
    # Where only some halves are known, what is not predicted has one that could not be measured.
    unmeasured = [] if losses else [pair for pair in unknown if pair not in asked]
    left = unmeasured + useful
    return (*asked, *_thinned(left, max(0, n_most - len(asked))))


def _thinned(pairs: Sequence[KVPair], n_most: int) -> list[KVPair]:
    """Return at most ``n_most`` of ``pairs``, evenly, first and last among them."""
    if len(pairs) <= n_most:
        return list(pairs)
    if n_most < 2:
        return list(pairs[:n_most])
    return [pairs[round(i * (len(pairs) - 1) / (n_most - 1))] for i in range(n_most)]


class Meter:
    """Adds up expected seconds as they are worked off, and tells how far a study is."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._stage: Stage = "reference"
        self._what = ""
        self._done_s = 0.0
        self._left_s = 0.0
        self._step_s = 0.0
        self._ticked_s = 0.0
        self._pace = 1.0

    def expect(self, left_s: float) -> None:
        """Say how much is to be done yet, the next step included."""
        self._left_s = left_s

    def begin(self, stage: Stage, what: str, step_s: float) -> None:
        """Begin a step that should take so long."""
        self._stage, self._what, self._step_s, self._ticked_s = stage, what, step_s, 0.0
        self.tick(0.0)

    def tick(self, expected_s: float) -> None:
        """Count so much of the step as done."""
        self._ticked_s = min(self._step_s, self._ticked_s + expected_s)
        left_s = max(0.0, self._left_s - self._ticked_s)
        done_s = self._done_s + self._ticked_s
        self._emit(Progress(self._stage, self._what, done_s, done_s + left_s, left_s * self._pace))

    def end(self, took_s: float) -> None:
        """End the step; what it took beside what was expected corrects the time that is left."""
        if self._step_s > 0:
            self._pace = (self._pace + took_s / self._step_s) / 2
        self.tick(self._step_s)
        self._done_s += self._step_s
        self._left_s = max(0.0, self._left_s - self._step_s)
        self._step_s = self._ticked_s = 0.0
