"""The answer of ``/v1/messages``, written from the stream of a chat.

The goldens are what real llama-servers sent for the chats that these requests become, and what
their own ``/v1/messages`` answered to the requests.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.anthropic.requests import prepare
from kvsup.errors import EngineError, UpstreamError
from kvsup.mending import Mend

GOLDEN = Path(__file__).parent.parent / "golden" / "anthropic"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.sse"))

HELLO = {"role": "user", "content": "Say hello."}
CRABS = "\N{CRAB}" * 16
TOOLS = [
    {"name": "get_weather", "input_schema": {"properties": {"city": {"type": "string"}}}},
    {"name": "get_time", "input_schema": {"properties": {"zone": {"type": "string"}}}},
]
PREFILL = [{"type": "text", "text": "Hello to"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "text": {"max_tokens": 8},
    "stop": {"stop_sequences": ["x", "o"]},
    "prefill": {"messages": [HELLO, {"role": "assistant", "content": PREFILL}]},
    "crabs": {"max_tokens": 8, "messages": [HELLO, {"role": "assistant", "content": CRABS}]},
    "thinking": {},
    "calls": {"tools": TOOLS},
    "all": {"tools": TOOLS},
}
"""What was asked for the goldens, at temperature 0."""


def _mend(name: str = "", **request: Any) -> Mend:
    body = {"model": "m", "max_tokens": 60, "messages": [HELLO]}
    body |= {**REQUESTS.get(name.partition(".")[0], {}), **request}
    make_mend = prepare("/v1/messages", json.dumps(body).encode()).make_mend
    assert make_mend is not None
    return make_mend(4096)


def _mended(data: bytes, name: str = "", **request: Any) -> bytes:
    mend = _mend(name, **request)
    return mend.feed(data) + mend.finish()


def _golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.sse").read_bytes()


def _events(stream: bytes) -> list[dict[str, Any]]:
    events = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\ndata: ")
        events.append(json.loads(data))
        assert name == f"event: {events[-1]['type']}"
    return events


def _stream(name: str, **request: Any) -> list[dict[str, Any]]:
    return _events(_mended(_golden(name), name, stream=True, **request))


def _whole(name: str, **request: Any) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(_mended(_golden(name), name, **request))
    return message


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
            block["input"] = json.loads(text or "{}")
    return message


@pytest.mark.parametrize("name", NAMES)
def test_stream_builds_the_whole_answer(name: str) -> None:
    """Blocks come one after the other; what they hold is what the answer without stream holds."""
    assert _accumulated(_stream(name)) == _whole(name)


@pytest.mark.parametrize("name", NAMES)
def test_answer_is_that_of_llama_server(name: str) -> None:
    """But for what its own repeats of the request, and names of stop sequences."""
    own, ours = json.loads((GOLDEN / f"{name}.json").read_bytes()), _whole(name)

    for block in own["content"] + ours["content"]:
        block.pop("id", None)
    if name.startswith(("prefill", "crabs")):
        repeated = CRABS if name.startswith("crabs") else PREFILL[0]["text"]
        own["content"][0]["text"] = own["content"][0]["text"].removeprefix(repeated)
    if name.startswith("stop"):
        assert own["stop_reason"] == "end_turn"
        own["stop_reason"] = "stop_sequence"
    for key in ("type", "role", "content", "stop_reason", "stop_sequence"):
        assert ours[key] == own[key]
    for usage in (own["usage"], ours["usage"]):
        usage["all"] = usage.pop("input_tokens") + usage.pop("cache_read_input_tokens")
    assert ours["usage"] == {**own["usage"], "cache_creation_input_tokens": 0}


@pytest.mark.parametrize("name", NAMES)
def test_head_of_a_message_is_in_anthropics_form(name: str) -> None:
    """The model is named as it was asked for; llama-server's id says that it is a chat's."""
    engine_id = _golden(name).partition(b'"id":"chatcmpl-')[2].partition(b'"')[0].decode()

    for message in (_stream(name, model="M:1")[0]["message"], _whole(name, model="M:1")):
        assert (message["id"], message["model"]) == (f"msg_{engine_id}", "M:1")


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

    assert set(start) == set(end) == counts
    assert {**end, "output_tokens": 0} == start
    assert end == _whole(name)["usage"]


@pytest.mark.parametrize("name", NAMES)
@given(cuts=st.lists(st.integers(0, 9000), max_size=20))
def test_any_cut_of_the_stream_gives_the_same_events(name: str, cuts: list[int]) -> None:
    """Where the network cuts the stream changes nothing."""
    stream = _golden(name)
    bounds = [0, *sorted(min(at, len(stream)) for at in cuts), len(stream)]
    for is_stream in (True, False):
        cut = _mend(name, stream=is_stream)
        pieces = [cut.feed(stream[a:b]) for a, b in pairwise(bounds)]

        whole = _mended(stream, name, stream=is_stream)
        assert b"".join([*pieces, cut.finish()]) == whole


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("stop")])
def test_stop_word_of_the_template_is_not_told(name: str) -> None:
    """The client asked for none, so the turn just ended."""
    for message in (
        _accumulated(_stream(name, stop_sequences=None)),
        _whole(name, stop_sequences=["x"]),
    ):
        assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


def _chunk(delta: dict[str, Any], reason: str | None = None, **members: Any) -> bytes:
    choice = {"finish_reason": reason, "index": 0, "delta": delta}
    return _event({"choices": [choice], "id": "chatcmpl-1", "model": "m", **members})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(data).encode()


def _called(index: int, **call: Any) -> bytes:
    return _chunk({"tool_calls": [{"index": index, **call}]})


def _last(reason: str, **members: Any) -> bytes:
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 5},
    }
    counts = _event({"choices": [], "id": "chatcmpl-1", "usage": usage})
    return _chunk({}, reason, **members) + counts + b"data: [DONE]\n\n"


ROLE = {"role": "assistant", "content": None}
PROGRESS = _chunk(ROLE, prompt_progress={"total": 12, "cache": 5, "processed": 5, "time_ms": 0})
TEXT = _chunk({"content": "{}"})
ERROR = _event({"error": {"code": 503, "message": "no", "type": "server_error"}})


def test_progress_alone_is_nothing_for_the_client() -> None:
    """Before its first byte an answer can be asked for once more."""
    assert _mend(stream=True).feed(PROGRESS + PROGRESS) == b""


def test_start_and_end_frame_the_blocks() -> None:
    """The prompt is counted as soon as there is a token, the answer at its end."""
    stream = _mended(PROGRESS + _chunk(ROLE) + TEXT + TEXT + _last("stop"), stream=True)

    start, *blocks, end, stop = _events(stream)
    counts = {
        "input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 5,
    }
    assert start["message"] == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**counts, "output_tokens": 0},
    }
    delta = {"index": 0, "delta": {"type": "text_delta", "text": "{}"}}
    assert blocks == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", **delta},
        {"type": "content_block_delta", **delta},
        {"type": "content_block_stop", "index": 0},
    ]
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"] == {**counts, "output_tokens": 3}
    assert stop == {"type": "message_stop"}


def test_thought_is_a_block_of_its_own_before_the_text() -> None:
    """It is signed and closed before the text begins; Claude Code shows a block once it is."""
    thought = _chunk({"reasoning_content": "hm"})

    events = _events(_mended(PROGRESS + thought + TEXT + _last("stop"), stream=True))

    told = [
        (event["type"].removeprefix("content_block_"), event["index"]) for event in events[1:-2]
    ]
    assert told == [
        ("start", 0), ("delta", 0), ("delta", 0), ("stop", 0),
        ("start", 1), ("delta", 1), ("stop", 1),
    ]  # fmt: skip
    assert events[1]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert events[2]["delta"] == {"type": "thinking_delta", "thinking": "hm"}
    assert events[3]["delta"] == {"type": "signature_delta", "signature": ""}


def test_text_after_a_call_is_a_block_of_its_own() -> None:
    """A block that is closed cannot be gone on with."""
    call = _called(0, id="c1", function={"name": "f", "arguments": "{}"})
    data = PROGRESS + TEXT + call + TEXT + TEXT + _last("tool_calls")

    message = _accumulated(_events(_mended(data, stream=True)))

    assert [block["type"] for block in message["content"]] == ["text", "tool_use", "text"]
    assert message["content"][2]["text"] == "{}{}"
    assert message == json.loads(_mended(data))


def test_calls_of_tools_are_blocks_one_after_the_other() -> None:
    """Each begins once its name is whole, with no input; its arguments come in pieces of JSON."""
    data = b"".join(
        [
            PROGRESS,
            _called(0, id="c1", type="function", function={"name": "get"}),
            _called(0, id="c1", type="function", function={"name": "get_all"}),
            _called(0, function={"arguments": '{"a":'}),
            _called(0, function={"arguments": ' "\N{CRAB}"}'}),
            _called(1, id="c2", type="function", function={"name": "g"}),
            _last("tool_calls"),
        ]
    )

    events = _events(_mended(data, stream=True))

    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [(start["index"], start["content_block"]) for start in starts] == [
        (0, {"type": "tool_use", "id": "c1", "name": "get_all", "input": {}}),
        (1, {"type": "tool_use", "id": "c2", "name": "g", "input": {}}),
    ]
    pieces = [event["delta"]["partial_json"] for event in events if "partial_json" in str(event)]
    assert pieces == ['{"a":', ' "\N{CRAB}"}']
    message = _accumulated(events)
    assert (message["stop_reason"], message["content"][0]["input"]) == ("tool_use", {"a": CRABS[0]})
    assert message == json.loads(_mended(data))


def test_arguments_that_the_limit_cut_are_none() -> None:
    """As llama-server's own; a stream has them as far as they came."""
    call = _called(0, id="c1", function={"name": "f", "arguments": '{"a":'})
    message = json.loads(_mended(PROGRESS + call + _last("length")))

    assert message["stop_reason"] == "max_tokens"
    assert message["content"] == [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}]


