"""``/v1`` and ``/upstream``: what llama-server answers reaches the client as it was."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.running import RunningKvsup, eventually

SMOLLM2 = """
model = "{path}"
aliases = ["org/small:1"]
num_ctx = 2048
num_parallel = 2
threads = 1
"""

EMBEDDER = """
model = "{path}"
num_ctx = 512
threads = 1
embedding = "on"
"""

QUESTION: list[dict[str, str]] = [{"role": "user", "content": "Count from one to ten."}]
CHAT: dict[str, Any] = {
    "model": "smollm2", "messages": QUESTION, "temperature": 0, "seed": 1, "max_tokens": 16,
}  # fmt: skip
COMPLETION: dict[str, Any] = {
    "model": "smollm2", "prompt": "One, two, three,", "temperature": 0, "seed": 1, "max_tokens": 16,
}  # fmt: skip
BODIES = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}

VARYING = re.compile(
    rb'"id":"[^"]*"|"id_slot":\d+|"created":\d+|,?"timings":\{[^}]*\}|"cached_tokens":\d+'
)
"""What differs from one answer to the next of the same llama-server."""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file."""
    models = {"smollm2": SMOLLM2.format(path=smollm2), "embedder": EMBEDDER.format(path=smollm2)}
    folder = tmp_path_factory.mktemp("openai") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert running.children() == []


@pytest.fixture
def client(kvsup: RunningKvsup) -> Iterator[openai.OpenAI]:
    """Return OpenAI's own client."""
    with openai.OpenAI(base_url=f"{kvsup.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def engine(kvsup: RunningKvsup) -> Iterator[httpx.Client]:
    """Return a client on the socket of the loaded llama-server, past kvsup.

    It keeps no connection: llama-server sometimes drops one after a stream (b11434).
    """
    kvsup.client.post("/api/generate", json={"model": "smollm2"}).raise_for_status()
    pid = kvsup.models()["smollm2"]["pid"]
    words = next(child.cmdline() for child in kvsup.children() if child.pid == pid)
    socket = words[words.index("--host") + 1]
    with httpx.HTTPTransport(uds=socket) as transport:
        yield httpx.Client(
            transport=transport,
            base_url="http://engine",
            headers={"connection": "close"},
            timeout=60,
        )


def _same(raw: bytes) -> bytes:
    return VARYING.sub(b"", raw)


def _is_idle(kvsup: RunningKvsup, name: str = "smollm2") -> bool:
    slots = kvsup.client.get(f"/upstream/{name}/slots").json()
    return not any(slot["is_processing"] for slot in slots)


@pytest.mark.parametrize("extra", [{}, {"stream_options": {"include_usage": True}}])
@pytest.mark.parametrize("path", BODIES)
def test_stream_through_kvsup_is_the_bytes_of_llama_server(
    kvsup: RunningKvsup, engine: httpx.Client, path: str, extra: dict[str, Any]
) -> None:
    """Event by event, byte by byte, but for identifiers, times and timings."""
    body = {**BODIES[path], **extra, "stream": True}
    engine.post(path, json=body)

    own = engine.post(path, json=body)
    through = kvsup.client.post(path, json=body)

    assert _same(through.content) == _same(own.content)
    assert through.content.endswith(b"data: [DONE]\n\n")
    assert through.headers["content-type"] == own.headers["content-type"] == "text/event-stream"
    assert through.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", BODIES)
def test_answer_without_stream_through_kvsup_is_that_of_llama_server(
    kvsup: RunningKvsup, engine: httpx.Client, path: str
) -> None:
    """The same members with the same values, but for identifiers, times and timings."""
    body = BODIES[path]
    engine.post(path, json=body)

    own = engine.post(path, json=body)
    through = kvsup.client.post(path, json=body)

    assert set(through.json()) == set(own.json())
    assert set(through.json()["timings"]) == set(own.json()["timings"])
    for answer in (own.json(), through.json()):
        assert answer["id"]
    varying = ("id", "created", "timings")
    kept = [
        {key: value for key, value in answer.json().items() if key not in varying}
        for answer in (own, through)
    ]
    for answer in kept:
        answer["usage"].pop("prompt_tokens_details", None)
    assert kept[1] == kept[0]
    assert through.headers["content-type"] == own.headers["content-type"]


def test_openai_client_chats_streamed_and_not_with_the_same_text(client: openai.OpenAI) -> None:
    """OpenAI's own package reads both."""
    whole = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Count from one to ten."}],
        temperature=0,
        max_tokens=16,
    )
    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Count from one to ten."}],
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content != ""
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16


def test_openai_client_completes_and_lists_models(client: openai.OpenAI) -> None:
    """Completions, the catalogue, and one entry of it by any of its names."""
    done = client.completions.create(model="org/small:1", prompt="One, two,", max_tokens=4)
    listed = [model.id for model in client.models.list()]
    one = client.models.retrieve("SmolLM2")

    assert done.choices[0].text
    assert listed == ["embedder:latest", "smollm2:latest"]
    assert (one.id, one.object, one.owned_by) == ("SmolLM2", "model", "library")


def test_openai_client_embeds_floats_and_base64_alike(client: openai.OpenAI) -> None:
    """The package asks for base64 by default and decodes it."""
    packed = client.embeddings.create(model="embedder", input=["a cat", "a dog"])
    plain = client.embeddings.create(model="embedder", input="a cat", encoding_format="float")

    assert [len(item.embedding) for item in packed.data] == [576, 576]
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-3)


