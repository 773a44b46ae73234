"""Counts and durations of an answer that came from several processes."""

import json
from typing import Any

import pytest

from kvsup.llama.resume import Continue, Replay
from kvsup.llama.seam import Seam
from kvsup.llama.transcript import CHAT, TEXT

TIMINGS = {
    "cache_n": 2, "prompt_n": 8, "prompt_ms": 40.0, "prompt_per_token_ms": 5.0,
    "prompt_per_second": 200.0, "predicted_n": 3, "predicted_ms": 30.0,
    "predicted_per_token_ms": 10.0, "predicted_per_second": 100.0,
}  # fmt: skip


def _data(members: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(members).encode()


def _progress(total: int, cache: int, time_ms: int) -> bytes:
    told = {"total": total, "cache": cache, "processed": total, "time_ms": time_ms}
    return _data({"choices": [], "prompt_progress": told})


def _text(text: str) -> bytes:
    return _data({"choices": [{"index": 0, "delta": {"content": text}}]})


def _end(prompt: int, completion: int) -> bytes:
    usage = {
        "prompt_tokens": prompt, "completion_tokens": completion,
        "total_tokens": prompt + completion, "prompt_tokens_details": {"cached_tokens": 2},
    }  # fmt: skip
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return _data(finish) + _data({"choices": [], "usage": usage, "timings": TIMINGS})


def _counts(stream: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    last = json.loads(stream.split(b"\n\n")[-2][6:])
    return last.get("usage"), last["timings"]


def test_counts_of_replay_are_its_own_and_durations_are_summed() -> None:
    """The replay read the whole prompt and said the whole answer; the dead took time too."""
    seam = Seam(CHAT)
    seam.feed(_progress(10, 6, 25) + _text("a") + _text("b"))
    seam.reopen(Replay(), spent_ms=100)
    usage, timings = _counts(seam.feed(_text("a") + _text("b") + _text("c") + _end(10, 3)))

    assert usage["completion_tokens"] == 3
    assert usage["prompt_tokens"] == 10
    assert timings == {
        **TIMINGS, "prompt_ms": 65.0, "prompt_per_token_ms": 8.125,
        "prompt_per_second": pytest.approx(8000 / 65), "predicted_ms": 105.0,
        "predicted_per_token_ms": 35.0, "predicted_per_second": pytest.approx(3000 / 105),
    }  # fmt: skip


def test_counts_of_three_attempts_are_summed() -> None:
    """What a replay told of its prompt before it died counts as well."""
    seam = Seam(CHAT)
    seam.feed(_progress(10, 6, 25) + _text("a"))
    seam.reopen(Replay(), spent_ms=50)
    seam.feed(_progress(10, 0, 15) + _text("a"))
    seam.reopen(Replay(), spent_ms=35)
    _, timings = _counts(seam.feed(_text("a") + _end(10, 1)))

    assert timings["prompt_ms"] == 80.0
    assert timings["predicted_ms"] == 75.0


@pytest.mark.parametrize("has_progress", [True, False])
def test_counts_of_continuation_leave_the_text_out_of_the_prompt(*, has_progress: bool) -> None:
    """Prompt and text together were its prompt; with progress their tokens are known exactly."""
    seam = Seam(CHAT)
    seam.feed((_progress(6, 4, 25) if has_progress else b"") + _text("a") * 4)
    seam.reopen(Continue())
    usage, timings = _counts(
        seam.feed(_progress(10, 0, 9) * has_progress + _text("b") + _end(10, 3))
    )

    assert usage == {
        "prompt_tokens": 6, "completion_tokens": 7, "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 4 if has_progress else 0},
    }  # fmt: skip
    assert (timings["predicted_n"], timings["prompt_n"] + timings["cache_n"]) == (7, 6)


def test_counts_of_whole_text_have_no_token_more() -> None:
    """The one that was asked for to get the end is not the answer's."""
    seam = Seam(CHAT)
    seam.feed(_progress(6, 4, 25) + _text("a") * 4)
    seam.reopen(Continue(is_whole=True))
    out = seam.feed(_progress(10, 0, 9) + _text("more") + _end(10, 1) + b"data: [DONE]\n\n")

    usage, timings = _counts(out.removesuffix(b"data: [DONE]\n\n"))
    assert usage["completion_tokens"] == timings["predicted_n"] == 4
    assert b"more" not in out
    assert seam.transcript.answers[0].finish_reason == "length"
    assert seam.is_complete


def test_counts_of_text_route_are_in_its_last_choice() -> None:
    """``/v1/completions`` has usage and timings where it has the finish reason."""
    seam = Seam(TEXT)
    seam.feed(_data({"choices": [{"index": 0, "text": "a"}]}))
    seam.reopen(Continue())
    choice = {"index": 0, "text": "", "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    told, timings = _counts(
        seam.feed(_data({"choices": [choice], "usage": usage, "timings": TIMINGS}))
    )

    assert (told["prompt_tokens"], told["completion_tokens"]) == (4, 3)
    assert timings["predicted_n"] == 4