@pytest.mark.parametrize(
    ("reason", "word", "ending"),
    [
        ("length", "", ("max_tokens", None)),
        ("stop", "", ("end_turn", None)),
        ("stop", "x", ("stop_sequence", "x")),
        ("stop", "<end>", ("end_turn", None)),
        ("tool_calls", "x", ("tool_use", "x")),
        ("tool_calls", "<end>", ("tool_use", None)),
    ],
)
def test_reason_of_the_end_is_the_same_streamed_and_whole(
    reason: str, word: str, ending: tuple[str, str | None]
) -> None:
    """A stop word of the model's is none of the client's; a call stays one, so that it is run."""
    data = PROGRESS + TEXT + _last(reason, __verbose={"stopping_word": word})

    streamed = _events(_mended(data, stream=True, stop_sequences=["x"]))[-2]["delta"]
    whole = json.loads(_mended(data, stop_sequences=["x"]))

    assert (streamed["stop_reason"], streamed["stop_sequence"]) == ending
    assert (whole["stop_reason"], whole["stop_sequence"]) == ending


def test_answer_that_says_nothing_is_a_message_without_blocks() -> None:
    """Anthropic has no empty texts."""
    data = PROGRESS + _chunk({"content": ""}) + _last("stop")

    assert json.loads(_mended(data))["content"] == []
    assert _accumulated(_events(_mended(data, stream=True)))["content"] == []


