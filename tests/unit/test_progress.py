"""Progress events are taken out of streams; everything else passes."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.errors import UpstreamError
from kvsup.llama.progress import ProgressFilter
from kvsup.llama.sse import MAX_EVENT_BYTES

GOLDEN = Path(__file__).parent.parent / "golden" / "fold"

PROGRESS = b'data: {"choices":[],"prompt_progress":{"total":9,"cache":0,"processed":4}}\n\n'
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
PING = b":\n\n"


def _filtered(made: ProgressFilter, *pieces: bytes) -> bytes:
    return b"".join(map(made.feed, pieces)) + made.finish()


def _without_progress(stream: bytes) -> bytes:
    events = stream.split(b"\n\n")
    return b"\n\n".join(event for event in events if b'"prompt_progress":' not in event)


@pytest.mark.parametrize("name", ["chat.b11434", "chat.b10434", "completion_logprobs.b11434"])
def test_filter_recorded_stream_loses_its_progress_only(name: str) -> None:
    """Every other event stays, byte for byte."""
    stream = (GOLDEN / f"{name}.sse").read_bytes()

    assert b"prompt_progress" in stream
    assert _filtered(ProgressFilter(is_single=False), stream) == _without_progress(stream)


@given(st.lists(st.integers(0, 9000), max_size=20))
def test_filter_any_cut_gives_same_bytes(cuts: list[int]) -> None:
    """Where the network cuts the stream changes nothing."""
    stream = (GOLDEN / "chat.b11434.sse").read_bytes()
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]

    out = _filtered(ProgressFilter(), *(stream[a:b] for a, b in pairwise(bounds)))

    assert out == _without_progress(stream)


def test_filter_ping_during_prefill_passes_and_progress_after_it_does_not() -> None:
    """A comment keeps the client's connection open; it is no token."""
    stream = PROGRESS + PING + PROGRESS + TOKEN

    assert _filtered(ProgressFilter(), stream) == PING + TOKEN


def test_filter_after_first_token_passes_the_same_object() -> None:
    """The tokens of an answer cost no search and no copy."""
    made = ProgressFilter()
    made.feed(PROGRESS + TOKEN)
    piece = b'data: {"cho'

    assert made.feed(piece) is piece


def test_filter_cut_token_passes_when_it_is_whole() -> None:
    """What is held back of an event is given with its end, and at the end of the stream."""
    made = ProgressFilter()

    assert made.feed(PROGRESS + TOKEN[:9]) == b""
    assert made.feed(TOKEN[9:] + TOKEN[:5]) == TOKEN + TOKEN[:5]
    assert made.finish() == b""
    assert _filtered(ProgressFilter(), TOKEN[:5]) == TOKEN[:5]


def test_filter_endless_event_raises() -> None:
    """What is held back is bounded, whatever llama-server sends."""
    made = ProgressFilter()

    with pytest.raises(UpstreamError, match="event of more than"):
        made.feed(b"data: " + bytes(MAX_EVENT_BYTES))


def test_filter_several_answers_drop_progress_to_the_end() -> None:
    """One answer's progress can follow another's first token."""
    stream = PROGRESS + TOKEN + PROGRESS + TOKEN

    assert _filtered(ProgressFilter(is_single=False), stream) == TOKEN + TOKEN


def test_filter_text_that_speaks_of_progress_passes() -> None:
    """Inside a JSON string the quotes are escaped, so no text is taken for progress."""
    event = rb'data: {"choices":[{"delta":{"content":"\"prompt_progress\":"}}]}' + b"\n\n"

    assert _filtered(ProgressFilter(is_single=False), event) == event


@pytest.mark.parametrize("build", ["b11434", "b10434"])
def test_filter_response_keeps_one_event_in_progress(build: str) -> None:
    """Every stream of responses has one ``response.in_progress``, and it tells no progress."""
    stream = (GOLDEN / f"response.{build}.sse").read_bytes()

    out = _filtered(ProgressFilter(keeps_first=True), stream)

    assert stream.count(b"event: response.in_progress\n") > 1
    assert out.count(b"event: response.in_progress\n") == 1
    assert b"prompt_progress" not in out
    assert out.startswith(b"event: response.created\n")
    assert out.endswith(stream[stream.index(b"event: response.output_item.added") :])
