"""Streams folded into the objects that llama-server gives without ``stream``."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.errors import EngineError, UpstreamError
from kvsup.llama.fold import ChatFold, CompletionFold, ResponseFold
from tests.comparing import comparable

GOLDEN = Path(__file__).parent.parent / "golden" / "fold"

Fold = ChatFold | CompletionFold | ResponseFold

FOLDS: dict[str, type[Fold]] = {
    "chat": ChatFold,
    "completion": CompletionFold,
    "response": ResponseFold,
}

ERROR = {"code": 503, "message": "KV cache is full", "type": "unavailable_error"}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sse")), ids=lambda path: path.stem)
def test_fold_recorded_stream_gives_recorded_object(path: Path) -> None:
    """Both were recorded from the same build with the same seed; ids and times differ."""
    fold = FOLDS[path.name.split(".")[0].split("_")[0]]()

    nothing = fold.feed(path.read_bytes())
    answer = json.loads(fold.finish())

    assert nothing == b""
    assert comparable(answer) == comparable(json.loads(path.with_suffix(".json").read_bytes()))


@given(st.lists(st.integers(0, 4000), max_size=20))
def test_fold_any_cut_gives_same_object(cuts: list[int]) -> None:
    """Where the network cuts the stream changes nothing."""
    stream = (GOLDEN / "chat_tools.b11434.sse").read_bytes()
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    whole, cut = ChatFold(), ChatFold()
    whole.feed(stream)

    for a, b in pairwise(bounds):
        cut.feed(stream[a:b])

    assert cut.finish() == whole.finish()


@pytest.mark.parametrize("fold", FOLDS.values())
def test_fold_error_event_is_the_engines_error(fold: type[Fold]) -> None:
    """The client gets the status and the body that it would have got without ``stream``."""
    with pytest.raises(EngineError, match="KV cache is full") as caught:
        fold().feed(_events({"error": ERROR}))

    assert caught.value.status == 503
    assert json.loads(caught.value.body or b"") == {"error": ERROR}


@pytest.mark.parametrize("name", FOLDS)
def test_fold_broken_off_stream_is_no_answer(name: str) -> None:
    """Half an answer is not passed off as a whole one."""
    stream = (GOLDEN / f"{name}.b11434.sse").read_bytes()
    fold = FOLDS[name]()

    fold.feed(stream[: len(stream) // 2])

    with pytest.raises(UpstreamError, match="broke off"):
        fold.finish()


@pytest.mark.parametrize("fold", FOLDS.values())
def test_fold_malformed_event_is_no_answer(fold: type[Fold]) -> None:
    """What is no event of llama-server is named as such."""
    with pytest.raises(UpstreamError, match="event"):
        fold().feed(b'data: {"choices":\n\n')


def test_chat_parallel_tool_calls_stay_apart_in_order() -> None:
    """Pieces belong to the call of their index; a later name replaces the shorter one."""
    pieces = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "get"}},
        {"index": 0, "id": "a", "type": "function", "function": {"name": "get_weather"}},
        {"index": 0, "function": {"arguments": '{"x":'}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "now"}},
    ]

    message = _folded_chat({"content": "Let me "}, {"content": "look."}, *map(_call, pieces))

    assert message == {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"x":1}'},
                "id": "a",
            },
            {"type": "function", "function": {"name": "now", "arguments": ""}, "id": "b"},
        ],
    }


def test_chat_without_pieces_has_empty_content() -> None:
    """An answer that ends at once has a message with an empty text."""
    assert _folded_chat() == {"role": "assistant", "content": ""}


def _call(piece: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": [piece]}


def _folded_chat(*deltas: dict[str, Any]) -> Any:
    fold = ChatFold()
    fold.feed(_events(*({"choices": [{"index": 0, "delta": delta}]} for delta in deltas)))
    fold.feed(
        _events(
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"total_tokens": 3}},
        )
    )
    fold.feed(b"data: [DONE]\n\n")
    return json.loads(fold.finish())["choices"][0]["message"]


def _events(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