def test_comment_passes_in_a_stream_alone() -> None:
    """Pings keep a connection open."""
    data = PROGRESS + b":\n\n" + TEXT + _last("stop")

    assert _mended(data, stream=True).startswith(b":\n\nevent: message_start\n")
    assert b":\n\n" not in _mended(data)


@pytest.mark.parametrize("is_stream", [True, False])
def test_error_in_the_stream_is_raised_after_what_came_before_it(*, is_stream: bool) -> None:
    """By its status where the client has had nothing yet, else as the stream's last event."""
    mend = _mend(stream=is_stream)

    if is_stream:
        assert mend.feed(PROGRESS + TEXT + ERROR).endswith(b'"text":"{}"}}\n\n')
    with pytest.raises(EngineError, match="no") as caught:
        mend.feed(ERROR)

    assert (caught.value.status, json.loads(caught.value.body or b"")) == (
        503,
        json.loads(ERROR[6:]),
    )
    with pytest.raises(EngineError):
        mend.finish()


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("data", [b"", PROGRESS, PROGRESS + TEXT, PROGRESS + TEXT + b"data: {"])
def test_stream_that_breaks_off_is_no_answer(data: bytes, *, is_stream: bool) -> None:
    """It never ends as if it were whole."""
    mend = _mend(stream=is_stream)
    mend.feed(data)

    with pytest.raises(UpstreamError, match="broke off"):
        mend.finish()


@pytest.mark.parametrize("is_stream", [True, False])
def test_event_that_is_none_is_an_error(*, is_stream: bool) -> None:
    """No other exception leaves."""
    with pytest.raises(UpstreamError, match="unreadable"):
        _mend(stream=is_stream).feed(b'data: {"choices":1}\n\n')
