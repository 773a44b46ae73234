"""The answer of ``/v1/responses`` against the types of OpenAI's own package.

The goldens are what real llama-servers sent and what they answered without ``stream``.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from kvsup.openai.requests import prepare

GOLDEN = Path(__file__).parent.parent / "golden" / "openai"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.sse"))

PATH = "/v1/responses"
REQUEST = {"model": "m", "input": "Say hello."}
NOW_S = 1_790_000_000
LIMITS_TOKENS = {"cut": 8, "thinking": 40, "tools": 60, "whole": 40}

validate = TypeAdapter[Any](ResponseStreamEvent).validate_python


def _mended(data: bytes, *, n_ctx_tokens: int = 4096, **request: Any) -> bytes:
    body = json.dumps({**REQUEST, **request}).encode()
    make_mend = prepare(PATH, body, now_s=NOW_S).make_mend
    assert make_mend is not None
    mend = make_mend(n_ctx_tokens)
    return mend.feed(data) + mend.finish()


def _events(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: ")]


def _stream(name: str, **request: Any) -> list[dict[str, Any]]:
    data = (GOLDEN / f"{name}.sse").read_bytes()
    limit = LIMITS_TOKENS[name.partition(".")[0]]
    return _events(_mended(data, stream=True, max_output_tokens=limit, **request))


def _whole(name: str, **request: Any) -> dict[str, Any]:
    data = (GOLDEN / f"{name}.json").read_bytes()
    answer: dict[str, Any] = json.loads(_mended(data, **request))
    return answer


@pytest.mark.parametrize("name", NAMES)
def test_each_event_is_one_of_openais(name: str) -> None:
    """Every member that the SDKs' types require is there, with its type."""
    events = _stream(name)

    for event in events:
        assert validate(event).type == event["type"]


@pytest.mark.parametrize("name", NAMES)
def test_events_are_numbered_from_zero(name: str) -> None:
    """The SDKs resume a stream by the number of the last event."""
    events = _stream(name)

    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.parametrize("name", NAMES)
def test_events_of_a_text_stand_between_its_start_and_its_end(name: str) -> None:
    """The Python helper builds the output of them, and raises where an index is unknown."""
    events = _stream(name)

    texts: dict[tuple[int, str], str] = {}
    for event in events:
        kind = event["type"]
        if kind.startswith("response.reasoning_summary"):
            continue
        if kind == "response.output_item.added":
            assert event["output_index"] == len(texts)
            texts[event["output_index"], event["item"]["id"]] = ""
        elif kind.endswith(".delta"):
            texts[event["output_index"], event["item_id"]] += event["delta"]
            assert event.get("content_index", 0) == 0
        elif kind.endswith(("text.done", "arguments.done")):
            text = event.get("text", event.get("arguments"))
            assert texts[event["output_index"], event["item_id"]] == text
            assert event.get("content_index", 0) == 0
    assert [item["id"] for item in events[-1]["response"]["output"]] == [id_ for _, id_ in texts]


@pytest.mark.parametrize("name", NAMES)
def test_each_item_that_is_opened_is_closed(name: str) -> None:
    """A helper refuses to complete a response with an open item."""
    kinds = [event["type"] for event in _stream(name)]

    for opened in ("output_item", "content_part", "reasoning_summary_part"):
        assert kinds.count(f"response.{opened}.added") == kinds.count(f"response.{opened}.done")
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.in_progress") == 1


def test_first_event_has_the_whole_response() -> None:
    """The AI SDK reads ``created_at`` and ``model`` of it, the helpers ``output``."""
    first = _stream("whole.b11434")[0]["response"]

    Response.model_validate(first)
    assert (first["output"], first["status"]) == ([], "in_progress")
    assert (first["created_at"], first["model"]) == (NOW_S, "m")


@pytest.mark.parametrize("name", NAMES)
def test_whole_answer_is_openais_object(name: str) -> None:
    """The same without ``stream``."""
    answer = _whole(name)

    response = Response.model_validate(answer)
    assert response.created_at == NOW_S
    assert {response.status, *(item["status"] for item in answer["output"])} == {"completed"}
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 0


