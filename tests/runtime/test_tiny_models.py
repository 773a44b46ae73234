"""The tiny models on both real llama-servers: what each was written for, it does."""

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.make_tiny_gguf import chat_template, make_scripted
from tests import tiny
from tests.running import eventually
from tests.tiny import TinyModels

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_tiny_gguf.py"
QUESTION = [{"role": "user", "content": "What is it?"}]
N_BYTES_MAX = 5_000_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Return tiny models in a folder of this file's own."""
    return TinyModels(tmp_path_factory.mktemp("tiny"))


@contextmanager
def serving(llama_server: Path, model: Path, *arguments: str) -> Iterator[httpx.Client]:
    """Run a llama-server on a socket beside the model; return a client of it when it is ready."""
    address = model.with_suffix(".sock")
    address.unlink(missing_ok=True)
    command = [llama_server, "-m", model, "--host", address, "-t", "1", "-c", "1024", "-np", "1"]
    log_path = model.with_suffix(".log")
    with log_path.open("wb") as log:
        process = subprocess.Popen([*map(str, command), *arguments], stdout=log, stderr=log)

    def listens() -> bool:
        assert process.poll() is None, log_path.read_text()
        with socket.socket(socket.AF_UNIX) as probe:  # httpx leaks the socket of a failed attempt
            return probe.connect_ex(str(address)) == 0

    transport = httpx.HTTPTransport(uds=str(address))
    try:
        with httpx.Client(transport=transport, base_url="http://tiny", timeout=30) as client:
            eventually(listens)
            eventually(lambda: client.get("/health").is_success)
            yield client
    finally:
        process.kill()
        process.wait()


def ask(client: httpx.Client, path: str, body: Mapping[str, Any]) -> Any:
    """Return the decoded answer to a request that must succeed."""
    return client.post(path, json=body).raise_for_status().json()


def say(client: httpx.Client, messages: Any = QUESTION, **settings: Any) -> dict[str, Any]:
    """Return the message that the model answers."""
    answer = ask(client, "/v1/chat/completions", {"messages": messages, **settings})
    message: dict[str, Any] = answer["choices"][0]["message"]
    return message


def called(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return name and arguments of each tool call of a message."""
    functions = [call["function"] for call in message["tool_calls"]]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def test_plain_at_a_high_temperature_says_its_script(any_build: Path, models: TinyModels) -> None:
    """Sampling cannot change the text, and each piece is one token, the end one more."""
    hot = {"temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1.2}

    with serving(any_build, models.plain()) as client:
        answer = ask(client, "/v1/chat/completions", {"messages": QUESTION, **hot})

    assert answer["choices"][0]["message"]["content"] == tiny.ANSWER
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == tiny.ANSWER_TOKENS


def test_plain_after_any_text_says_its_script(any_build: Path, models: TinyModels) -> None:
    """A raw prompt of any characters, even of the script's own, starts the script."""
    with serving(any_build, models.plain()) as client:
        answers = [
            ask(client, "/completion", {"prompt": prompt})["content"]
            for prompt in ("x", "été 日本 \N{GRINNING FACE}", "a\n", "Tiny models")
        ]

    assert answers == [tiny.ANSWER] * 4


def test_plain_when_the_end_is_forbidden_begins_again(any_build: Path, models: TinyModels) -> None:
    """With ``ignore_eos`` the answer is as long as asked for."""
    with serving(any_build, models.plain()) as client:
        answer = ask(client, "/completion", {"prompt": "x", "ignore_eos": True, "n_predict": 100})

    assert answer["tokens_predicted"] == 100
    assert answer["content"].startswith(f'{tiny.ANSWER}"{tiny.ANSWER}"')


def test_plain_under_a_schema_says_the_script_in_strings(
    any_build: Path, models: TinyModels
) -> None:
    """A JSON grammar leaves the script in strings, 0 for numbers and short arrays."""
    properties = {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "list": {"type": "array", "items": {"type": "string"}},
        "colour": {"enum": ["red", "blue"]},
    }
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}

    with serving(any_build, models.plain()) as client:
        message = say(client, response_format=wanted, temperature=0)

    assert json.loads(message["content"]) == {
        "text": tiny.ANSWER,
        "count": 0,
        "list": [tiny.ANSWER],
        "colour": "blue",
    }


def test_thinking_is_parted_from_the_answer(any_build: Path, models: TinyModels) -> None:
    """llama-server's own parser finds the thought of a template that is ours."""
    with serving(any_build, models.thinking()) as client:
        message = say(client)

    assert message["reasoning_content"].strip() == tiny.THOUGHT
    assert message["content"].strip() == tiny.AFTER_THOUGHT


def test_thinking_when_switched_off_only_answers(any_build: Path, models: TinyModels) -> None:
    """A prompt that ends in an empty thought is answered from after the thought."""
    with serving(any_build, models.thinking()) as client:
        message = say(client, chat_template_kwargs={"enable_thinking": False})

    assert "reasoning_content" not in message
    assert message["content"] == tiny.AFTER_THOUGHT


def test_one_call_with_tools_calls_the_first(any_build: Path, models: TinyModels) -> None:
    """llama-server's parser and its grammar for tools take the scripted call as one."""
    with serving(any_build, models.one_call()) as client:
        auto = say(client, tools=tiny.TOOLS)
        required = say(client, tools=tiny.TOOLS, tool_choice="required")

    assert called(auto) == called(required) == [("get_weather", {"city": "Paris"})]


