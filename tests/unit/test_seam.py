"""One stream of events out of the streams of several processes, on recorded and composed ones."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.errors import Diverged, UpstreamError
from kvsup.llama.resume import Continue, Replay, facts
from kvsup.llama.seam import Seam
from kvsup.llama.sse import MAX_EVENT_BYTES
from kvsup.llama.transcript import CHAT, TEXT
from tests.comparing import comparable

GOLDEN = Path(__file__).parent.parent / "golden"
RECORDED = [
    *((CHAT, path) for path in sorted((GOLDEN / "fold").glob("chat*.sse"))),
    *((TEXT, path) for path in sorted((GOLDEN / "fold").glob("completion*.sse"))),
    *((CHAT, GOLDEN / f"{name}.sse") for name in ("chat", "chat_logprobs", "chat_tools")),
    ("/completion", GOLDEN / "completion.sse"),
    ("/completion", GOLDEN / "completion_logprobs.sse"),
]
"""A route and a stream of it."""

RESPONSES = sorted((GOLDEN / "fold").glob("response*.sse"))

_IDS = re.compile(rb'(chatcmpl-|resp_|"id":"(?=[A-Za-z0-9]{32}"))[A-Za-z0-9]+')


def _event(*, index: int = 0, finish: str | None = None, **delta: Any) -> bytes:
    choice = {"finish_reason": finish, "index": index, "delta": delta}
    return _data({"choices": [choice], "created": 7, "id": "chatcmpl-one", "model": "m"})


def _data(members: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(members).encode()


def _progress(processed: int) -> bytes:
    told = {"total": 9, "cache": 0, "processed": processed, "time_ms": 5}
    return _data({"choices": [], "id": "chatcmpl-one", "prompt_progress": told})


def _native(text: str, tokens: list[int], n: int, **members: Any) -> bytes:
    known = {"index": 0, "content": text, "tokens": tokens, "stop": False, "tokens_predicted": n}
    return _data({**known, "tokens_evaluated": 4, **members})


DONE = b"data: [DONE]\n\n"
ROLE = _event(role="assistant", content=None)
END = _event(finish="stop")


def _said(*texts: str) -> bytes:
    return ROLE + b"".join(_event(content=text) for text in texts)


def _of_another_process(stream: bytes) -> bytes:
    """Return ``stream`` with other ids."""
    return _IDS.sub(rb"\1fromAnother", stream)


def _payloads(stream: bytes) -> list[Any]:
    return [
        comparable(json.loads(line[6:]))
        for line in stream.split(b"\n")
        if line.startswith(b"data: {") and b'"prompt_progress"' not in line
    ]


@pytest.mark.parametrize(("path", "recorded"), RECORDED, ids=lambda p: Path(p).stem)
@settings(max_examples=25)
@given(cut=st.floats(0, 1), bounds=st.lists(st.floats(0, 1), max_size=5))
def test_seam_replay_of_recorded_stream_cut_anywhere_gives_that_stream(
    path: str, recorded: Path, cut: float, bounds: list[float]
) -> None:
    """Every event comes once, under the first stream's ids, wherever the network cuts either."""
    stream = recorded.read_bytes()
    replay = _of_another_process(stream)
    places = [int(cut * len(stream)), *(int(bound * len(replay)) for bound in bounds)]
    seam = Seam(path)

    first = seam.feed(stream[: places[0]])
    seam.reopen(Replay())
    ends = [0, *sorted(places[1:]), len(replay)]
    rest = b"".join(seam.feed(replay[a:b]) for a, b in pairwise(ends))

    assert _payloads(first + rest) == _payloads(stream)
    assert len(set(re.findall(rb"chatcmpl-\w+", first + rest))) == (path != "/completion")
    assert seam.is_complete


