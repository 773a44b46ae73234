"""The answer of ``/v1/messages`` as Anthropic gives it.

The goldens are what real llama-servers sent and what they answered without ``stream``.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.anthropic.requests import prepare

GOLDEN = Path(__file__).parent.parent / "golden" / "anthropic"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.sse"))

HELLO = {"role": "user", "content": "Say hello."}
CRABS = "\N{CRAB}" * 16
REQUESTS: dict[str, dict[str, Any]] = {
    "no_start": {"messages": [HELLO, {"role": "assistant", "content": CRABS}]},
    "prefill": {
        "messages": [
            HELLO,
            {"role": "assistant", "content": [{"type": "text", "text": "Hello to"}]},
        ]
    },
    "stop": {"stop_sequences": ["x", "o"]},
}
"""What was asked for the goldens that need it."""


def _mended(name: str, data: bytes, **request: Any) -> bytes:
    body = {"model": "m", "max_tokens": 60, "messages": [HELLO]}
    body |= {**REQUESTS.get(name.partition(".")[0], {}), **request}
    make_mend = prepare("/v1/messages", json.dumps(body).encode()).make_mend
    assert make_mend is not None
    mend = make_mend(4096)
    return mend.feed(data) + mend.finish()


def _stream(name: str, **request: Any) -> list[dict[str, Any]]:
    return _events(_mended(name, _golden(name), stream=True, **request))


def _golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.sse").read_bytes()


def _events(stream: bytes) -> list[dict[str, Any]]:
    events = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\ndata: ")
        events.append(json.loads(data))
        assert name == f"event: {events[-1]['type']}"
    return events


def _whole(name: str, **request: Any) -> dict[str, Any]:
    data = (GOLDEN / f"{name}.json").read_bytes()
    answer: dict[str, Any] = json.loads(_mended(name, data, **request))
    return answer


def _accumulated(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that the SDKs build of a stream; wrong orders fail."""
    message: dict[str, Any] = events[0]["message"]
    assert events[0]["type"] == "message_start"
    opened: int | None = None
    for event in events[1:]:
        kind = event["type"]
        if kind == "content_block_start":
            assert (opened, event["index"]) == (None, len(message["content"]))
            opened = event["index"]
            message["content"].append({**event["content_block"], "json": ""})
        elif kind == "content_block_delta":
            assert event["index"] == opened
            block = message["content"][opened]
            for key, value in event["delta"].items():
                if key != "type":
                    block[{"partial_json": "json"}.get(key, key)] += value
        elif kind == "content_block_stop":
            assert event["index"] == opened
            opened = None
        elif kind == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
    assert (opened, events[-1]["type"]) == (None, "message_stop")
    for block in message["content"]:
        text = block.pop("json")
        if block["type"] == "tool_use":
            assert block["input"] == {}
            block["input"] = json.loads(text)
    return message


@pytest.mark.parametrize("name", NAMES)
def test_stream_builds_the_whole_answer(name: str) -> None:
    """Blocks come one after the other; what they hold is what the answer without stream holds."""
    streamed, whole = _accumulated(_stream(name)), _whole(name)

    for message in (streamed, whole):
        for block in message["content"]:
            block.pop("id", None)
    for key in ("type", "role", "model", "content", "stop_reason", "stop_sequence"):
        assert streamed[key] == whole[key]
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_id_of_a_message_is_in_anthropics_form(name: str) -> None:
    """llama-server's own says that it is a chat's; what makes it unique stays."""
    golden = json.loads((GOLDEN / f"{name}.json").read_bytes())

    streamed, whole = _stream(name)[0]["message"]["id"], _whole(name)["id"]

    assert golden["id"].startswith("chatcmpl-")
    assert whole == golden["id"].replace("chatcmpl-", "msg_")
    assert streamed.startswith("msg_")
    assert "chatcmpl" not in streamed


@pytest.mark.parametrize("name", NAMES)
def test_usage_has_every_count_from_start_to_end(name: str) -> None:
    """The prompt is what was read and what was in the cache; tools add the three up."""
    counts = {
        "input_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens",
    }

    events = _stream(name)
    start, end = events[0]["message"]["usage"], events[-2]["usage"]

    assert set(start) == set(end) == set(_whole(name)["usage"]) == counts
    assert {**end, "output_tokens": 0} == start


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_text_passes_as_it_came(build: str) -> None:
    """All of the stream but its start and its counts is llama-server's own bytes."""
    golden = _golden(f"text.{build}")
    body = golden[golden.index(b"event: content_block_start") : golden.index(b"event: message_d")]

    assert body in _mended("text", golden, stream=True)


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_start_that_llama_server_leaves_out_is_made(build: str) -> None:
    """The Python SDK raises at any event before ``message_start``."""
    first, second = _stream(f"no_start.{build}")[:2]

    assert first["type"] == "message_start"
    assert first["message"]["id"].startswith("msg_")
    assert first["message"]["model"] == "m"
    assert first["message"]["usage"]["input_tokens"] > 0
    assert first["message"]["usage"]["cache_read_input_tokens"] == 0
    assert second["type"] == "content_block_start"


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_call_of_a_tool_starts_with_an_empty_input(build: str) -> None:
    """Types of the SDKs require it, and so does the AI SDK's schema."""
    start = next(e for e in _stream(f"tools.{build}") if e["type"] == "content_block_start")

    assert start["content_block"]["input"] == {}


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_thinking_is_signed_and_closed_before_the_text(build: str) -> None:
    """llama-server closes all blocks at the end; Claude Code shows a block when it is closed."""
    stream = _stream(f"thinking.{build}")

    events = [(event["type"], event.get("index")) for event in stream]
    text_at = events.index(("content_block_start", 1))
    assert stream[text_at - 2]["delta"] == {"type": "signature_delta", "signature": ""}
    assert events[text_at - 1] == ("content_block_stop", 0)
    assert events.count(("content_block_stop", 0)) == 1
    assert _accumulated(stream)["content"][0]["signature"] == ""


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_thinking_without_text_is_signed_once(build: str) -> None:
    """There llama-server's own signature is in time."""
    golden = _golden(f"thinking.{build}").split(b"\n\n")
    stream = b"\n\n".join(event for event in golden if b'"index":1' not in event)

    events = _events(_mended("thinking", stream, stream=True))

    kinds = [event.get("delta", {}).get("type") for event in events]
    assert kinds.count("signature_delta") == 1
    assert [e["type"] for e in events].count("content_block_stop") == 1


