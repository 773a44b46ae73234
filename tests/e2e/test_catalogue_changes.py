"""Copy, delete and pull: what they do to the files of the configuration folder and to what runs."""

from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from tests.conftest import StartKvsup
from tests.running import RunningKvsup, eventually
from tests.tiny import ANSWER, TinyModels

PLAIN = """
# kept by copies
model = "{path}"
aliases = ["easy"]
num_ctx = 512
threads = 1

[options]
num_predict = 3

[variants.long]
aliases = ["lengthy"]
[variants.long.options]
num_predict = 20
"""

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def kvsup(start_kvsup: StartKvsup, tiny: TinyModels) -> RunningKvsup:
    """Return a running kvsup with one file of two models."""
    return start_kvsup({"plain": PLAIN.format(path=tiny.plain())})


@pytest.fixture
def client(kvsup: RunningKvsup) -> Iterator[ollama.Client]:
    """Return Ollama's own client."""
    with ollama.Client(host=kvsup.url) as client:
        yield client


def _copy(kvsup: RunningKvsup, source: object, destination: object) -> httpx.Response:
    body = {"source": source, "destination": destination}
    return kvsup.client.post("/api/copy", json=body)


def _delete(kvsup: RunningKvsup, **body: Any) -> httpx.Response:
    return kvsup.client.request("DELETE", "/api/delete", json=body)


def _error(answer: httpx.Response) -> tuple[int, str]:
    assert set(answer.json()) == {"error"}
    return answer.status_code, answer.json()["error"]


def _names(kvsup: RunningKvsup) -> set[str]:
    return {entry["name"] for entry in kvsup.client.get("/api/tags").json()["models"]}


def _files(kvsup: RunningKvsup) -> set[str]:
    return {path.name for path in kvsup.configs.iterdir()} - {"kvsup.toml"}


def _deleted(kvsup: RunningKvsup) -> list[str]:
    """Return what is in the trash folder, as text."""
    return [path.read_text() for path in sorted((kvsup.state / "deleted").glob("*"))]


def _said(client: ollama.Client, model: str) -> str | None:
    return client.chat(model, messages=HI).message.content


def test_copy_makes_a_file_that_serves_the_same_weights(
    kvsup: RunningKvsup, client: ollama.Client
) -> None:
    """Comments and options come along, other names do not."""
    client.copy("plain", "team/twin:v1")

    assert _names(kvsup) == {"plain:latest", "plain:long", "team/twin:v1"}
    (copied,) = _files(kvsup) - {"plain.toml"}
    text = (kvsup.configs / copied).read_text()
    assert 'name = "team/twin:v1"' in text
    assert "# kept by copies" in text
    assert "easy" not in text
    assert _said(client, "Team/Twin:V1") == "Tiny models say"


def test_copy_of_a_variant_or_by_an_alias_has_its_options(
    kvsup: RunningKvsup, client: ollama.Client
) -> None:
    """What is copied is what the name serves."""
    client.copy("lengthy", "whole")
    client.copy("easy:latest", "short")

    assert _said(client, "whole") == ANSWER
    assert _said(client, "short") == "Tiny models say"
    assert _names(kvsup) == {"plain:latest", "plain:long", "whole:latest", "short:latest"}


@pytest.mark.parametrize("destination", ["plain", "Plain:latest", "easy"])
def test_copy_onto_itself_is_nothing(kvsup: RunningKvsup, destination: str) -> None:
    """200, and no file has changed."""
    before = (kvsup.configs / "plain.toml").read_text()

    answer = _copy(kvsup, "plain", destination)

    assert (answer.status_code, answer.content) == (200, b"")
    assert (kvsup.configs / "plain.toml").read_text() == before
    assert _files(kvsup) == {"plain.toml"}


def test_copy_onto_another_replaces_it_and_keeps_what_was_there(
    kvsup: RunningKvsup, client: ollama.Client
) -> None:
    """The old file is in the trash folder."""
    client.copy("plain", "twin")
    client.copy("lengthy", "twin")

    assert _said(client, "twin") == ANSWER
    assert ["num_predict = 3" in text for text in _deleted(kvsup)] == [True]


