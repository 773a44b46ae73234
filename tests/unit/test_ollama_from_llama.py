"""Recorded and composed event streams of llama-server, and what Ollama's clients get of them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.errors import EngineError, UpstreamError
from kvsup.ollama.from_llama import ChatReplies, Folded, GenerateReplies

GOLDEN = Path(__file__).parents[1] / "golden"
NOW_NS = 1_787_389_200_123_456_789
NOW = "2026-08-22T09:00:00.123456789Z"

Replies = ChatReplies | GenerateReplies


def _golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.sse").read_bytes()


def _stream(replies: Replies, *pieces: bytes) -> list[dict[str, Any]]:
    text = b"".join(replies.feed(piece, NOW_NS) for piece in pieces)
    text += replies.finish(NOW_NS, total_ns=9_000, load_ns=5)
    return [json.loads(line) for line in text.splitlines()]


def _folded(replies: Replies, data: bytes) -> dict[str, Any]:
    folded = Folded(replies)
    assert folded.feed(data, NOW_NS) == b""
    answer: dict[str, Any] = json.loads(folded.finish(NOW_NS, total_ns=9_000, load_ns=0))
    return answer


def _event(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
    choice = {"finish_reason": finish_reason, "index": 0, "delta": delta}
    text = json.dumps({"choices": [choice]}, ensure_ascii=False, separators=(",", ":"))
    return b"data: %b\n\n" % text.encode()


def _call(index: int, arguments: str, **function: str) -> dict[str, object]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments, **function}}]}


def test_chat_recorded_stream_gives_exact_lines() -> None:
    """Field order, escapes and framing are Ollama's; role and progress events give nothing."""
    replies = ChatReplies("M:x")

    lines = replies.feed(_golden("chat"), NOW_NS).splitlines()
    last = replies.finish(NOW_NS + 1, total_ns=812345678, load_ns=51234567)

    start = b'{"model":"M:x","created_at":"%s","message":{"role":"assistant","content":'
    start %= NOW.encode()
    assert lines[0] == start + b'"\\u003c"},"done":false}'
    assert lines[4] == start + b'"B"},"done":false}'
    assert len(lines) == 12
    assert last == (
        b'{"model":"M:x","created_at":"2026-08-22T09:00:00.12345679Z",'
        b'"message":{"role":"assistant","content":""},"done":true,"done_reason":"length",'
        b'"total_duration":812345678,"load_duration":51234567,"prompt_eval_count":37,'
        b'"prompt_eval_duration":135521000,"eval_count":12,"eval_duration":63675000}\n'
    )


def test_chat_recorded_stop_counts_cached_tokens() -> None:
    """``prompt_eval_count`` counts tokens from the KV cache too; a stop string is a stop."""
    *lines, last = _stream(ChatReplies("m"), _golden("chat_stop"))

    text = "".join(line["message"]["content"] for line in lines)
    assert text == "I'm glad you're enjoying the chat"
    assert (last["done_reason"], last["prompt_eval_count"]) == ("stop", 32)


@pytest.mark.parametrize(
    ("replies", "name"),
    [
        (ChatReplies, "chat"),
        (ChatReplies, "chat_tools"),
        (ChatReplies, "chat_thinking"),
        (GenerateReplies, "completion"),
    ],
)
@given(st.lists(st.integers(0, 5000), max_size=20))
def test_replies_any_cut_gives_same_lines(
    replies: type[Replies], name: str, cuts: list[int]
) -> None:
    """Where the network cuts the stream changes nothing."""
    stream = _golden(name)
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(bounds)]

    assert _stream(replies("m"), *pieces) == _stream(replies("m"), stream)


def test_chat_events_without_text_give_nothing() -> None:
    """Until the first piece no byte is due, so that the status can still be an error."""
    replies = ChatReplies("m")

    assert replies.feed(_event({"role": "assistant", "content": None}), NOW_NS) == b""
    assert replies.feed(_event({"content": ""}), NOW_NS) == b""
    assert replies.feed(b": ping\n\n", NOW_NS) == b""


def test_chat_line_ends_of_unicode_are_escaped() -> None:
    """Clients that split lines as Python does would cut the JSON at them."""
    text = "a\u2028b\u2029c\x85d\x0b\x1c<&>é"

    line = ChatReplies("m").feed(_event({"content": text}), NOW_NS)

    assert len(line.decode().splitlines()) == 1
    assert json.loads(line)["message"]["content"] == text
    assert b"\\u003c\\u0026\\u003e" in line


