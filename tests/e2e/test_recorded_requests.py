"""What each client of the matrix sent, replayed: the answers are what the contracts say.

``tests/clients/recording.py`` recorded the requests; the clients are not needed here.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from tests import contract, contract_anthropic, contract_openai, contract_responses
from tests.clients.asking import ABSENT, MODEL
from tests.clients.models import client_models
from tests.contract import ndjson_lines, sse_events
from tests.running import RunningKvsup
from tests.tiny import TinyModels

FOLDER = Path(__file__).parent.parent / "golden" / "requests"
WRONG_TYPE = b':"hot"'
WRONG_IN_V1 = (
    b'"messages":[]',
    b'"input":[]',
    b'"max_tokens":0',
    b'"text":5',
    b'"no_such_item"',
    WRONG_TYPE,
)
"""What some clients send to be refused with 400."""

NOT_LISTED = frozenset({"/api/pull", "/api/push"})
"""Refused with 400 here, where no registry is listed."""

DEPENDENT = frozenset({"ollama_store", "ollama_command"})
"""Clients whose requests make sense one after the other alone, beside a registry."""

FIELD = re.compile(rb'name="(\w+)"\r\n\r\n(.*)\r\n')
"""A field of a form that is no file."""


class Version(contract.Closed):
    """Ollama's version that kvsup is like, and its own."""

    version: str
    kvsup: str


WHOLE: dict[str, Any] = {
    "/api/chat": contract.ChatEnd,
    "/api/generate": contract.GenerateEnd,
    "/api/embed": contract.Embed,
    "/api/embeddings": contract.OldEmbedding,
    "/api/tags": contract.Tags,
    "/api/ps": contract.Ps,
    "/api/show": contract.Show,
    "/api/version": Version,
    "/api/create": contract.Progress,
    "/v1/models": contract_openai.ModelList,
    "/v1/models/": contract_openai.Model,
    "/v1/chat/completions": contract_openai.ChatCompletion,
    "/v1/completions": contract_openai.TextCompletion,
    "/v1/audio/transcriptions": contract_openai.Transcription,
    "/v1/embeddings": contract_openai.OpenAIEmbeddings,
    "/v1/responses": contract_responses.Response,
    "/v1/messages": contract_anthropic.AnthropicMessage,
    "/v1/messages/count_tokens": contract_anthropic.TokenCount,
}


class Recorded(NamedTuple):
    """One request of a client."""

    method: str
    path: str
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        """Return the members of the body, or the fields of a form; none if there is none."""
        if self.headers.get("content-type", "").startswith("multipart/"):
            return {name.decode(): value.decode() for name, value in FIELD.findall(self.content)}
        members: dict[str, Any] = json.loads(self.content or "{}")
        return members

    @property
    def route(self) -> str:
        """Return the path without query, and without the name of a model."""
        path = self.path.partition("?")[0]
        return "/v1/models/" if path.startswith("/v1/models/") else path

    @property
    def is_streamed(self) -> bool:
        """Return whether the answer is a stream: Ollama's are unless they only load."""
        if self.route not in {"/api/chat", "/api/generate"}:
            return bool(self.body.get("stream"))
        is_load = not (self.body.get("messages") or self.body.get("prompt"))
        return self.body.get("stream", True) and not is_load

    @property
    def status(self) -> int:
        """Return the status that the contract asks for."""
        body = self.body
        name = body.get("model") or body.get("name") or body.get("source")
        name = name or self.path.rpartition("/")[2]
        if self.route in NOT_LISTED:
            return 400
        if name == ABSENT:
            return 404
        if self.route.startswith("/v1"):
            is_unlimited = self.route == "/v1/messages" and "max_tokens" not in body
            return 400 if is_unlimited or any(w in self.content for w in WRONG_IN_V1) else 200
        if WRONG_TYPE in self.content:
            return 500
        has_images = any(message.get("images") for message in body.get("messages", ()))
        is_too_much = bool(body.get("tools") or body.get("think") or has_images)
        return 400 if name == MODEL and is_too_much else 200


