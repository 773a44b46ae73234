"""What became of the prompts of each model since kvsup started."""

from collections import defaultdict
from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Tokens of the prompts of one model, over all its processes.

    Counted are requests that came to their end. Those for vectors are not: they have no cache.
    """

    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    """Of these: not read, since they lay in a slot, in the prompt cache or in a file."""
    n_restored_tokens: int = 0
    """Of these: taken up from a file."""

    @property
    def hit_rate(self) -> float | None:
        """Return the share of prompt tokens that were not read again; None before any came."""
        if not self.n_prompt_tokens:
            return None
        return round(max(0, self.n_cached_tokens) / self.n_prompt_tokens, 4)


class Tallies:
    """The tally of each model, by its name: a model that is edited goes on with its own."""

    def __init__(self) -> None:
        self._by_model: defaultdict[str, Tally] = defaultdict(Tally)

    def of(self, model: str) -> Tally:
        """Return the tally of a model."""
        return self._by_model[model]