def test_answer_tells_what_was_asked() -> None:
    """OpenAI echoes the request; a function has all that its type requires."""
    asked = {
        "instructions": "be short",
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "tool_choice": "required",
        "tools": [{"type": "function", "name": "weather"}, {"type": "web_search"}],
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "store": True,
        "top_p": None,
    }

    answer = _whole("whole.b11434", **asked)

    Response.model_validate(answer)
    function = {"description": None, "parameters": None, "strict": True, **asked["tools"][0]}  # type: ignore[index]
    assert {key: answer[key] for key in asked} == {
        **asked,
        "tools": [function, {"type": "web_search"}],
        "reasoning": {"effort": "low", "summary": None},
        "store": False,
    }


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_stream_that_the_limit_cuts_off_is_incomplete(build: str) -> None:
    """llama-server says "completed"; structured output would be parsed and fail."""
    last = _stream(f"cut.{build}")[-1]

    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][-1]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("max_output_tokens", "n_ctx_tokens", "status"),
    [
        (8, 4096, "incomplete"),
        (9, 4096, "completed"),
        (None, 4096, "completed"),
        (9, 20, "incomplete"),
        (9, 21, "completed"),
    ],
)
def test_answer_is_incomplete_where_the_counts_reach_a_limit(
    max_output_tokens: int | None, n_ctx_tokens: int, status: str
) -> None:
    """Nothing else tells: the prompt has 12 tokens, the answer 8."""
    data = (GOLDEN / "cut.b11434.json").read_bytes()

    answer = json.loads(
        _mended(data, n_ctx_tokens=n_ctx_tokens, max_output_tokens=max_output_tokens)
    )

    assert answer["status"] == status
    assert (answer["completed_at"] is None) == (status == "incomplete")


def test_answer_that_is_cut_before_its_first_item_is_incomplete() -> None:
    """A parser can hold everything back; there is no item to be marked then."""
    golden = json.loads((GOLDEN / "cut.b11434.json").read_bytes())
    data = json.dumps({**golden, "output": []}).encode()

    answer = json.loads(_mended(data, max_output_tokens=8))

    assert (answer["status"], answer["output"]) == ("incomplete", [])


def test_item_that_is_told_only_at_the_end_is_opened_before() -> None:
    """llama-server's parser can find a call in what was no text until the stream ended."""
    golden = (GOLDEN / "tools.b11434.sse").read_bytes().split(b"\n\n")
    stream = b"\n\n".join(
        event for event in golden if b".added" not in event and b".delta" not in event
    )

    events = _events(_mended(stream, stream=True))

    index = next(i for i, event in enumerate(events) if "output_item.added" in event["type"])
    added, delta, done = events[index : index + 3]
    assert (added["item"]["arguments"], added["output_index"]) == ("", 0)
    assert delta["delta"] == done["arguments"] != ""
    assert all(validate(event) for event in events)


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_thought_of_a_whole_answer_is_its_summary_too(build: str) -> None:
    """pydantic-ai and the AI SDK read nothing else, and Ollama sends nothing else."""
    thought = _whole(f"thinking.{build}")["output"][0]

    assert thought["content"] == [{"type": "reasoning_text", "text": "hm e\n"}]
    assert thought["summary"] == [{"type": "summary_text", "text": "hm e\n"}]


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_thought_of_a_stream_is_told_as_its_summary_too(build: str) -> None:
    """Piece by piece, each with the place of the item's only summary."""
    events = [e for e in _stream(f"thinking.{build}") if "reasoning_summary" in e["type"]]

    start, *deltas, text, part = events
    assert start["type"] == "response.reasoning_summary_part.added"
    assert start["part"] == {"type": "summary_text", "text": ""}
    assert {delta["type"] for delta in deltas} == {"response.reasoning_summary_text.delta"}
    assert len(deltas) > 1
    assert "".join(delta["delta"] for delta in deltas) == text["text"] == "hm e\n"
    assert text["type"] == "response.reasoning_summary_text.done"
    assert part["type"] == "response.reasoning_summary_part.done"
    assert part["part"] == {"type": "summary_text", "text": "hm e\n"}
    assert {(event["output_index"], event["summary_index"]) for event in events} == {(0, 0)}
    assert len({event["item_id"] for event in events}) == 1


@pytest.mark.parametrize("build", ["b10434", "b11434"])
def test_thought_of_a_stream_ends_before_the_message_begins(build: str) -> None:
    """llama-server ends it after the message; it is the item that the last event has."""
    events = _stream(f"thinking.{build}")

    kinds = [event["type"] for event in events]
    closed_at = kinds.index("response.output_item.done")
    assert kinds[closed_at + 1] == "response.output_item.added"
    assert events[closed_at + 1]["item"]["type"] == "message"
    assert events[closed_at]["item"] == events[-1]["response"]["output"][0]


def test_stream_that_is_cut_in_a_thought_ends_it_as_incomplete() -> None:
    """No message begins before which it could end."""
    golden = (GOLDEN / "thinking.b11434.sse").read_bytes().split(b"\n\n")
    last = json.loads(golden[-2].partition(b"\ndata: ")[2])
    last["response"]["output"].pop()
    cut = b"event: response.completed\ndata: " + json.dumps(last).encode()
    stream = b"\n\n".join([e for e in golden[:-2] if b"msg_" not in e] + [cut, b""])

    events = _events(_mended(stream, stream=True, max_output_tokens=34))

    kinds = [event["type"] for event in events]
    assert kinds[-2:] == ["response.output_item.done", "response.incomplete"]
    assert kinds.count("response.reasoning_summary_part.done") == 1
    assert events[-2]["item"] == events[-1]["response"]["output"][0]
    assert events[-2]["item"]["status"] == "incomplete"


