"""Make one unbroken stream of events out of the streams of several llama-servers.

A seam lies below every API's answer, on the bytes of llama-server, so that none of them knows of a
process that died. While nothing dies it looks for the last end of an event, and takes from each
what a death would need (``llama/transcript.py``), in some 1 µs an event (``bench/steps.py``).
"""

from kvsup.errors import UpstreamError
from kvsup.llama.counts import Spent
from kvsup.llama.resume import Continue, Replay
from kvsup.llama.splicing import Continued, Replayed, Restarted, Splice
from kvsup.llama.sse import MAX_EVENT_BYTES
from kvsup.llama.transcript import Transcript


class Seam:
    """Takes the bytes of one attempt after the other, gives those of one stream."""

    __slots__ = (
        "_n_before",
        "_path",
        "_rest",
        "_spent",
        "_splice",
        "transcript",
    )

    def __init__(self, path: str, *, n_answers: int = 1) -> None:
        """Make the seam of one request.

        Args:
            path: the route of llama-server.
            n_answers: how many answers a stream of ``/completion`` will hold, which does not say
                its end otherwise.
        """
        self._path = path
        self.transcript = Transcript(path, n_answers=n_answers)
        """What was delivered so far."""
        self._n_before = 0
        self._rest = b""
        self._splice: Splice | Restarted | None = None
        self._spent = Spent()

    def feed(self, data: bytes) -> bytes:
        """Return the events that ``data`` completes, but for what was delivered already.

        What is returned counts as delivered. After an exception nothing of ``data`` is.

        Raises:
            Diverged: a replay says something else than what was delivered.
            UpstreamError: an event is too long, or a replay's is none.
        """
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            if len(data) > MAX_EVENT_BYTES:
                raise UpstreamError(
                    f"llama-server sent an event of more than {MAX_EVENT_BYTES} bytes"
                )
            self._rest = data
            return b""
        self._rest = data[end:]
        block = data[:end]
        if self._splice is not None:
            block = self._splice.feed(block)
        self.transcript.add(block)
        return block

    def reopen(self, how: Replay | Continue, *, spent_ms: float | None = None) -> None:
        """Take what is fed from now on from a new process.

        Args:
            how: what the new process was asked for: the same request, or its ``continued_body``.
            spent_ms: from the request of the last attempt to its death; without it the time that
                it generated counts only where its events tell.
        """
        transcript = self.transcript
        if self._splice is None:
            ended = Spent(transcript.prompt_ms, transcript.predicted_ms)
        else:
            ended = self._splice.spent
        if spent_ms is not None and not ended.predicted_ms:
            ended = Spent(ended.prompt_ms, max(0.0, spent_ms - ended.prompt_ms))
        self._spent += ended
        self._rest = b""
        self._n_before = transcript.n_tokens
        if not transcript.has_events:
            self._splice = None
        elif transcript.is_opaque:
            self._splice = Restarted(transcript)
        elif isinstance(how, Continue):
            self._splice = Continued(self._path, transcript, self._spent, is_whole=how.is_whole)
        else:
            self._splice = Replayed(self._path, transcript, self._spent)

    @property
    def is_complete(self) -> bool:
        """Say whether the stream has said its end, or an error: no death is a loss any more."""
        return self.transcript.is_complete

    @property
    def has_delivered(self) -> bool:
        """Say whether anything that matters was delivered: not a role, not the progress."""
        return self.transcript.has_delivered

    @property
    def n_delivered_tokens(self) -> int:
        """Return how many tokens were delivered; a chat shows only those that gave text."""
        return self.transcript.n_tokens

    @property
    def n_before(self) -> int:
        """Return how many tokens had been delivered when the present attempt began."""
        return self._n_before

    @property
    def has_gone_on(self) -> bool:
        """Say whether the present attempt has delivered anything new: a token, or the end."""
        transcript = self.transcript
        is_longer = transcript.n_tokens > self._n_before or transcript.has_delivered_opaque
        return is_longer or self.is_complete