@given(
    texts=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=12),
    n_delivered=st.integers(0, 12),
    places=st.sets(st.integers(1, 50), max_size=10),
)
def test_seam_replay_in_other_pieces_gives_the_whole_text_once(
    texts: list[str], n_delivered: int, places: set[int]
) -> None:
    """Compared are texts, not events: one is split where the delivered text ended within it."""
    whole = "".join(texts)
    ends = [0, *sorted(place for place in places if place < len(whole)), len(whole)]
    replay = _said(*(whole[a:b] for a, b in pairwise(ends))) + END + DONE
    seam = Seam(CHAT)

    seam.feed(_said(*texts[:n_delivered]))
    seam.reopen(Replay())
    seam.feed(replay)

    answer = seam.transcript.answers[0]
    assert answer.content.getvalue() == whole
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("chunk", [1, 7, 100, 10**6])
def test_seam_without_a_death_gives_the_bytes_as_they_came(chunk: int) -> None:
    """Only that an event leaves when it is whole."""
    stream = (GOLDEN / "fold" / "chat_tools.b11434.sse").read_bytes()
    seam = Seam(CHAT)

    out = [seam.feed(stream[at : at + chunk]) for at in range(0, len(stream), chunk)]

    assert b"".join(out) == stream
    assert all(piece.endswith(b"\n\n") or not piece for piece in out)


def test_seam_half_event_of_the_dead_is_dropped() -> None:
    """It was held back, so the heir says it from its start."""
    seam = Seam(CHAT)
    first = seam.feed(_said("a") + _event(content="b")[:-9])

    seam.reopen(Replay())
    rest = seam.feed(_said("a", "b") + END + DONE)

    assert first == _said("a")
    assert _payloads(rest) == _payloads(_event(content="b") + END)


@pytest.mark.parametrize(
    ("replay", "why"),
    [
        (_said("ab", "x"), "'x' in place of 'c'"),
        (_said("ab") + END, "before it has said"),
        (_said("ab") + DONE, "before it has said"),
        (ROLE + _event(reasoning_content="ab"), "before it has said"),
        (ROLE + _event(tool_calls=[{"index": 0, "function": {"name": "f"}}]), "before it has"),
    ],
)
def test_seam_replay_that_says_something_else_is_told(replay: bytes, why: str) -> None:
    """And nothing of it counts as delivered."""
    seam = Seam(CHAT)
    seam.feed(_said("ab", "cd"))
    seam.reopen(Replay())

    with pytest.raises(Diverged, match=re.escape(why)):
        seam.feed(replay)
    seam.reopen(Continue())
    rest = seam.feed(_said("ef") + END + DONE)

    assert _payloads(rest) == _payloads(_event(content="ef") + END)
    assert seam.transcript.answers[0].content.getvalue() == "abcdef"
    assert not facts(CHAT, {}, seam.transcript).can_replay


def test_seam_replay_under_a_second_death_goes_on_from_what_was_delivered() -> None:
    """An attempt that dies before anything new changes nothing."""
    seam = Seam(CHAT)
    out = seam.feed(_said("a", "b", "c"))
    for heard in (("a",), ("a", "b", "c", "d"), ("a", "b", "c", "d", "e")):
        seam.reopen(Replay())
        out += seam.feed(_said(*heard))

    assert _payloads(out) == _payloads(_said("a", "b", "c", "d", "e"))


@pytest.mark.parametrize(
    ("new", "has_gone_on"),
    [
        (b":\n\n", False),
        (_progress(4), False),
        (_said("a", "b"), False),
        (_said("a", "b", "c"), True),
        (_said("a", "b") + END + DONE, True),
    ],
)
def test_seam_has_gone_on_once_a_token_or_the_end_was_new(new: bytes, *, has_gone_on: bool) -> None:
    """Pings and progress say nothing of the answer."""
    seam = Seam(CHAT)
    seam.feed(_said("a", "b"))
    assert seam.has_gone_on
    seam.reopen(Replay())
    assert not seam.has_gone_on

    seam.feed(new)

    assert seam.has_gone_on is has_gone_on
    assert seam.n_before == 2


def test_seam_tool_calls_keep_the_ids_that_were_delivered() -> None:
    """Also in an event whose name has grown; the replay's ids are other random ones."""
    seam = Seam(CHAT)

    def call(call_id: str, name: str, arguments: str) -> bytes:
        function = {"name": name, "arguments": arguments}
        piece = {"index": 0, "id": call_id, "type": "function", "function": function}
        return _event(tool_calls=[piece])

    seam.feed(ROLE + call("A", "get", "") + call("A", "get_time", '{"z'))
    seam.reopen(Replay())
    rest = seam.feed(ROLE + call("B", "get_time", '{"zone"'))

    function = {"arguments": 'one"'}
    assert _payloads(rest) == _payloads(_event(tool_calls=[{"index": 0, "function": function}]))
    made = seam.transcript.answers[0].calls[0]
    assert (made.id, made.name, made.arguments.getvalue()) == ("A", "get_time", '{"zone"')


