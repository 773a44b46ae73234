"""The ``llm`` tool with its plugin ``llm-ollama``, as a person types it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.asking import (
    ABSENT,
    CALLER,
    CITY_QUESTION,
    DIMENSIONS,
    EMBEDDER,
    ENDLESS,
    ENDLESS_TOKENS,
    MODEL,
    QUESTION,
    WEATHER_QUESTION,
    City,
    assert_becomes_idle,
    in_flight,
)
from tests.running import RunningKvsup, eventually
from tests.tiny import AFTER_CALLS

GET_WEATHER = """
def get_weather(city: str) -> str:
    "Tell the weather in a city."
    return "18 degrees in " + city
"""


class Tool:
    """``llm`` in a folder of its own; it remembers capabilities by digest there."""

    def __init__(self, folder: Path, url: str) -> None:
        self.environment = {**os.environ, "LLM_USER_PATH": str(folder), "OLLAMA_HOST": url}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it."""
        return subprocess.Popen(
            [sys.executable, "-m", "llm", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """Run it and return what it says; on an error what it complains of."""
        with self.start(*arguments) as process:
            said, complained = process.communicate(timeout=50)
        assert process.returncode == status, said + complained
        return complained if status else said


@pytest.fixture(scope="module")
def llm(kvsup: RunningKvsup, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """Return the tool."""
    return Tool(tmp_path_factory.mktemp("llm"), kvsup.url)


def test_each_model_is_registered_by_its_capabilities(llm: Tool) -> None:
    """Models with one digest would be merged, and those without a known capability left out."""
    models = llm("models", "list")
    embedders = llm("embed-models", "list")
    table = llm("ollama", "models")

    for name in (MODEL, CALLER, ENDLESS):
        assert f"ollama/{name}:latest" in models
    assert f"ollama/{EMBEDDER}:latest" in embedders
    assert f"ollama/{MODEL}:latest" not in embedders
    assert "completion, tools" in table


def test_prompt_is_answered_whole_and_streamed_alike(llm: Tool) -> None:
    """The bare name is an alias of the one with the tag."""
    options = ("-o", "num_predict", "12", "-o", "temperature", "0", QUESTION)

    streamed = llm("-m", f"ollama/{MODEL}", *options)
    whole = llm("-m", f"ollama/{MODEL}:latest", "--no-stream", *options)

    assert streamed == whole != ""


def test_schema_makes_an_object(llm: Tool) -> None:
    """``--schema`` becomes ``format``."""
    schema = json.dumps(City.model_json_schema())

    said = llm(
        "-m", f"ollama/{MODEL}", "--schema", schema, "-o", "num_predict", "64", CITY_QUESTION
    )

    assert City.model_validate_json(said).name


def test_tool_is_called_and_its_result_answered(llm: Tool) -> None:
    """The whole chain: call, run, result, answer; streamed and not."""
    for extra in ((), ("--no-stream",)):
        said = llm("-m", f"ollama/{CALLER}", "--functions", GET_WEATHER, *extra, WEATHER_QUESTION)

        assert said.strip() == AFTER_CALLS


def test_embedding_is_a_vector(llm: Tool) -> None:
    """``llm embed`` prints it as JSON."""
    vector = json.loads(llm("embed", "-m", f"ollama/{EMBEDDER}", "-c", "a cat"))

    assert len(vector) == DIMENSIONS


def test_absent_model_is_unknown(llm: Tool) -> None:
    """The tool itself says so, as it was not in the list."""
    assert "Unknown model" in llm("-m", f"ollama/{ABSENT}", QUESTION, status=1)


def test_interrupting_frees_the_slot(kvsup: RunningKvsup, llm: Tool) -> None:
    """Ctrl-C in mid-stream is noticed long before the answer would have ended."""
    options = ("-o", "num_predict", str(ENDLESS_TOKENS))
    with llm.start("-m", f"ollama/{ENDLESS}", *options, QUESTION) as process:
        eventually(lambda: in_flight(kvsup) == 1)

        process.send_signal(signal.SIGINT)

        assert_becomes_idle(kvsup)
        process.communicate(timeout=20)