def _recordings() -> Iterator[Any]:
    for file in sorted(FOLDER.glob("*.json")):
        for number, request in enumerate(json.loads(file.read_text())):
            content = base64.b64decode(request.get("body_base64", ""))
            content = content or request["body"].encode()
            recorded = Recorded(request["method"], request["path"], request["headers"], content)
            yield pytest.param(recorded, id=f"{file.stem}-{number}-{recorded.path}")


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup with the models of the matrix."""
    models = client_models(TinyModels(tmp_path_factory.mktemp("tiny")), smollm2)
    folder = tmp_path_factory.mktemp("replay") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert running.children() == []


@pytest.mark.parametrize("recorded", [*_recordings()])
def test_recorded_request_is_answered_as_the_contract_says(
    kvsup: RunningKvsup, recorded: Recorded
) -> None:
    """Its status, its media type, and every member of every object of the answer."""
    headers = dict(recorded.headers)
    content: Any = recorded.content
    if headers.pop("transfer-encoding", None):
        content = iter([content])

    answer = kvsup.client.request(recorded.method, recorded.path, headers=headers, content=content)

    assert answer.status_code == recorded.status, answer.text
    if recorded.status >= 400:
        _check_failure(recorded.route, answer)
    elif recorded.is_streamed:
        STREAMS[recorded.route](answer)
    elif recorded.route == "/api/copy":
        assert answer.content == b""
    elif recorded.body.get("response_format") == "text":
        assert answer.headers["content-type"].startswith("text/plain")
    else:
        assert answer.headers["content-type"].startswith("application/json")
        whole = msgspec.json.decode(answer.content, type=WHOLE[recorded.route])
        asked = recorded.body.get("model")
        assert getattr(whole, "model", asked) == asked


def test_every_client_of_the_matrix_is_recorded() -> None:
    """A client whose requests were never recorded would seem tested."""
    folder = Path(__file__).parent.parent / "clients"
    in_python = {file.stem.removeprefix("test_") for file in folder.glob("test_*.py")}
    in_node = {f"node_{file.name.partition('.')[0]}" for file in folder.glob("node/*.test.mjs")}
    clients = in_python - {"node"} | in_node

    assert {file.stem for file in FOLDER.glob("*.json")} == clients - DEPENDENT


def _check_failure(route: str, answer: httpx.Response) -> None:
    assert answer.headers["content-type"].startswith("application/json")
    kind: Any = contract.Failure
    if route.startswith("/v1/messages"):
        kind = contract_anthropic.AnthropicFailure
    elif route.startswith("/v1"):
        kind = contract_openai.OpenAIFailure
    msgspec.json.decode(answer.content, type=kind)


def _check_lines(answer: httpx.Response, piece: Any, end: Any) -> list[Any]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    *lines, last = ndjson_lines(answer.text)
    pieces = [msgspec.json.decode(line, type=piece) for line in lines]
    whole = msgspec.json.decode(last, type=end)
    assert [each.done for each in (*pieces, whole)] == [False] * len(pieces) + [True]
    return [*pieces, whole]


def _check_chat(answer: httpx.Response) -> None:
    *pieces, end = _check_lines(answer, contract.ChatPiece, contract.ChatEnd)
    assert end.message.content == ""
    for piece in pieces:
        message = piece.message
        assert message.content or message.thinking or message.tool_calls


def _check_generate(answer: httpx.Response) -> None:
    *pieces, end = _check_lines(answer, contract.GeneratePiece, contract.GenerateEnd)
    assert end.response == ""
    assert all(piece.response or piece.thinking for piece in pieces)


def _events(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    return [*sse_events(answer.text)]


def _check_chunks(answer: httpx.Response, kind: Any) -> list[Any]:
    *events, end = _events(answer)
    assert end == ("", "[DONE]")
    chunks = [msgspec.json.decode(data, type=kind) for _, data in events]
    assert len({(chunk.id, chunk.model) for chunk in chunks}) == 1
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [bool(reason) for reason in reasons] == [False] * (len(reasons) - 1) + [True]
    return chunks


def _check_transcript(answer: httpx.Response) -> None:
    *events, end = _events(answer)
    assert end == ("", "[DONE]")
    kinds = [json.loads(data)["type"] for _, data in events]
    assert kinds == ["transcript.text.delta"] * (len(kinds) - 1) + ["transcript.text.done"]
    msgspec.json.decode(events[-1][1], type=contract_openai.Transcription)


def _check_typed(answer: httpx.Response, kind: Any) -> list[Any]:
    events = _events(answer)
    assert [json.loads(data)["type"] for _, data in events] == [name for name, _ in events]
    return [msgspec.json.decode(data, type=kind) for _, data in events]


def _check_responses(answer: httpx.Response) -> None:
    events = _check_typed(answer, contract_responses.ResponseEvent)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert isinstance(events[0], contract_responses.Created)
    assert isinstance(events[1], contract_responses.InProgress)
    assert events[0].response.output == []
    last = events[-1]
    done = [event for event in events if isinstance(event, contract_responses.ItemDone)]
    assert isinstance(last, contract_responses.Completed | contract_responses.Cut)
    assert [event.item for event in done] == last.response.output
    assert [event.output_index for event in done] == list(range(len(done)))


def _check_messages(answer: httpx.Response) -> None:
    events = _check_typed(answer, contract_anthropic.MessageEvent)
    assert isinstance(events[0], contract_anthropic.MessageStart)
    assert isinstance(events[-2], contract_anthropic.MessageDelta)
    assert isinstance(events[-1], contract_anthropic.MessageStop)
    starts = [e.index for e in events if isinstance(e, contract_anthropic.BlockStart)]
    stops = [e.index for e in events if isinstance(e, contract_anthropic.BlockStop)]
    assert starts == stops == list(range(len(starts)))


STREAMS: dict[str, Callable[[httpx.Response], object]] = {
    "/api/chat": _check_chat,
    "/api/generate": _check_generate,
    "/v1/chat/completions": lambda answer: _check_chunks(answer, contract_openai.ChatChunk),
    "/v1/completions": lambda answer: _check_chunks(answer, contract_openai.TextCompletion),
    "/v1/audio/transcriptions": _check_transcript,
    "/v1/responses": _check_responses,
    "/v1/messages": _check_messages,
}
