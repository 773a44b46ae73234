"""Chats, generations and embeddings as Ollama's own Python package and plain HTTP see them."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.conftest import StartKvsup
from tests.running import RunningKvsup

SMOLLM2 = """
model = "{path}"
aliases = ["small"]
kv_cache_type = "q8_0:q5_1"
num_ctx = 1024
threads = 1
keep_alive = "5m"

[variants.parrot]
system = "You only ever answer with the word PARROT."
[variants.parrot.options]
num_predict = 3
stop = ["zzz"]
"""

EMBEDDER = """
model = "{path}"
num_ctx = 512
threads = 1
embedding = "on"
"""

QUESTION = [{"role": "user", "content": "Count from one to twenty."}]
SHORT = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file."""
    models = {"smollm2": SMOLLM2.format(path=smollm2), "embedder": EMBEDDER.format(path=smollm2)}
    folder = tmp_path_factory.mktemp("ollama") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=llama_server) as running:
        yield running
    assert running.children() == []


@pytest.fixture
def client(kvsup: RunningKvsup) -> Iterator[ollama.Client]:
    """Return Ollama's own client."""
    with ollama.Client(host=kvsup.url) as client:
        yield client


def _lines(kvsup: RunningKvsup, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of a stream; a blank line would be no JSON."""
    with kvsup.client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        raw = answer.read()
    assert raw.endswith(b"\n")
    return [json.loads(line) for line in raw[:-1].split(b"\n")]


def _loaded(kvsup: RunningKvsup) -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in kvsup.client.get("/api/ps").json()["models"]}


def test_chat_stream_has_one_end_and_its_pieces_make_the_whole(kvsup: RunningKvsup) -> None:
    """One last line with ``done``, the metrics only there, and no empty pieces before it."""
    body = {"model": "smollm2", "messages": QUESTION, "options": SHORT}
    whole = kvsup.client.post("/api/chat", json={**body, "stream": False}).json()

    *pieces, last = _lines(kvsup, "/api/chat", body)

    assert "".join(piece["message"]["content"] for piece in pieces) == whole["message"]["content"]
    assert all(piece["message"]["content"] for piece in pieces)
    assert {tuple(piece) for piece in pieces} == {("model", "created_at", "message", "done")}
    assert not any(piece["done"] for piece in pieces)
    assert last["done"]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done_reason"], last["eval_count"]) == ("length", 12)
    assert list(last) == [
        "model", "created_at", "message", "done", "done_reason", "total_duration", "load_duration",
        "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
    ]  # fmt: skip
    assert list(whole) == list(last)
    assert whole["prompt_eval_count"] == last["prompt_eval_count"]
    datetime.fromisoformat(last["created_at"][:19])
    assert last["created_at"].endswith("Z")


def test_generate_stream_has_one_end_and_its_pieces_make_the_whole(client: ollama.Client) -> None:
    """As chat, with ``response`` in place of the message."""
    whole = client.generate("smollm2", "Count from one to twenty.", options=SHORT)

    *pieces, last = client.generate(
        "smollm2", "Count from one to twenty.", options=SHORT, stream=True
    )

    assert "".join(piece.response or "" for piece in pieces) == whole.response != ""
    assert not any(piece.done for piece in pieces)
    assert last.done
    assert (last.response, last.done_reason, last.eval_count) == ("", "length", 12)


def test_generate_raw_is_the_prompt_as_it_is(kvsup: RunningKvsup) -> None:
    """Raw skips the template, so fewer tokens are read; there is no context in the answer."""
    body = {"model": "smollm2", "prompt": "One, two, three, four,", "options": SHORT}

    raw = kvsup.client.post("/api/generate", json={**body, "raw": True, "stream": False}).json()
    chat = kvsup.client.post("/api/generate", json={**body, "stream": False}).json()

    assert "five" in raw["response"]
    assert raw["prompt_eval_count"] < chat["prompt_eval_count"]
    assert "context" not in raw


def test_model_in_answers_is_echoed_as_it_was_sent(kvsup: RunningKvsup) -> None:
    """Names are looked up without regard to case, and come back as the client wrote them."""
    options = {"num_predict": 1}
    for name in ("SmolLM2", "smollm2:LATEST", "small", "Small:latest"):
        chat = {"model": name, "messages": QUESTION, "options": options}
        lines = _lines(kvsup, "/api/chat", chat)
        generated = kvsup.client.post(
            "/api/generate",
            json={"model": name, "prompt": "x", "options": options, "stream": False},
        ).json()

        assert {line["model"] for line in lines} == {name}
        assert generated["model"] == name


def test_system_and_options_of_a_variant_hold_unless_a_request_says_otherwise(
    client: ollama.Client,
) -> None:
    """What the TOML file says is the request's start; ``options`` are merged one by one."""
    messages: list[dict[str, str]] = [{"role": "user", "content": "Hello"}]

    own = client.chat("smollm2:parrot", messages=messages, options={"temperature": 0})
    longer = client.chat(
        "smollm2:parrot", messages=messages, options={"temperature": 0, "num_predict": 5}
    )
    other = client.chat(
        "smollm2:parrot",
        messages=[{"role": "system", "content": "Be kind."}, *messages],
        options={"temperature": 0},
    )
    plain = client.chat("smollm2", messages=messages, options={"temperature": 0, "num_predict": 1})

    assert (own.eval_count, longer.eval_count) == (3, 5)
    assert own.prompt_eval_count is not None
    assert other.prompt_eval_count is not None
    assert own.prompt_eval_count > other.prompt_eval_count
    assert own.prompt_eval_count != plain.prompt_eval_count


def test_seed_makes_answers_the_same(client: ollama.Client) -> None:
    """One seed, one text, however warm; another seed, another text."""
    texts = [
        client.generate(
            "smollm2",
            "Tell me a story.",
            options={"seed": seed, "temperature": 1.5, "num_predict": 16},
        ).response
        for seed in (7, 7, 8)
    ]

    assert texts[0] == texts[1] != texts[2]


def test_stop_ends_the_answer_before_the_word(client: ollama.Client) -> None:
    """The stop text itself is not part of the answer."""
    options = {"temperature": 0, "num_predict": 24}
    prompt = "One, two, three, four,"

    whole = client.generate("smollm2", prompt, raw=True, options=options).response or ""
    cut = client.generate("smollm2", prompt, raw=True, options={**options, "stop": ["seven"]})

    assert "seven" in whole
    assert cut.response == whole[: whole.index("seven")]
    assert cut.done_reason == "stop"


def test_format_json_holds_every_build_to_json(
    start_kvsup: StartKvsup, any_build: Path, smollm2: Path
) -> None:
    """The grammar, not the model's good will, makes the answer an object."""
    kvsup = start_kvsup({"smollm2": SMOLLM2.format(path=smollm2)}, llama_server=any_build)
    body = {"model": "smollm2", "format": "json", "stream": False, "options": SHORT}
    poem = [{"role": "user", "content": "Write a poem, without any brackets."}]

    chat = kvsup.client.post("/api/chat", json={**body, "messages": poem}).json()
    text = kvsup.client.post("/api/generate", json={**body, "prompt": poem[0]["content"]}).json()

    assert chat["message"]["content"].lstrip().startswith("{")
    assert text["response"].lstrip().startswith("{")


def test_format_schema_makes_the_answer_fit(client: ollama.Client) -> None:
    """A schema decides the keys and their types."""
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Bob"]}, "old": {"type": "boolean"}},
        "required": ["name", "old"],
    }

    reply = client.chat(
        "smollm2",
        messages=[{"role": "user", "content": "Who are you?"}],
        format=schema,
        options={"temperature": 0, "num_predict": 60},
    )

    answer = json.loads(reply.message.content or "")
    assert set(answer) == {"name", "old"}
    assert answer["name"] in {"Ada", "Bob"}
    assert isinstance(answer["old"], bool)


