"""Take the progress events out of a stream whose client did not ask for them (b10434, b11434)."""

import re

from kvsup.llama.sse import EventSplitter

_MARK = b'"prompt_progress":'
"""In no other event: inside a JSON string its quotes would be escaped."""

_MEMBER = re.compile(rb',"prompt_progress":\{[^}]*\}')


class ProgressFilter:
    """Takes the bytes of one stream in any pieces, gives those that are not about progress.

    The prompt's progress ends with its first token, so after the first other event that follows
    progress the bytes pass untouched.
    """

    content_type = None
    """The client gets llama-server's own."""

    __slots__ = ("_events", "_has_progress", "_is_open", "_is_single", "_keeps_first")

    def __init__(self, *, is_single: bool = True, keeps_first: bool = False) -> None:
        """Make a filter for one answer.

        Args:
            is_single: whether there is one prompt and one answer to it; progress of another can
                come after the first token of one.
            keeps_first: whether the first progress event stays, without its progress:
                ``/v1/responses`` makes it of the ``response.in_progress`` that every stream has.
        """
        self._is_single = is_single
        self._keeps_first = keeps_first
        self._has_progress = False
        self._is_open = False
        self._events = EventSplitter()

    def feed(self, data: bytes) -> bytes:
        """Return the complete events of what came so far, without those about progress.

        Raises:
            UpstreamError: an event is too long.
        """
        if self._is_open:
            return data
        events = map(self._kept, self._events.feed(data))
        kept = b"".join(event + b"\n\n" for event in events if event is not None)
        return kept + self._events.rest if self._is_open else kept

    def finish(self) -> bytes:
        """Return what is left of an event that never ended, unless it has passed already."""
        return b"" if self._is_open else self._events.rest

    def _kept(self, event: bytes) -> bytes | None:
        if _MARK not in event:
            is_comment = event.startswith(b":")
            self._is_open |= self._is_single and self._has_progress and not is_comment
            return event
        is_first, self._has_progress = not self._has_progress, True
        return _MEMBER.sub(b"", event) if is_first and self._keeps_first else None
