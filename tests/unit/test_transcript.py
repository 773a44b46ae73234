"""What was delivered is read the same, however its events came: most are not decoded."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.llama.transcript import CHAT, TEXT, Transcript

GOLDEN = Path(__file__).parent.parent / "golden"
RECORDED = [
    *((CHAT, path) for path in sorted((GOLDEN / "fold").glob("chat*.sse"))),
    *((TEXT, path) for path in sorted((GOLDEN / "fold").glob("completion*.sse"))),
    ("/completion", GOLDEN / "completion.sse"),
]
"""A route and a stream of it."""


def _facts(transcript: Transcript) -> Any:
    names = ("identity", "prompt_tokens", "cached_tokens", "processed_tokens", "prompt_ms",
             "predicted_ms", "n_closings", "is_complete", "is_opaque", "has_events")  # fmt: skip
    answers = {
        index: [
            answer.content.getvalue(),
            answer.reasoning.getvalue(),
            [(call.name, call.arguments.getvalue()) for call in answer.calls.values()],
            (answer.tokens, answer.n_tokens, answer.n_silent, answer.n_logprobs),
            (answer.has_role, answer.finish_reason),
        ]
        for index, answer in transcript.answers.items()
    }
    return {name: getattr(transcript, name) for name in names} | {"answers": answers}


def _one_by_one(path: str, events: list[bytes]) -> Any:
    """Return the facts of ``events``, each of them decoded."""
    transcript = Transcript(path)
    for event in events:
        transcript.add(event)
        transcript._read_texts()
        transcript._frame = None
    return _facts(transcript)


def _event(members: dict[str, Any], **choice: Any) -> bytes:
    whole = {"choices": [{"finish_reason": None, "index": 0, **choice}], "id": "a", **members}
    return b"data: %b\n\n" % json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


EVENTS = st.one_of(
    st.builds(lambda text: _event({"created": 1}, delta={"content": text}), st.text()),
    st.builds(lambda text: _event({"created": 1}, delta={"content": text}), st.text(min_size=1)),
    st.builds(lambda text: _event({"created": 2}, delta={"content": text}), st.text(min_size=1)),
    st.builds(lambda text: _event({}, delta={"reasoning_content": text}), st.text(min_size=1)),
    st.builds(lambda text: _event({}, index=1, delta={"content": text}), st.text(min_size=1)),
    st.builds(
        lambda text: _event({}, delta={"content": text}, logprobs={"content": [{"token": text}]}),
        st.text(min_size=1),
    ),
    st.builds(lambda n: _event({"timings": {"predicted_ms": n}}, delta={"content": "x"}),
              st.integers(0, 9)),
    st.builds(lambda text: _event({}, delta={"content": text, "role": "assistant"}), st.text()),
    st.just(_event({}, delta={"content": "", "reasoning_content": ""})),
    st.just(_event({}, finish_reason="stop", delta={"content": "x"})),
    st.just(b": a comment\n\n"),
)  # fmt: skip


@pytest.mark.parametrize(("path", "recorded"), RECORDED, ids=lambda p: Path(p).stem)
@settings(max_examples=25)
@given(bounds=st.lists(st.floats(0, 1), max_size=30))
def test_transcript_of_recorded_stream_is_that_of_its_events(
    path: str, recorded: Path, bounds: list[float]
) -> None:
    """Several of them may be in a block."""
    events = [event + b"\n\n" for event in recorded.read_bytes().split(b"\n\n")[:-1]]
    ends = sorted({0, *(int(bound * len(events)) for bound in bounds), len(events)})
    transcript = Transcript(path)

    for a, b in pairwise(ends):
        transcript.add(b"".join(events[a:b]))

    assert _facts(transcript) == _one_by_one(path, events)


@given(blocks=st.lists(st.lists(EVENTS, min_size=1, max_size=4), max_size=12))
def test_transcript_of_events_of_all_kinds_is_that_of_each(blocks: list[list[bytes]]) -> None:
    """The next one may be like the last, of another time, or of another kind."""
    transcript = Transcript(CHAT)

    for block in blocks:
        transcript.add(b"".join(block))

    assert _facts(transcript) == _one_by_one(CHAT, [event for block in blocks for event in block])


def test_transcript_decodes_no_event_that_is_like_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the first of an answer is: the others differ in their text alone."""
    decoded: list[bytes] = []
    read = Transcript._add_events

    def watched(transcript: Transcript, block: bytes) -> None:
        decoded.append(block)
        read(transcript, block)

    monkeypatch.setattr(Transcript, "_add_events", watched)
    events = [_event({"created": 1}, delta={"content": text}) for text in ('"a"', "b", "\n", "ö")]
    transcript = Transcript(CHAT)

    for event in events:
        transcript.add(event)

    assert decoded == events[:1]
    assert transcript.answers[0].content.getvalue() == '"a"b\nö'
    assert transcript.n_tokens == 4


def test_transcript_with_text_that_is_no_utf8_is_opaque() -> None:
    """llama-server replaces what is none; nothing is continued from a text that nobody can read."""
    transcript = Transcript(CHAT)
    event = _event({}, delta={"content": "a"})

    transcript.add(event)
    transcript.add(event.replace(b'"a"', b'"\xff"', 1))

    assert transcript.is_opaque