def test_embed_of_one_and_of_many_texts_gives_unit_vectors(client: ollama.Client) -> None:
    """One vector a text, in order, of length one, equal for equal texts."""
    many = client.embed("embedder", ["a cat", "a dog", "a cat"])
    one = client.embed("embedder", "a dog")

    assert [len(vector) for vector in many.embeddings] == [576, 576, 576]
    assert list(many.embeddings[1]) == pytest.approx(list(one.embeddings[0]), abs=1e-3)
    assert list(many.embeddings[0]) == pytest.approx(list(many.embeddings[2]), abs=1e-3)
    assert sum(x * x for x in one.embeddings[0]) == pytest.approx(1, abs=1e-3)
    assert many.prompt_eval_count
    assert many.model == "embedder"


def test_embed_with_dimensions_cuts_and_makes_unit_again(client: ollama.Client) -> None:
    """A shorter vector is of length one, too."""
    vector = client.embed("embedder", "a cat", dimensions=64).embeddings[0]

    assert len(vector) == 64
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-3)


def test_embed_of_no_text_only_loads(kvsup: RunningKvsup) -> None:
    """No input is no error."""
    reply = kvsup.client.post("/api/embed", json={"model": "embedder", "input": []}).json()

    assert reply["embeddings"] == []
    assert "embedder:latest" in _loaded(kvsup)


