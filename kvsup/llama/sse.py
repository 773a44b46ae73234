"""Server-sent events, as far as llama-server sends them (b10434, b11434)."""

from kvsup.errors import UpstreamError

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""The longest unfinished event that is kept; Ollama too ends a stream at 8 MB a line."""


class EventSplitter:
    """Takes the bytes of one stream in any pieces, gives each complete event as it came."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = b""
        """The start of an event that is not complete yet."""

    def feed(self, data: bytes) -> list[bytes]:
        r"""Return the events that ``data`` completes, comments too, without their blank lines.

        Lines that end with ``\r\n`` end with ``\n`` in what is returned.

        Raises:
            UpstreamError: an event is longer than ``MAX_EVENT_BYTES``.
        """
        if self.rest:
            data = self.rest + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        events = data.split(b"\n\n")
        self.rest = events.pop()
        if len(self.rest) > MAX_EVENT_BYTES:
            raise UpstreamError(f"llama-server sent an event of more than {MAX_EVENT_BYTES} bytes")
        return events


class SSEDecoder:
    """Takes the bytes of one stream in any pieces, gives the payload of each complete event."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events = EventSplitter()

    @property
    def is_inside_event(self) -> bool:
        """Say whether the last bytes did not end an event."""
        return bool(self._events.rest)

    def feed(self, data: bytes) -> list[bytes]:
        r"""Return the payloads of the events that ``data`` completes.

        A payload is what follows ``data:`` and one optional blank; several data lines are joined
        by ``\n``. Comments (llama-server's pings) and other fields are dropped.

        Raises:
            UpstreamError: an event is longer than ``MAX_EVENT_BYTES``.
        """
        events = self._events.feed(data)
        return [payload for event in events if (payload := _payload(event)) is not None]


def _payload(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in event.split(b"\n")
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None