@pytest.mark.parametrize(
    ("source", "destination", "status", "text"),
    [
        ("", "x", 400, 'source "" is invalid'),
        ("a b", "c d", 400, 'source "a b" is invalid'),
        ("plain", "", 400, 'destination "" is invalid'),
        ("gone", "c d", 400, 'destination "c d" is invalid'),
        ("Gone:1", "x", 404, 'model "Gone:1" not found'),
    ],
)
def test_copy_that_is_wrong_is_told_in_ollama_s_words(
    kvsup: RunningKvsup, source: str, destination: str, status: int, text: str
) -> None:
    """First the source's grammar, then the destination's, then whether it exists."""
    assert _error(_copy(kvsup, source, destination)) == (status, text)
    assert _files(kvsup) == {"plain.toml"}


def test_delete_takes_the_file_to_the_trash_folder(
    kvsup: RunningKvsup, client: ollama.Client
) -> None:
    """With its variants; the weights stay, and what is loaded goes."""
    client.copy("plain", "twin")
    _said(client, "plain")
    text = (kvsup.configs / "plain.toml").read_text()

    client.delete("Plain")

    assert _names(kvsup) == {"twin:latest"}
    assert "plain.toml" not in _files(kvsup)
    assert _deleted(kvsup) == [text]
    eventually(lambda: kvsup.children() == [])
    assert _said(client, "twin") == "Tiny models say"
    with pytest.raises(ollama.ResponseError, match="model 'plain' not found"):
        client.delete("plain")


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("plain:long", {"plain:latest"}),
        ("easy", {"plain:latest", "plain:long"}),
        ("lengthy", {"plain:latest", "plain:long"}),
    ],
)
def test_delete_of_a_variant_or_an_alias_takes_only_it(
    kvsup: RunningKvsup, client: ollama.Client, name: str, left: set[str]
) -> None:
    """By the old field's name, too; the file as it was is in the trash folder."""
    before = (kvsup.configs / "plain.toml").read_text()

    answer = _delete(kvsup, name=name)

    assert (answer.status_code, answer.content) == (200, b"")
    assert "content-type" not in answer.headers
    assert _names(kvsup) == left
    assert _deleted(kvsup) == [before]
    assert _error(_delete(kvsup, model=name)) == (404, f"model '{name}' not found")
    assert _said(client, "plain") == "Tiny models say"


def test_delete_of_the_last_model_leaves_a_kvsup_without_any(
    kvsup: RunningKvsup, client: ollama.Client
) -> None:
    """It goes on, and takes up the next file."""
    text = (kvsup.configs / "plain.toml").read_text()

    client.delete("plain")

    assert _names(kvsup) == set()
    assert kvsup.client.get("/v1/models").json() == {"object": "list", "data": []}
    assert kvsup.client.get("/api/ps").json() == {"models": []}
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.show("plain")
    kvsup.write("plain", text)
    kvsup.client.post("/kvsup/reload").raise_for_status()
    assert _said(client, "plain") == "Tiny models say"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 400, "model is required"),
        ({"model": ""}, 400, "model is required"),
        ({"model": "a b"}, 400, 'name "a b" is invalid'),
        ({"model": "Gone:1"}, 404, "model 'Gone:1' not found"),
    ],
)
def test_delete_that_is_wrong_is_told_in_ollama_s_words(
    kvsup: RunningKvsup, body: dict[str, str], status: int, text: str
) -> None:
    """Nothing is deleted."""
    assert _error(_delete(kvsup, **body)) == (status, text)
    assert _names(kvsup) == {"plain:latest", "plain:long"}


def test_change_beside_a_broken_file_is_refused_and_changes_nothing(kvsup: RunningKvsup) -> None:
    """The answer names the file that is to be mended first; the same request may follow."""
    kvsup.write("broken", "model = 1")

    copied = _copy(kvsup, "plain", "twin")
    deleted = _delete(kvsup, model="plain")

    for answer in (copied, deleted):
        assert answer.status_code >= 400
        assert "broken.toml" in answer.json()["error"]
    assert _names(kvsup) == {"plain:latest", "plain:long"}
    assert _files(kvsup) == {"plain.toml", "broken.toml"}


def test_pull_of_a_present_model_succeeds_at_once(client: ollama.Client) -> None:
    """Clients pull before they ask."""
    whole = client.pull("Plain")
    statuses = [progress.status for progress in client.pull("easy:latest", stream=True)]

    assert whole.status == "success"
    assert statuses == ["pulling manifest", "success"]