def test_chat_thinking_is_a_field_of_its_own() -> None:
    """Thinking precedes the content and never mixes with it."""
    *lines, last = _stream(ChatReplies("m"), _golden("chat_thinking"))

    assert [line["message"].get("thinking") for line in lines] == [
        "Is it", " <b>4</b>", "?\n", None, None,
    ]  # fmt: skip
    assert [line["message"]["content"] for line in lines] == ["", "", "", "Yes", ": 4."]
    assert last["message"] == {"role": "assistant", "content": ""}


def test_chat_tool_calls_are_put_together() -> None:
    """Each call comes whole in a chunk of its own before the last line; arguments are objects."""
    text, first, second, last = _stream(ChatReplies("m"), _golden("chat_tools"))

    assert text["message"]["content"] == "Let me look. "
    assert first["message"]["content"] == ""
    assert first["message"]["tool_calls"] == [
        {
            "id": "tZQ3Qv0PLFO2nBDyRnM9CpDzQ1I6bDwG",
            "index": 0,
            "function": {
                "index": 0,
                "name": "get_weather",
                "arguments": {"city": "Oslo", "days": 2},
            },
        }
    ]
    assert second["message"]["tool_calls"][0]["function"] == {
        "index": 1,
        "name": "get_time",
        "arguments": {"zone": "Europe/Oslo"},
    }
    assert (last["done"], last["done_reason"]) == (True, "stop")


def test_chat_tool_call_without_id_or_arguments_is_whole() -> None:
    """An absent id vanishes, absent arguments are an empty object."""
    events = _event(_call(0, "", name="f")) + _event({}, "tool_calls")

    call_line, _ = _stream(ChatReplies("m"), events)

    assert call_line["message"]["tool_calls"] == [
        {"index": 0, "function": {"index": 0, "name": "f", "arguments": {}}}
    ]


def test_chat_tool_call_cut_by_length_is_left_out() -> None:
    """Half an object can't be sent; ``done_reason`` says why it is missing."""
    events = _event(_call(0, '{"a":', name="f")) + _event({}, "length")

    (last,) = _stream(ChatReplies("m"), events)

    assert last["done_reason"] == "length"


@pytest.mark.parametrize("arguments", ["[1]", '{"a":', "x"])
def test_chat_tool_call_with_other_arguments_raises(arguments: str) -> None:
    """Clients rely on an object."""
    events = _event(_call(0, arguments, name="f")) + _event({}, "tool_calls")

    with pytest.raises(UpstreamError, match="call of f has no object as arguments"):
        _stream(ChatReplies("m"), events)


def test_chat_logprobs_carry_alternatives_only_if_asked() -> None:
    """llama-server always sends one; token ids are not part of Ollama's answer."""
    with_none = _stream(ChatReplies("m"), _golden("chat_logprobs"))[0]
    with_two = _stream(ChatReplies("m", top_logprobs=2), _golden("chat_logprobs"))[0]

    entry = {"token": "I", "logprob": -2.3221662044525146, "bytes": [73]}
    other = {"token": "Hello", "logprob": -2.3516366481781006, "bytes": [72, 101, 108, 108, 111]}
    assert with_none["logprobs"] == [entry]
    assert with_two["logprobs"] == [{**entry, "top_logprobs": [entry, other]}]
    assert list(with_two) == ["model", "created_at", "message", "done", "logprobs"]


@pytest.mark.parametrize("name", ["completion", "chat"])
def test_generate_either_route_gives_response_lines(name: str) -> None:
    """Raw prompts come from ``/completion``, all others from the chat route."""
    *lines, last = _stream(GenerateReplies("m"), _golden(name))

    text = "".join(line["response"] for line in lines)
    assert text == {"completion": " the scene,", "chat": "<h1>Bold Word</h1>\n"}[name]
    assert list(lines[0]) == ["model", "created_at", "response", "done"]
    assert list(last)[:5] == ["model", "created_at", "response", "done", "done_reason"]
    assert (last["response"], last["done_reason"], last["load_duration"]) == ("", "length", 5)