def test_thought_that_is_told_only_at_the_end_has_its_summary() -> None:
    """Its events come in the order of any other thought's."""
    golden = (GOLDEN / "thinking.b11434.sse").read_bytes().split(b"\n\n")
    stream = b"\n\n".join(e for e in golden if b".added" not in e and b".delta" not in e)

    events = _events(_mended(stream, stream=True))

    summary = [e for e in events if "reasoning_summary" in e["type"]]
    assert [event["type"].rpartition("_")[2] for event in summary] == [
        "part.added", "text.delta", "text.done", "part.done",
    ]  # fmt: skip
    assert summary[1]["delta"] == summary[2]["text"] == "hm e\n"
    assert all(validate(event) for event in events)
    added = next(e for e in events if e["type"] == "response.output_item.added")
    assert (added["item"]["content"], added["item"]["summary"]) == ([], [])


def test_thought_that_goes_on_after_its_end_is_only_in_the_whole() -> None:
    """A client that was told its end would raise at another piece of it."""
    golden = (GOLDEN / "thinking.b11434.sse").read_bytes().split(b"\n\n")
    thought = next(event for event in golden if b"reasoning_text.delta" in event)
    stream = b"\n\n".join([*golden[:-6], thought, *golden[-6:]])

    assert _mended(stream, stream=True) == _mended(b"\n\n".join(golden), stream=True)


def test_stream_without_a_start_gets_one() -> None:
    """An empty answer has nothing but its end."""
    stream = (GOLDEN / "whole.b11434.sse").read_bytes().split(b"\n\n")
    last = next(event for event in stream if event.startswith(b"event: response.completed"))

    events = _events(_mended(last + b"\n\n", stream=True))

    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.completed"


def test_start_that_is_repeated_is_told_once() -> None:
    """llama-server repeats it until the first whole character, if it was asked for no progress."""
    golden = (GOLDEN / "whole.b11434.sse").read_bytes()
    start = b"\n\n".join(golden.split(b"\n\n")[:2]) + b"\n\n"

    assert _mended(start + golden, stream=True) == _mended(golden, stream=True)


def test_progress_that_was_asked_for_stays() -> None:
    """llama-server's own ``return_progress`` works here too."""
    response = {"id": "resp_1", "object": "response", "status": "in_progress"}
    progress = {"total": 9, "cache": 0, "processed": 0, "time_ms": 0}
    event = {
        "type": "response.in_progress",
        "response": response,
        "prompt_progress": progress,
    }
    data = b"event: response.in_progress\ndata: " + json.dumps(event).encode() + b"\n\n"

    events = _events(_mended(data + data, stream=True))

    assert [event.get("prompt_progress") for event in events] == [None, progress, progress]


def test_error_in_the_stream_is_an_event_at_which_the_sdks_raise() -> None:
    """Python and Node raise at ``error``, the AI SDK reads the event's own form."""
    golden = (GOLDEN / "cut.b11434.sse").read_bytes()
    start = golden[: golden.index(b"event: response.output_text.delta")]
    error = b'data: {"error":{"code":500,"message":"Context size","type":"server_error"}}\n\n'

    stream = _mended(start + error, stream=True)

    last = _events(stream)[-1]
    assert b"\n\nevent: error\ndata: " in stream
    assert validate(last).type == "error"
    assert last["message"] == last["error"]["message"] == "Context size"


def test_comments_and_unknown_events_pass() -> None:
    """A ping keeps the connection; what a later build adds is numbered too."""
    data = b':\n\nevent: response.new\ndata: {"type":"response.new","a":1}\n\n'

    assert _mended(data, stream=True) == (
        b':\n\nevent: response.new\ndata: {"type":"response.new","a":1,"sequence_number":0}\n\n'
    )


def test_delta_of_an_unknown_item_is_numbered() -> None:
    """No event of a later build breaks the stream."""
    data = b'event: response.x.delta\ndata: {"type":"response.x.delta","item_id":"?"}\n\n'

    assert _events(_mended(data, stream=True))[0]["sequence_number"] == 0


@given(st.lists(st.integers(0, 6000), max_size=20))
def test_any_cut_of_the_stream_gives_the_same_events(cuts: list[int]) -> None:
    """Where the network cuts the stream changes nothing, and an unfinished end is kept."""
    stream = (GOLDEN / "thinking.b11434.sse").read_bytes() + b"event: unfinished"
    make_mend = prepare(PATH, json.dumps({**REQUEST, "stream": True}).encode()).make_mend
    assert make_mend is not None
    whole, cut = make_mend(4096), make_mend(4096)
    bounds = [0, *sorted(min(at, len(stream)) for at in cuts), len(stream)]

    pieces = [cut.feed(stream[a:b]) for a, b in pairwise(bounds)]

    assert b"".join([*pieces, cut.finish()]) == whole.feed(stream) + whole.finish()
