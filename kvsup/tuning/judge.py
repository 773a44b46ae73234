"""The second opinion: losses by llama-perplexity, on the plain text of the conversations."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvsup.kvtypes import KVPair
from kvsup.measures import Quality
from kvsup.plan import Plan
from kvsup.tuning import perplexity
from kvsup.tuning.sample import Conversation

CHUNK_TOKENS = 512
MAX_CHUNKS = 4
"""So many order pairs as all of a text does (b11434, SmolLM2)."""
CHECK_CHUNKS = 2
"""So many do in 99.8 % of draws, which is enough for a second opinion."""

_MAX_FILE_BYTES = 1 << 29
"""Of f16:f16's logits, which lie in the folder for temporary files as long as they are needed."""


class Judge:
    """Asks llama-perplexity."""

    def __init__(self, tool: Path, plan: Plan, folder: Path, text: str, *, max_chunks: int) -> None:
        self._tool = tool
        self._plan = plan
        self._text = folder / "text"
        self._logits = folder / "logits"
        self.is_prepared = False
        """f16:f16 was run."""
        self._text.write_text(text, "utf-8")
        row_bytes = 2 * (plan.file.shape.n_vocab + 4)
        affordable = _MAX_FILE_BYTES // (CHUNK_TOKENS // 2 * row_bytes)
        self.n_chunks = min(max_chunks, max(1, affordable))

    @property
    def n_tokens(self) -> int:
        """Return how many tokens are read of each pair, at most."""
        return self.n_chunks * CHUNK_TOKENS

    async def prepare(self) -> None:
        """Run f16:f16, unless that was done.

        Raises:
            TrialFailed: it cannot be run.
        """
        if not self.is_prepared:
            await perplexity.base(
                self._tool,
                self._plan,
                self._text,
                self._logits,
                n_ctx=CHUNK_TOKENS,
                n_chunks=self.n_chunks,
            )
            self.is_prepared = True

    async def quality(self, pair: KVPair) -> Quality:
        """Return what ``pair`` loses; after ``prepare``.

        Raises:
            TrialFailed: it cannot be measured.
        """
        return await perplexity.divergence(
            self._tool,
            self._plan,
            pair,
            self._logits,
            n_ctx=CHUNK_TOKENS,
            n_chunks=self.n_chunks,
        )


@contextmanager
def judging(
    plan: Plan, conversations: Iterable[Conversation], *, max_chunks: int
) -> Iterator[Judge | None]:
    """Hold a judge of so many chunks; None where the build has no llama-perplexity."""
    tool = perplexity.find(plan.binary)
    if tool is None:
        yield None
        return
    text = "\n\n".join(
        one.text or "\n\n".join(message["content"] for message in one.messages)
        for one in conversations
    )
    with tempfile.TemporaryDirectory(prefix="kvsup-") as folder:
        yield Judge(tool, plan, Path(folder), text, max_chunks=max_chunks)