@pytest.mark.parametrize(
    ("stream", "n_answers", "is_complete"),
    [
        (_native("a", [1], 1), 1, False),
        (_native("", [], 1, stop=True, stop_type="eos"), 1, True),
        (_data({"content": ""}), 1, True),
        (_native("", [], 1, stop=True), 2, False),
        (_native("", [], 1, stop=True) + _native("", [], 1, stop=True, index=1), 2, True),
        (_data({"error": {"code": 500, "message": "no"}}), 1, True),
    ],
)
def test_seam_native_stream_is_complete_when_all_answers_have_ended(
    stream: bytes, n_answers: int, *, is_complete: bool
) -> None:
    """With ``response_fields`` the last event may say nothing of its end; an error is an answer."""
    seam = Seam("/completion", n_answers=n_answers)
    seam.feed(stream)

    assert seam.is_complete is is_complete


def test_seam_silent_tokens_come_once() -> None:
    """A token that is held back as the start of a stop word has an event, but no text."""
    seam = Seam("/completion")
    out = seam.feed(_native("a", [1], 1) + _native("", [2], 2))

    seam.reopen(Replay())
    again = _native("a", [1], 1) + _native("", [2], 2) + _native("bc", [3], 3)
    out += seam.feed(again + _native("", [4], 4))
    seam.reopen(Continue())
    out += seam.feed(_native("", [4], 1) + _native("de", [5], 2))

    assert [event["tokens"] for event in _payloads(out)] == [[1], [2], [3], [4], [5]]
    assert [event["tokens_predicted"] for event in _payloads(out)] == [1, 2, 3, 4, 5]


def test_seam_progress_of_a_replay_never_goes_backward() -> None:
    """And is no more told once something was delivered."""
    seam = Seam(CHAT)

    out = seam.feed(_progress(0) + _progress(4))
    seam.reopen(Replay())
    out += seam.feed(_progress(0) + _progress(4) + _progress(8) + _said("a"))
    seam.reopen(Replay())
    out += seam.feed(_progress(0) + _progress(9) + _said("a", "b"))

    told = re.findall(rb'"processed": ?(\d)', out)
    assert told == [b"0", b"4", b"8"]
    assert seam.transcript.answers[0].content.getvalue() == "ab"


@pytest.mark.parametrize("recorded", RESPONSES, ids=lambda path: path.stem)
def test_seam_response_starts_anew_until_anything_is_generated(recorded: Path) -> None:
    """The response keeps its id; what came before the answer is not said twice."""
    stream = recorded.read_bytes()
    begun = stream[: stream.index(b"event: response.output_item.added")]
    seam = Seam("/v1/responses")

    out = seam.feed(begun)
    had_anything = seam.has_delivered
    seam.reopen(Replay())
    out += seam.feed(_of_another_process(stream))

    assert not had_anything
    assert seam.has_delivered
    assert seam.is_complete
    assert out == _IDS.sub(_kept_id(begun), stream)


def _kept_id(begun: bytes) -> Callable[[re.Match[bytes]], bytes]:
    """Return the id that a replay's id becomes: only the response's own was delivered."""
    first = _IDS.search(begun)
    assert first
    return lambda found: first[0] if found[1] == b"resp_" else found[1] + b"fromAnother"


def test_seam_event_without_end_is_refused() -> None:
    """So a broken llama-server does not fill the memory."""
    seam = Seam(CHAT)

    with pytest.raises(UpstreamError, match="event of more than"):
        seam.feed(b"x" * (MAX_EVENT_BYTES + 1))


def test_seam_unreadable_event_passes_and_ends_all_resuming() -> None:
    """What kvsup cannot read it cannot compare."""
    seam = Seam(CHAT)

    assert seam.feed(b"data: {]\n\n") == b"data: {]\n\n"
    assert seam.has_delivered
    assert seam.transcript.is_opaque