def test_unknown_model_is_404_in_the_shape_of_openai(
    kvsup: RunningKvsup, client: openai.OpenAI
) -> None:
    """OpenAI's client raises the class for it; the body has all four members."""
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gone", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gone")

    answer = kvsup.client.post("/v1/embeddings", json={"model": "gone", "input": "x"})

    assert answer.status_code == 404
    assert answer.json() == {
        "error": {
            "message": "model 'gone' not found",
            "type": "not_found_error",
            "param": None,
            "code": "model_not_found",
        }
    }


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"model": 1}', b'{"messages": []}', b"[]", b"\xff", b'{"model": "smollm2",}'],
)
def test_malformed_body_is_400_in_the_shape_of_openai(kvsup: RunningKvsup, content: bytes) -> None:
    """Nothing is sent on that has no model."""
    answer = kvsup.client.post("/v1/chat/completions", content=content)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["message"]


def test_engine_error_has_the_words_of_llama_server_in_the_shape_of_openai(
    kvsup: RunningKvsup, engine: httpx.Client
) -> None:
    """Its ``code`` is a number, which OpenAI's types forbid."""
    for extra in ({}, {"stream": True}):
        body = {**CHAT, **extra, "messages": [{"role": "user", "content": "word " * 4000}]}

        own = engine.post("/v1/chat/completions", json=body)
        through = kvsup.client.post("/v1/chat/completions", json=body)

        assert through.status_code == own.status_code == 400
        assert through.json()["error"] == {
            **own.json()["error"],
            "type": "invalid_request_error",
            "param": None,
            "code": "context_length_exceeded",
        }


def test_unknown_v1_path_is_what_llama_server_says(
    kvsup: RunningKvsup, engine: httpx.Client
) -> None:
    """``/v1/*`` is chosen by the body's model and passed on, whatever it is."""
    own = engine.post("/v1/nothing", json={"model": "smollm2"})
    through = kvsup.client.post("/v1/nothing", json={"model": "smollm2"})

    assert through.status_code == own.status_code == 404
    assert through.json()["error"]["message"] == own.json()["error"]["message"]
    assert kvsup.client.get("/v1/chat/completions").status_code == 405
    assert kvsup.client.delete("/v1/models/smollm2").status_code == 405


def test_upstream_endpoints_are_those_of_the_instance(kvsup: RunningKvsup) -> None:
    """Slots, properties, metrics and health, by any of the model's names."""
    slots = kvsup.client.get("/upstream/smollm2/slots").json()
    props = kvsup.client.get("/upstream/org/small:1/props").json()
    metrics = kvsup.client.get("/upstream/SMOLLM2:latest/metrics")
    health = kvsup.client.get("/upstream/smollm2/health")
    tokens = kvsup.client.post("/upstream/smollm2/tokenize", json={"content": "a cat"}).json()

    assert [slot["n_ctx"] for slot in slots] == [2048, 2048]
    assert props["model_alias"] == "smollm2"
    assert props["total_slots"] == 2
    assert "llamacpp:prompt_tokens_total" in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain")
    assert health.json() == {"status": "ok"}
    assert len(tokens["tokens"]) == 2


def test_upstream_passes_queries_and_errors_on(kvsup: RunningKvsup, engine: httpx.Client) -> None:
    """The query belongs to llama-server, and so does a refusal."""
    own = engine.get("/slots?fail_on_no_slot=1")
    through = kvsup.client.get("/upstream/smollm2/slots?fail_on_no_slot=1")
    lost = kvsup.client.get("/upstream/smollm2/nothing")

    assert (through.status_code, len(through.json())) == (own.status_code, len(own.json()))
    assert lost.status_code == 404
    assert kvsup.client.get("/upstream/gone/slots").status_code == 404


def test_upstream_stream_is_passed_on_as_it_is(kvsup: RunningKvsup, engine: httpx.Client) -> None:
    """A stream below ``/upstream`` is not touched."""
    body = {"prompt": "One, two,", "n_predict": 8, "temperature": 0, "stream": True}
    engine.post("/completion", json=body)

    own = engine.post("/completion", json=body)
    through = kvsup.client.post("/upstream/smollm2/completion", json=body)

    def texts(answer: httpx.Response) -> list[str]:
        lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
        return [json.loads(line.removeprefix("data: "))["content"] for line in lines]

    assert texts(through) == texts(own)
    assert len(texts(own)) >= 8


def test_conversation_header_does_not_reach_llama_server(kvsup: RunningKvsup) -> None:
    """With it llama-server would go on for a client that has left, to let it come back."""
    body = {**CHAT, "stream": True, "max_tokens": 2000, "ignore_eos": True}
    headers = {"x-conversation-id": "abc"}

    with kvsup.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        next(answer.iter_lines())

    eventually(lambda: _is_idle(kvsup))
    assert kvsup.client.get("/upstream/smollm2/v1/stream/abc").status_code == 404


def test_model_list_is_never_null_and_names_show_their_tags(kvsup: RunningKvsup) -> None:
    """SDKs iterate ``data``."""
    listed = kvsup.client.get("/v1/models").json()

    assert listed["object"] == "list"
    assert [set(entry) for entry in listed["data"]] == [{"id", "object", "created", "owned_by"}] * 2
