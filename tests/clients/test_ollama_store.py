"""What Ollama's Python package does to a store: create, push, copy, delete, pull."""

from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest

from tests.clients.asking import ABSENT, MODEL, QUESTION
from tests.running import RunningKvsup
from tests.tiny import ANSWER, TinyModels

MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(kvsup: RunningKvsup) -> Iterator[ollama.Client]:
    """Return Ollama's client."""
    with ollama.Client(host=kvsup.url) as client:
        yield client


def test_model_is_made_of_another_and_goes_to_a_registry_and_back(
    client: ollama.Client, registry_host: str
) -> None:
    """Each call as its documentation has it; the answer is the same before and after."""
    name = f"{registry_host}/py/made"
    made = [
        part.status
        for part in client.create(
            name,
            from_=MODEL,
            system="Be brief.",
            parameters={"temperature": 0, "num_predict": 12},
            license=["MIT", "or another"],
            messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}],
            stream=True,
        )
    ]
    shown = client.show(name)
    said = client.chat(name, messages=MESSAGES).message.content

    pushed = [part.status for part in client.push(name, stream=True)]
    copied = client.copy(name, "py-copy")
    deleted = client.delete(name)
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.show(name)
    pulled = list(client.pull(name, stream=True))
    again = client.chat(name, messages=MESSAGES).message.content
    client.delete(name)
    client.delete("py-copy")

    assert made[-1] == pushed[-1] == pulled[-1].status == "success"
    assert shown.license == "MIT\nor another"
    assert shown.parameters is not None
    assert "num_predict" in shown.parameters
    assert copied.status == deleted.status == "success"
    assert any(part.total and part.completed == part.total for part in pulled)
    assert said == again


def test_model_is_made_of_files(client: ollama.Client, tmp_path: Path) -> None:
    """The package sends the file, and asks by its digest."""
    tiny = TinyModels(tmp_path)
    digest = client.create_blob(tiny.plain())

    made = client.create("py-file", files={"m.gguf": digest}, parameters={"num_ctx": 512})
    said = client.chat("py-file", messages=MESSAGES).message.content
    client.delete("py-file")

    assert made.status == "success"
    assert said == ANSWER


async def test_asynchronous_client_makes_models_too(kvsup: RunningKvsup, tmp_path: Path) -> None:
    """It sends a file in chunks, without a length."""
    tiny = TinyModels(tmp_path)
    async with ollama.AsyncClient(host=kvsup.url) as client:
        digest = await client.create_blob(tiny.plain())
        files, parameters = {"m.gguf": digest}, {"num_ctx": 512}
        made = await client.create("py-async", files=files, parameters=parameters)
        said = await client.chat("py-async", messages=MESSAGES)
        await client.delete("py-async")

    assert made.status == "success"
    assert said.message.content == ANSWER


def test_refusals_are_the_packages_own_errors(client: ollama.Client) -> None:
    """With the reason; a stream raises while it is read."""
    with pytest.raises(ollama.ResponseError, match="none of the registries"):
        client.pull(ABSENT)
    with pytest.raises(ollama.ResponseError, match="none of the registries"):
        list(client.push(MODEL, stream=True))
    with pytest.raises(ollama.ResponseError, match="invalid model name"):
        client.create("../x", from_=MODEL)
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.delete(ABSENT)
