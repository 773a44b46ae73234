"""A text that is copied leaves as it would if its event were decoded, whatever else comes."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.errors import EngineError, UpstreamError
from kvsup.ollama.from_llama import ChatReplies, GenerateReplies
from kvsup.ollama.pieces import Answer

GOLDEN = Path(__file__).parents[1] / "golden"
NOW_NS = 1_787_389_200_123_456_789
DECODED = b": a comment, so that what follows is decoded\n\n"

Replies = ChatReplies | GenerateReplies


def _call(index: int, arguments: str) -> dict[str, object]:
    return {"tool_calls": [{"index": index, "function": {"name": "f", "arguments": arguments}}]}


_TEXTS = st.text(max_size=6) | st.sampled_from(
    ["", "<b>&", "\u2028", "\u2029", "\x85", '"', "\\", "\n", "\x7f", "\x00", "𝄞"]
)
_LOGPROBS = {"content": [{"token": "a", "logprob": -1.5, "bytes": [97], "top_logprobs": []}]}


_PROGRESS = {"total": 3, "cache": 0, "processed": 1, "time_ms": 1}


def _written(delta: dict[str, object], *, is_ascii: bool = False, **more: object) -> bytes:
    """Return an event as llama-server writes it; ``more`` is of the choice or of the event."""
    choice: dict[str, object] = {"finish_reason": None, "index": 0, "delta": delta}
    choice |= {key: more.pop(key) for key in ("logprobs", "finish_reason") if key in more}
    event = {"choices": [choice], "created": 1, **more}
    text = json.dumps(event, ensure_ascii=is_ascii, separators=(",", ":"))
    return b"data: %b\n\n" % text.encode()


_TEXT_EVENTS = st.builds(
    lambda text, is_ascii: _written({"content": text}, is_ascii=is_ascii), _TEXTS, st.booleans()
)
_OTHER_EVENTS = st.one_of(
    st.builds(lambda text: _written({"reasoning_content": text}), _TEXTS),
    st.builds(lambda text: _written({"reasoning_content": text, "content": text}), _TEXTS),
    st.builds(lambda text: _written({"content": text}, created=2), _TEXTS),
    st.builds(lambda text: _written({"content": text}, logprobs=_LOGPROBS), _TEXTS),
    st.builds(lambda text: _written({"content": text}, finish_reason="stop"), _TEXTS),
    st.builds(lambda text: _written(_call(0, text)), _TEXTS),
    st.builds(lambda text: _written(_call(1, text)), _TEXTS),
    st.sampled_from(
        [
            _written({"role": "assistant", "content": None}),
            _written({"role": "assistant", "content": None}, prompt_progress=_PROGRESS),
            _written({}, finish_reason="stop", timings={"prompt_n": 3, "predicted_n": 2}),
            _written({}, choices=[], usage={"prompt_tokens": 1}),
            b'data: {"error":{"code":500,"message":"no"}}\n\n',
            b"data: [DONE]\n\n",
        ]
    ),
)
_EVENTS = _TEXT_EVENTS | _OTHER_EVENTS
_CAN_FAIL = re.compile(b'"error"|"tool_calls"')
_BROKEN_EVENTS = st.sampled_from(
    [
        _written({"content": "?"}).replace(b"?", text)
        for text in (
            b"\\q",
            b"\n",
            b"\x01",
            b'"',
            b"\\",
            b"\\u12",
            b'x"}}]}\n\ndata: {',
            b"\\ud800",
        )
    ]
)


_TEXT_GROUPS = st.lists(_TEXT_EVENTS, min_size=1, max_size=4)
_OTHER_GROUPS = st.lists(_EVENTS | _BROKEN_EVENTS, min_size=1, max_size=4)


def _told(replies: Replies, data: bytes) -> tuple[bytes, str]:
    """Return what comes of ``data``: lines, or the error's kind and text."""
    try:
        return replies.feed(data, NOW_NS), ""
    except (EngineError, UpstreamError) as error:
        return b"", repr(error)


@pytest.mark.parametrize("replies", [ChatReplies, GenerateReplies])
@given(groups=st.lists(_TEXT_GROUPS | _OTHER_GROUPS, max_size=6))
def test_replies_copied_events_equal_decoded_ones(
    replies: type[Replies], groups: list[list[bytes]]
) -> None:
    """A comment before the events has them all decoded; nothing else may tell the ways apart."""
    copied, decoded = replies("m", keeps_text=True), replies("m", keeps_text=True)

    for group in [[_written({"content": "a"})], *groups]:
        data = b"".join(group)
        assert _told(copied, data) == _told(decoded, DECODED + data)
    assert copied.text == decoded.text


@given(
    st.lists(_EVENTS.filter(lambda event: not _CAN_FAIL.search(event)), max_size=8),
    st.lists(st.integers(0, 2000), max_size=8),
)
def test_replies_copied_events_in_pieces_equal_decoded_ones(
    events: list[bytes], cuts: list[int]
) -> None:
    """Where the network cuts the events may change the way of each, but not the lines."""
    stream = b"".join(events)
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    replies = ChatReplies("m")

    lines = b"".join(replies.feed(stream[a:b], NOW_NS) for a, b in pairwise(bounds))

    assert lines == ChatReplies("m").feed(DECODED + stream, NOW_NS)


@pytest.mark.parametrize("key", ["content", "reasoning_content"])
def test_answer_texts_like_the_last_event_are_copied(key: str) -> None:
    """After one event of a kind, more of them are known without being decoded."""
    events = [_written({key: text}) for text in ("one", ' "two"\n', "\u2028")]
    answer = Answer(top_logprobs=0)

    assert answer.texts(events[0]) is None
    answer.feed(events[0])

    assert answer.texts(b"".join(events)) == [b"one", b' \\"two\\"\\n', b"\xe2\x80\xa8"]
    assert answer.is_thinking == (key == "reasoning_content")


@pytest.mark.parametrize(
    "event",
    [
        _written({"content": "a"}, logprobs=_LOGPROBS),
        _written({"content": "a"}, finish_reason="stop"),
        _written({"content": "a", "reasoning_content": "b"}),
        _written({"content": "a", **_call(0, "{}")}),
        _written({"content": ""}),
    ],
)
def test_answer_texts_with_something_beside_are_not_copied(event: bytes) -> None:
    """Whatever an event has beside one text is read in each event anew."""
    answer = Answer(top_logprobs=0)
    answer.feed(event)

    assert answer.texts(event) is None


def test_answer_recorded_texts_are_copied_but_for_the_first() -> None:
    """The events of a real answer stand in one frame."""
    answer = Answer(top_logprobs=0)
    is_copied = []

    for event in (GOLDEN / "chat.sse").read_bytes().split(b"\n\n"):
        data = event + b"\n\n"
        is_copied.append(answer.texts(data) is not None)
        answer.feed(data)

    assert is_copied == [False] * 5 + [True] * 11 + [False] * 3


def test_answer_texts_after_half_an_event_are_not_copied() -> None:
    """What begins like an event may be the rest of one."""
    event = _written({"content": "one"})
    answer = Answer(top_logprobs=0)
    answer.feed(event + event[:9])

    assert answer.texts(event) is None
