"""Embeddings in full, of an embedding model of 64 tokens and of a chat model, on both builds."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import RunningKvsup, eventually
from tests.tiny import TinyModels

EMBEDDER = 'model = "{path}"\nnum_ctx = 64\nthreads = 1\n'
CHAT = 'model = "{path}"\nnum_ctx = 128\nthreads = 1\n'
MIXED = CHAT + 'embedding = "on"\n'
LAST = MIXED + 'extra_args = ["--pooling", "last"]\n'

N_LETTERS = 62
"""What the embedder has room for, beside the tokens at the beginning and the end of a text."""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    embedder = TinyModels(tmp_path_factory.mktemp("tiny")).embedding()
    models = {
        "embedder": EMBEDDER.format(path=embedder),
        "chat": CHAT.format(path=smollm2),
        "mixed": MIXED.format(path=smollm2),
        "last": LAST.format(path=smollm2),
    }
    folder = tmp_path_factory.mktemp("embed") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=any_build) as running:
        yield running
    assert running.children() == []


def _embed(kvsup: RunningKvsup, text: object, *, model: str = "embedder", **more: Any) -> Any:
    answer = kvsup.client.post("/api/embed", json={"model": model, "input": text, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _refused(kvsup: RunningKvsup, path: str, **body: Any) -> tuple[int, str]:
    answer = kvsup.client.post(path, json=body)
    assert set(answer.json()) == {"error"}
    return answer.status_code, answer.json()["error"]


def _loaded(kvsup: RunningKvsup) -> set[str]:
    return {model["name"] for model in kvsup.client.get("/api/ps").json()["models"]}


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_embed_answer_has_ollamas_fields(kvsup: RunningKvsup) -> None:
    """The name as sent, unit vectors, ns, and the tokens with those at the ends."""
    reply = _embed(kvsup, ["abc", "d"], model="Embedder:latest")

    assert list(reply) == [
        "model",
        "embeddings",
        "total_duration",
        "load_duration",
        "prompt_eval_count",
    ]
    assert reply["model"] == "Embedder:latest"
    assert [len(vector) for vector in reply["embeddings"]] == [32, 32]
    assert [math.hypot(*vector) for vector in reply["embeddings"]] == pytest.approx([1, 1])
    assert reply["prompt_eval_count"] == 3 + 2 + 1 + 2
    assert 0 < reply["load_duration"] <= reply["total_duration"]


def test_embed_of_more_texts_than_one_call_takes_keeps_their_order(kvsup: RunningKvsup) -> None:
    """A long list goes to llama-server in parts."""
    letters = "abcdefghij"
    texts = [first + second for first in letters for second in letters]
    singles = {text: _embed(kvsup, text)["embeddings"][0] for text in ("aa", "eg", "jj")}

    reply = _embed(kvsup, texts)

    assert len(reply["embeddings"]) == 100
    assert reply["prompt_eval_count"] == 100 * (2 + 2)
    for text, vector in singles.items():
        assert _cosine(reply["embeddings"][texts.index(text)], vector) == pytest.approx(1)


def test_embed_of_a_text_too_long_cuts_it_to_fit(kvsup: RunningKvsup) -> None:
    """What is left ends as every text does, and the others of the list are whole."""
    long = "abcdefghij" * 20

    cut, short, fits = _embed(kvsup, [long, "abc", long[:N_LETTERS]])["embeddings"]
    alone = _embed(kvsup, long)

    assert _cosine(cut, fits) == pytest.approx(1)
    assert _cosine(alone["embeddings"][0], fits) == pytest.approx(1)
    assert alone["prompt_eval_count"] == 64
    assert _cosine(short, _embed(kvsup, "abc")["embeddings"][0]) == pytest.approx(1)


@pytest.mark.parametrize("model", ["mixed", "last"])
def test_embed_of_a_text_too_long_for_a_chat_model_cuts_it_to_the_context(
    kvsup: RunningKvsup, model: str
) -> None:
    """Whether an input must be one batch or only fit the context."""
    reply = _embed(kvsup, "word " * 500, model=model)

    assert reply["prompt_eval_count"] == 128


@pytest.mark.parametrize("model", ["embedder", "last"])
def test_embed_of_a_text_too_long_without_truncate_is_refused(
    kvsup: RunningKvsup, model: str
) -> None:
    """With Ollama's text, whatever llama-server says."""
    refused = _refused(kvsup, "/api/embed", model=model, input=["a", "abc " * 400], truncate=False)

    assert refused == (400, "the input length exceeds the context length")


def test_embed_of_a_text_that_just_fits_without_truncate_is_answered(kvsup: RunningKvsup) -> None:
    """The tokens at the ends count."""
    assert _embed(kvsup, "a" * N_LETTERS, truncate=False)["prompt_eval_count"] == 64