def test_block_that_is_opened_twice_is_opened_once() -> None:
    """llama-server opens it again for what its parser held back until the end."""
    golden = _golden("text.b11434").split(b"\n\n")
    held_back = golden[1:3]

    events = _events(
        _mended("text", b"\n\n".join(golden[:-4] + held_back + golden[-4:]), stream=True)
    )

    kinds = [event["type"] for event in events]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1
    assert _accumulated(events)["content"][0]["text"].endswith(".I")


def test_block_that_is_never_closed_is_closed_at_the_end() -> None:
    """A text that its parser takes back is no block for llama-server in the end."""
    golden = _golden("text.b11434").split(b"\n\n")
    stream = b"\n\n".join(event for event in golden if b"block_stop" not in event)

    assert _accumulated(_events(_mended("text", stream, stream=True)))["content"]


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_stop_sequence_of_the_client_is_the_reason(build: str) -> None:
    """llama-server says ``end_turn`` and names the sequence."""
    name = f"stop.{build}"

    for message in (_accumulated(_stream(name)), _whole(name)):
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "o")


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_stop_word_of_the_template_is_not_told(build: str) -> None:
    """The client asked for none, so the turn just ended."""
    name = f"stop.{build}"

    for message in (
        _accumulated(_stream(name, stop_sequences=[])),
        _whole(name, stop_sequences=None),
    ):
        assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


def test_call_of_a_tool_that_a_stop_sequence_ends_is_still_a_call() -> None:
    """Otherwise agents would not run it."""
    golden = json.loads((GOLDEN / "tools.b11434.json").read_bytes())
    data = json.dumps({**golden, "stop_sequence": "o"}).encode()

    message = json.loads(_mended("stop", data))

    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", "o")


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_prefill_is_not_repeated(build: str) -> None:
    """Clients put it before the answer themselves; llama-server repeats it."""
    name = f"prefill.{build}"

    for message in (_accumulated(_stream(name)), _whole(name)):
        assert message["content"] == [{"type": "text", "text": " you."}]


def test_prefill_is_taken_out_of_the_first_text_only() -> None:
    """What the model itself says again stays."""
    golden = _golden("text.b11434")
    prefill = {"role": "assistant", "content": "I"}
    again = golden.replace(b'"text":" so"', b'"text":"I"')

    events = _events(_mended("text", again, stream=True, messages=[HELLO, prefill]))

    text = _accumulated(events)["content"][0]["text"]
    assert text == "'mI glad you're here."


@pytest.mark.parametrize(
    "error",
    [
        b'event: error\ndata: {"code":500,"message":"Context","type":"server_error"}\n\n',
        b'data: {"error":{"code":500,"message":"Context","type":"server_error"}}\n\n',
    ],
)
def test_error_in_the_stream_has_anthropics_shape(error: bytes) -> None:
    """The SDKs read ``error.type`` and ``error.message``."""
    golden = _golden("text.b11434")
    start = golden[: golden.index(b"event: content_block_delta")]

    last = _events(_mended("text", start + error, stream=True))[-1]

    assert last == {"type": "error", "error": {"type": "api_error", "message": "Context"}}


def test_comments_and_unknown_events_pass() -> None:
    """A ping keeps the connection."""
    data = b':\n\nevent: ping\ndata: {"type":"ping"}\n\n'
    start = _golden("text.b11434").split(b"\n\n")[0] + b"\n\n"

    assert _mended("text", start + data, stream=True).endswith(data)


@pytest.mark.parametrize("name", ["thinking.b11434", "no_start.b11434"])
@given(cuts=st.lists(st.integers(0, 3000), max_size=20))
def test_any_cut_of_the_stream_gives_the_same_events(name: str, cuts: list[int]) -> None:
    """Where the network cuts the stream changes nothing, and an unfinished end is kept."""
    stream = _golden(name) + b"event: unfinished"
    body = {"max_tokens": 1, "stream": True, "messages": [HELLO]}
    make_mend = prepare("/v1/messages", json.dumps(body).encode()).make_mend
    assert make_mend is not None
    whole, cut = make_mend(4096), make_mend(4096)
    bounds = [0, *sorted(min(at, len(stream)) for at in cuts), len(stream)]

    pieces = [cut.feed(stream[a:b]) for a, b in pairwise(bounds)]

    assert b"".join([*pieces, cut.finish()]) == whole.feed(stream) + whole.finish()