def test_generate_thinking_is_a_field_of_its_own() -> None:
    """Thinking stands after the empty response."""
    lines = _stream(GenerateReplies("m"), _golden("chat_thinking"))

    assert list(lines[0]) == ["model", "created_at", "response", "thinking", "done"]
    assert (lines[0]["response"], lines[0]["thinking"]) == ("", "Is it")


def test_generate_completion_logprobs_arrive() -> None:
    """The completion route has them under another key."""
    lines = _stream(GenerateReplies("m", top_logprobs=2), _golden("completion_logprobs"))

    assert [entry["token"] for entry in lines[0]["logprobs"]] == [" the"]
    assert [entry["token"] for entry in lines[0]["logprobs"][0]["top_logprobs"]] == [" the", " a"]


def test_generate_completion_stop_is_stop() -> None:
    """Anything but the limit is a stop."""
    event = b'data: {"content":"x","stop":true,"stop_type":"eos"}\n\n'

    line, last = _stream(GenerateReplies("m"), event)

    assert (line["response"], last["done_reason"]) == ("x", "stop")


def test_folded_chat_gathers_everything() -> None:
    """``stream: false`` is one object with texts joined and calls gathered; zeros vanish."""
    tools = _folded(ChatReplies("m"), _golden("chat_tools"))
    thinking = _folded(ChatReplies("m"), _golden("chat_thinking"))
    logprobs = _folded(ChatReplies("m"), _golden("chat_logprobs"))

    assert tools["message"]["content"] == "Let me look. "
    names = [call["function"]["name"] for call in tools["message"]["tool_calls"]]
    assert names == ["get_weather", "get_time"]
    assert (tools["done"], tools["created_at"]) == (True, NOW)
    assert "load_duration" not in tools
    assert thinking["message"] == {
        "role": "assistant",
        "content": "Yes: 4.",
        "thinking": "Is it <b>4</b>?\n",
    }
    assert [entry["token"] for entry in logprobs["logprobs"]] == ["I", "'m"]


def test_folded_generate_gathers_texts() -> None:
    """Generate has the same fold under its own keys."""
    answer = _folded(GenerateReplies("m"), _golden("completion_logprobs"))

    assert (answer["response"], answer["eval_count"]) == (" the scene", 2)
    assert len(answer["logprobs"]) == 2
    assert "thinking" not in answer


def test_folded_has_no_newline() -> None:
    """A plain JSON answer ends with its brace."""
    folded = Folded(ChatReplies("m"))
    folded.feed(_golden("chat"), NOW_NS)

    assert folded.finish(NOW_NS, total_ns=1, load_ns=1).endswith(b"}")


def test_replies_error_event_raises_after_earlier_pieces() -> None:
    """The text before an error is sent, then the error with llama-server's own message."""
    replies = ChatReplies("m")

    lines = replies.feed(_golden("chat_error"), NOW_NS)

    assert json.loads(lines)["message"]["content"] == "Once"
    with pytest.raises(EngineError, match=r"^Context size has been exceeded\.$"):
        replies.feed(b"", NOW_NS)
    with pytest.raises(EngineError, match=r"^Context size has been exceeded\.$"):
        replies.finish(NOW_NS, total_ns=1, load_ns=1)


def test_replies_error_event_alone_raises_at_once() -> None:
    """Before the first piece the error can still become a status."""
    event = b'data: {"error":{"code":500,"message":"no","type":"server_error"}}\n\n'

    with pytest.raises(EngineError, match=r"^no$"):
        GenerateReplies("m").feed(event, NOW_NS)


@pytest.mark.parametrize("cut", [0, 600, 3600])
def test_replies_upstream_broken_off_raises(cut: int) -> None:
    """Without llama-server's last event there is no ``done:true``."""
    replies = ChatReplies("m")
    replies.feed(_golden("chat")[:cut], NOW_NS)

    with pytest.raises(UpstreamError, match="model runner has unexpectedly stopped"):
        replies.finish(NOW_NS, total_ns=1, load_ns=1)


@pytest.mark.parametrize("event", [b"data: {\n\n", b'data: {"choices":3}\n\n'])
def test_replies_unreadable_event_raises(event: bytes) -> None:
    """What is no event ends the answer."""
    with pytest.raises(UpstreamError, match="unreadable event"):
        ChatReplies("m").feed(event, NOW_NS)