@pytest.mark.parametrize(("dimensions", "length"), [(4, 4), (32, 32), (99, 32), (0, 32), (-3, 32)])
def test_embed_with_dimensions_cuts_and_makes_unit_again(
    kvsup: RunningKvsup, dimensions: int, length: int
) -> None:
    """As many as there are, or more, or none, change nothing."""
    whole = _embed(kvsup, "abc")["embeddings"][0]

    vector = _embed(kvsup, "abc", dimensions=dimensions)["embeddings"][0]

    assert len(vector) == length
    assert math.hypot(*vector) == pytest.approx(1)
    assert _cosine(vector, whole[:length]) == pytest.approx(math.hypot(*whole[:length]))


@pytest.mark.parametrize("text", [3, True, {"a": 1}, ["a", 1], [["a"]], [None], 0.5])
def test_embed_input_of_another_type_is_refused_before_the_model_is_looked_up(
    kvsup: RunningKvsup, text: object
) -> None:
    """The name's grammar comes first, then the type, then whether there is such a model."""
    assert _refused(kvsup, "/api/embed", model="gone", input=text) == (400, "invalid input type")
    assert _refused(kvsup, "/api/embed", model="a b", input=text) == (400, "invalid model name")


@pytest.mark.parametrize("body", [{"input": ""}, {"input": []}, {"input": None}, {}])
def test_embed_of_nothing_only_loads(kvsup: RunningKvsup, body: dict[str, object]) -> None:
    """The answer has no metrics."""
    kvsup.client.post("/api/embed", json={"model": "embedder", "input": "a", "keep_alive": 0})
    eventually(lambda: "embedder:latest" not in _loaded(kvsup))

    answer = kvsup.client.post("/api/embed", json={"model": "embedder", "keep_alive": "5m", **body})

    assert answer.json() == {"model": "embedder", "embeddings": []}
    assert "embedder:latest" in _loaded(kvsup)


def test_embed_of_one_empty_text_embeds_it(kvsup: RunningKvsup) -> None:
    """It consists of the tokens at the ends."""
    reply = _embed(kvsup, [""])

    assert len(reply["embeddings"]) == 1
    assert reply["prompt_eval_count"] == 2


def test_embed_of_one_empty_text_by_a_model_that_adds_no_token_is_refused(
    kvsup: RunningKvsup,
) -> None:
    """llama-server's text, unwrapped."""
    refused = _refused(kvsup, "/api/embed", model="mixed", input=[""])

    assert refused == (400, "Input content cannot be empty")


def test_embed_of_a_long_list_ends_when_the_client_leaves(kvsup: RunningKvsup) -> None:
    """Its slot is free long before the list would have been done."""
    _embed(kvsup, "a", model="mixed")
    body = {"model": "mixed", "input": ["word " * 120] * 20_000}

    with pytest.raises(httpx.ReadTimeout):
        kvsup.client.post("/api/embed", json=body, timeout=httpx.Timeout(60, read=0.5))

    eventually(lambda: kvsup.models()["mixed"]["in_flight"] == 0)


def test_embed_with_an_option_of_the_wrong_type_is_a_server_error(kvsup: RunningKvsup) -> None:
    """As everywhere in Ollama's API."""
    status, text = _refused(
        kvsup, "/api/embed", model="embedder", input="a", options={"num_ctx": "many"}
    )

    assert status == 500
    assert text.startswith('option "num_ctx" must be of type integer')


def test_embed_by_a_chat_model_says_how_to_mend_it(kvsup: RunningKvsup) -> None:
    """Only llama-server knows whether it was started so."""
    assert _refused(kvsup, "/api/embed", model="chat", input="a") == (
        501,
        'chat does not support embeddings; set embedding = "on" in its file',
    )


def test_embeddings_of_the_older_route_are_the_same_vector_alone(kvsup: RunningKvsup) -> None:
    """Of an architecture that Ollama normalises there, too."""
    answer = kvsup.client.post("/api/embeddings", json={"model": "embedder", "prompt": "abc"})

    assert list(answer.json()) == ["embedding"]
    vector = answer.json()["embedding"]
    assert _cosine(vector, _embed(kvsup, "abc")["embeddings"][0]) == pytest.approx(1)


@pytest.mark.parametrize("prompt", [{"prompt": ""}, {}])
def test_embeddings_of_the_older_route_without_a_prompt_only_load(
    kvsup: RunningKvsup, prompt: dict[str, str]
) -> None:
    """An empty vector."""
    answer = kvsup.client.post("/api/embeddings", json={"model": "embedder", **prompt})

    assert answer.json() == {"embedding": []}


def test_embeddings_of_the_older_route_never_cut_and_every_error_is_the_servers(
    kvsup: RunningKvsup,
) -> None:
    """Ollama does not tell them apart there."""
    long = _refused(kvsup, "/api/embeddings", model="embedder", prompt="a" * 200)
    chat = _refused(kvsup, "/api/embeddings", model="chat", prompt="a")

    assert long[0] == 500
    assert "input (202 tokens) is too large to process" in long[1]
    assert chat[0] == 500
    assert 'set embedding = "on"' in chat[1]