def test_two_calls_with_tools_calls_both(any_build: Path, models: TinyModels) -> None:
    """Two calls in one answer arrive as two."""
    with serving(any_build, models.two_calls()) as client:
        message = say(client, tools=tiny.TOOLS, parallel_tool_calls=True)

    assert called(message) == [("get_weather", {"city": "Paris"}), ("get_time", {"zone": "CET"})]


def test_one_call_after_the_result_answers_in_words(any_build: Path, models: TinyModels) -> None:
    """A conversation that ends in a tool's result has another answer than a question."""
    with serving(any_build, models.one_call()) as client:
        call = say(client, tools=tiny.TOOLS)
        result = {
            "role": "tool",
            "tool_call_id": call["tool_calls"][0]["id"],
            "content": "20 degrees",
        }
        message = say(client, [*QUESTION, call, result], tools=tiny.TOOLS)

    assert message["content"] == tiny.AFTER_CALLS


def test_thinking_before_a_call_gives_both(any_build: Path, models: TinyModels) -> None:
    """A template of ours may think and call in one answer."""
    script = ["<think>", "\nI will", " ask.\n", "</think>", "\n\n", "<tool_call>"]
    script += ['\n{"name": "get_time", "arguments": ', '{"zone": "CET"}}', "\n</tool_call>"]
    model = models.scripted(
        "think_and_call", script, template=chat_template(thinking=True, tools=True)
    )

    with serving(any_build, model) as client:
        message = say(client, tools=tiny.TOOLS)

    assert message["reasoning_content"].strip() == "I will ask."
    assert called(message) == [("get_time", {"zone": "CET"})]


def test_fill_in_answers_infill(any_build: Path, models: TinyModels) -> None:
    """The model has the three tokens that ``/infill`` asks for."""
    with serving(any_build, models.fill_in()) as client:
        answer = ask(client, "/infill", {"input_prefix": "def f():\n", "input_suffix": "\n"})

    assert answer["content"] == tiny.ANSWER


def test_embedding_tells_texts_apart(any_build: Path, models: TinyModels) -> None:
    """The same text has the same vector of 32 numbers, another text another."""
    with serving(any_build, models.embedding(), "--embedding") as client:
        answer = ask(client, "/v1/embeddings", {"input": ["one text", "another", "one text"]})
        too_long = client.post("/v1/embeddings", json={"input": "x" * 65})

    first, second, third = [entry["embedding"] for entry in answer["data"]]
    assert [len(first), len(second)] == [32, 32]
    assert first == pytest.approx(third)
    assert first != pytest.approx(second, abs=1e-3)
    assert too_long.json()["error"]["type"] == "exceed_context_size_error"


def test_rerank_scores_each_document(any_build: Path, models: TinyModels) -> None:
    """Each document has a score of its own."""
    documents = ["a b", "see you", "hello"]

    with serving(any_build, models.rerank(), "--rerank") as client:
        answer = ask(client, "/v1/rerank", {"query": "hello", "documents": documents})

    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    assert sorted(scores) == [0, 1, 2]
    assert len(set(scores.values())) == 3


def test_vision_takes_an_image(any_build: Path, models: TinyModels) -> None:
    """An image of any size costs 4 tokens and is answered with the script."""
    url = "data:image/png;base64," + base64.b64encode(tiny.png()).decode()
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    model, mmproj = models.vision()

    with serving(any_build, model, "--mmproj", str(mmproj)) as client:
        message = say(client, [{"role": "user", "content": content}])
        modalities = ask_props(client)["modalities"]

    assert message["content"] == tiny.ANSWER
    assert modalities["vision"]


def test_audio_transcribes_a_sound(any_build: Path, models: TinyModels) -> None:
    """A sound is answered with the script, as OpenAI's transcription."""
    model, mmproj = models.audio()

    with serving(any_build, model, "--mmproj", str(mmproj)) as client:
        files = {"file": ("sound.wav", tiny.wav(), "audio/wav")}
        answer = client.post("/v1/audio/transcriptions", files=files, data={"model": "tiny"})

    assert answer.raise_for_status().json()["text"] == tiny.ANSWER


@pytest.mark.parametrize("kind", ["scripted", "embedding", "rerank", "vision", "audio"])
def test_command_line_writes_small_files(kind: str, tmp_path: Path) -> None:
    """The script names each file that it wrote, and none is large."""
    command = [sys.executable, str(SCRIPT), "--kind", kind, str(tmp_path / "it.gguf")]

    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    written = sorted(tmp_path.iterdir())
    assert printed.split() == [str(path) for path in written]
    assert len(written) == (2 if kind in {"vision", "audio"} else 1)
    assert all(path.stat().st_size < N_BYTES_MAX for path in written)


def test_a_piece_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """What follows a piece would not be known."""
    with pytest.raises(ValueError, match="'the' is there twice"):
        make_scripted(tmp_path / "it.gguf", script=["the", " cat", "the"])


def ask_props(client: httpx.Client) -> Any:
    """Return what the llama-server says of itself."""
    return client.get("/props").raise_for_status().json()
