"""Server-sent events: any cut of the bytes gives the same events."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.errors import UpstreamError
from kvsup.llama.sse import MAX_EVENT_BYTES, EventSplitter, SSEDecoder

STREAM = (
    b': ping\n\ndata: {"a":1}\n\ndata:{"b":"\xc3\xa9"}\r\n\r\n'
    b"event: x\ndata: two\ndata: lines\nid: 7\n\n\n:\n\ndata:  [DONE]\n\n"
)
PAYLOADS = [b'{"a":1}', b'{"b":"\xc3\xa9"}', b"two\nlines", b" [DONE]"]


def _decode(pieces: list[bytes]) -> list[bytes]:
    decoder = SSEDecoder()
    return [payload for piece in pieces for payload in decoder.feed(piece)]


def test_sse_whole_stream_gives_payloads_without_comments() -> None:
    """Pings and other fields go, one blank after the colon goes, data lines are joined."""
    assert _decode([STREAM]) == PAYLOADS


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_sse_cut_anywhere_gives_same_payloads(cut: int) -> None:
    """Where the network cuts the bytes does not matter."""
    assert _decode([STREAM[:cut], STREAM[cut:]]) == PAYLOADS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_sse_many_cuts_give_same_payloads(cuts: list[int]) -> None:
    """Nor does it matter how often."""
    bounds = [0, *sorted(cuts), len(STREAM)]

    assert _decode([STREAM[a:b] for a, b in pairwise(bounds)]) == PAYLOADS


def test_sse_unfinished_event_gives_nothing() -> None:
    """An event counts only once its blank line has come."""
    assert _decode([b"data: half\n"]) == []


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_splitter_many_cuts_lose_nothing_of_the_stream(cuts: list[int]) -> None:
    """Comments and names stay; only the ends of lines become alike."""
    bounds = [0, *sorted(cuts), len(STREAM)]
    events = EventSplitter()

    split = [event for a, b in pairwise(bounds) for event in events.feed(STREAM[a:b])]

    assert split == STREAM.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]
    assert events.rest == b""


def test_splitter_start_of_an_event_is_its_rest() -> None:
    """What ends a stream in the middle of an event can be passed on."""
    events = EventSplitter()

    assert events.feed(b"data: a\n\ndata: h") == [b"data: a"]
    assert events.feed(b"alf\n") == []
    assert events.rest == b"data: half\n"


def test_sse_endless_event_raises() -> None:
    """The buffer is bounded, whatever llama-server sends."""
    decoder = SSEDecoder()
    decoder.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 6))

    with pytest.raises(UpstreamError, match="more than 8388608 bytes"):
        decoder.feed(b"x")