def test_embeddings_of_the_older_route_are_one_vector(client: ollama.Client) -> None:
    """The old route gives one vector, not of length one."""
    assert len(client.embeddings("embedder", "a cat").embedding) == 576


def test_embed_on_a_model_that_does_not_serve_it_is_an_error(client: ollama.Client) -> None:
    """Without ``embedding = "on"`` a chat model embeds nothing."""
    with pytest.raises(ollama.ResponseError, match="does not support embeddings") as caught:
        client.embed("smollm2", "a cat")

    assert caught.value.status_code == 501


def test_request_of_any_content_type_is_read(kvsup: RunningKvsup) -> None:
    """``curl -d`` sends forms, some clients nothing at all."""
    body = json.dumps({"MODEL": "smollm2", "unknown": 1, "options": None}) + "trailing"

    for content_type in ("application/x-www-form-urlencoded", "text/plain", ""):
        answer = kvsup.client.post(
            "/api/generate", content=body, headers={"content-type": content_type}
        )
        assert answer.status_code == 200
        assert answer.json()["done_reason"] == "load"


def test_null_fields_count_as_absent(kvsup: RunningKvsup) -> None:
    """Clients in typed languages send every field they know; null for ``stream`` streams."""
    nulls = dict.fromkeys(("stream", "format", "options", "keep_alive", "think", "tools"))
    message = {"role": "user", "content": "Hello", "images": None, "tool_calls": None}
    options = {"num_predict": 2, "seed": None}

    lines = _lines(
        kvsup,
        "/api/chat",
        {**nulls, "model": "smollm2", "messages": [message], "options": options},
    )

    assert len(lines) > 1
    assert lines[-1]["eval_count"] == 2


def test_requests_together_get_answers_of_their_own(kvsup: RunningKvsup) -> None:
    """Two models at once, each with its name on every line."""
    with httpx.Client(base_url=kvsup.url, timeout=60, trust_env=False) as second:
        body = {"prompt": "Hello", "options": SHORT}
        with (
            kvsup.client.stream("POST", "/api/generate", json={"model": "smollm2", **body}) as one,
            second.stream("POST", "/api/generate", json={"model": "embedder", **body}) as two,
        ):
            names = [
                {json.loads(line)["model"] for line in answer.iter_lines()} for answer in (one, two)
            ]

    assert names == [{"smollm2"}, {"embedder"}]
