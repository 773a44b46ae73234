"""What Ollama's API refuses, with the statuses, texts and headers that clients match."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.running import RunningKvsup

SMOLLM2 = """
model = "{path}"
num_ctx = 512
threads = 1
"""

EVIL = "http://evil.example"
LOCAL = "http://localhost:3000"


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file."""
    models = {"smollm2": SMOLLM2.format(path=smollm2)}
    folder = tmp_path_factory.mktemp("errors") / "kvsup"
    host = 'origins = ["https://app.example", "https://*.pages.example"]\nmax_body = "1MiB"\n'
    with RunningKvsup(folder, models=models, llama_server=llama_server, host=host) as running:
        yield running
    assert running.children() == []


def _post(kvsup: RunningKvsup, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """Return status and text of an error."""
    answer = kvsup.client.post(path, json=body)
    assert answer.headers["content-type"].startswith("application/json")
    assert set(answer.json()) == {"error"}
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "name", "status", "text"),
    [
        ("/api/generate", "", 404, "model '' not found"),
        ("/api/generate", "a b", 400, "invalid model name"),
        ("/api/generate", "Gone", 404, "model 'Gone' not found"),
        ("/api/chat", "", 400, "model is required"),
        ("/api/chat", ":x", 400, "invalid model name"),
        ("/api/chat", "Gone:1", 404, "model 'Gone:1' not found"),
        ("/api/embed", "", 404, "model '' not found"),
        ("/api/embed", "x@y", 400, "invalid model name"),
        ("/api/embed", "gone", 404, 'model "gone" not found, try pulling it first'),
        ("/api/embeddings", "", 400, "model is required"),
        ("/api/embeddings", "x/", 400, "invalid model name"),
        ("/api/embeddings", "gone", 404, 'model "gone" not found, try pulling it first'),
        ("/api/show", "", 400, "model is required"),
        ("/api/show", "a b", 400, "invalid model name"),
        ("/api/show", "gone", 404, "model 'gone:latest' not found"),
    ],
)
def test_name_that_is_missing_wrong_or_unknown_is_told_in_the_words_of_its_route(
    kvsup: RunningKvsup, path: str, name: str, status: int, text: str
) -> None:
    """Clients match these texts, which differ from route to route."""
    body = {"model": name, "input": "x", "prompt": "x", "messages": [{"role": "user"}]}

    assert _post(kvsup, path, body) == (status, text)


def test_unknown_model_in_a_stream_is_a_status_and_not_a_line(kvsup: RunningKvsup) -> None:
    """What is known before the first byte is told by the status."""
    with (
        ollama.Client(host=kvsup.url) as client,
        pytest.raises(ollama.ResponseError, match="model 'gone' not found") as caught,
    ):
        list(client.chat("gone", messages=[{"role": "user", "content": "x"}], stream=True))

    assert caught.value.status_code == 404


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/api/embed", "/api/show"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "missing request body"),
        (b" \n\t", "missing request body"),
        (b'{"model": "smollm2"', "unexpected EOF"),
    ],
)
def test_body_that_is_missing_or_cut_is_400(
    kvsup: RunningKvsup, path: str, content: bytes, text: str
) -> None:
    """The words are Go's."""
    answer = kvsup.client.post(path, content=content)

    assert (answer.status_code, answer.json()) == (400, {"error": text})


@pytest.mark.parametrize(
    "field",
    [
        {"messages": "hello"},
        {"messages": [{"role": "user", "content": ["a", "list"]}]},
        {"stream": "yes"},
        {"options": []},
        {"keep_alive": "1d"},
        {"keep_alive": True},
        {"top_logprobs": 21},
        {"think": "very"},
        {"messages": [{"role": "user", "content": "x", "images": ["?"]}]},
    ],
)
def test_field_of_a_wrong_type_is_400(kvsup: RunningKvsup, field: dict[str, object]) -> None:
    """Wrong types are found before the model is touched."""
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "x"}], **field}

    status, text = _post(kvsup, "/api/chat", body)

    assert status == 400
    assert text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"num_predict": "1"}, 'option "num_predict" must be of type integer'),
        ({"seed": True}, 'option "seed" must be of type integer'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
        ({"stop": [1]}, 'option "stop" must be of an array of strings'),
    ],
)
def test_option_of_a_wrong_type_is_500(
    kvsup: RunningKvsup, options: dict[str, object], text: str
) -> None:
    """Ollama's own choice of status."""
    body = {"model": "smollm2", "prompt": "x", "options": options}

    assert _post(kvsup, "/api/generate", body) == (500, text)


def test_option_that_is_unknown_null_or_a_whole_float_is_nothing(kvsup: RunningKvsup) -> None:
    """Clients send options that died long ago."""
    options = {"mirostat": 2, "num_gqa": "x", "temperature": None, "num_predict": 1.0}
    body = {"model": "smollm2", "prompt": "x", "options": options, "stream": False}

    answer = kvsup.client.post("/api/generate", json=body)

    assert (answer.status_code, answer.json()["eval_count"]) == (200, 1)


def test_format_that_is_neither_json_nor_a_schema_is_500(kvsup: RunningKvsup) -> None:
    """The raw JSON is quoted again."""
    body = {"model": "smollm2", "prompt": "x", "format": "xml"}

    assert _post(kvsup, "/api/generate", body) == (
        500,
        r'invalid format: "\"xml\""; expected "json" or a valid JSON Schema object',
    )


def test_raw_with_a_system_prompt_is_400(kvsup: RunningKvsup) -> None:
    """Raw leaves no place for what a template would frame."""
    body = {"model": "smollm2", "prompt": "x", "raw": True, "system": "y"}

    assert _post(kvsup, "/api/generate", body) == (
        400,
        "raw mode does not support template, system, or context",
    )


def test_prompt_that_is_longer_than_the_context_and_not_to_be_cut_is_400(
    kvsup: RunningKvsup,
) -> None:
    """With ``truncate`` false llama-server's own words come through."""
    body = {"model": "smollm2", "prompt": "word " * 2000, "raw": True, "truncate": False}

    answer = kvsup.client.post("/api/generate", json={**body, "options": {"num_predict": 1}})

    assert answer.status_code == 400
    assert "context" in answer.json()["error"]


def test_body_above_the_limit_is_413(kvsup: RunningKvsup) -> None:
    """``max_body`` bounds what is kept in memory, announced or not."""
    large = b'{"model": "' + b"x" * (1 << 20) + b'"}'

    announced = kvsup.client.post("/api/show", content=large)
    with httpx.Client(base_url=kvsup.url) as other:  # the first connection is about to end
        chunked = other.post("/api/show", content=iter([large]))

    assert (announced.status_code, chunked.status_code) == (413, 413)
    assert announced.json() == {"error": "request body is larger than 1048576 bytes"}


def test_root_says_that_it_runs(kvsup: RunningKvsup) -> None:
    """Clients look for these words; Ollama's own command line sends HEAD."""
    answer, head = kvsup.client.get("/"), kvsup.client.head("/")

    assert answer.text == "Ollama is running"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (head.status_code, head.content) == (200, b"")


def test_version_is_three_numbers(kvsup: RunningKvsup) -> None:
    """Clients compare it."""
    numbers = kvsup.client.get("/api/version").json()["version"].split(".")

    assert len(numbers) == 3
    assert all(number.isdigit() for number in numbers)


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags", "/v1/models"])
def test_head_is_answered_where_ollama_answers_it(kvsup: RunningKvsup, path: str) -> None:
    """The head of GET, without a body."""
    head, whole = kvsup.client.head(path), kvsup.client.get(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


@pytest.mark.parametrize("path", ["/api/nothing", "/api", "/v2/models", "/favicon.ico"])
def test_unknown_route_is_the_404_page(kvsup: RunningKvsup, path: str) -> None:
    """Plain text, as gin writes it."""
    answer = kvsup.client.get(path)

    assert (answer.status_code, answer.text) == (404, "404 page not found")
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/api/chat", {"POST"}),
        ("DELETE", "/api/generate", {"POST"}),
        ("POST", "/api/tags", {"GET", "HEAD"}),
        ("HEAD", "/api/ps", {"GET"}),
        ("PUT", "/", {"GET", "HEAD"}),
    ],
)
def test_wrong_method_is_405_with_those_that_are_allowed(
    kvsup: RunningKvsup, method: str, path: str, allow: set[str]
) -> None:
    """Plain text, and ``Allow``."""
    answer = kvsup.client.request(method, path)

    assert answer.status_code == 405
    assert set(answer.headers["allow"].replace(" ", "").split(",")) == allow
    if method != "HEAD":
        assert answer.text == "405 method not allowed"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/api/chat", "/api/nothing", "/kvsup/models"])
def test_foreign_origin_is_403_without_a_body(kvsup: RunningKvsup, method: str, path: str) -> None:
    """A web page of someone else reaches nothing, routes that are not there included."""
    answer = kvsup.client.request(method, path, headers={"origin": EVIL})

    assert (answer.status_code, answer.content) == (403, b"")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        LOCAL, "https://127.0.0.1", "http://0.0.0.0:1", "app://x", "vscode-webview://abc",
        "https://app.example", "https://one.pages.example",
    ],
)  # fmt: skip
def test_allowed_origin_is_named_in_the_answer(kvsup: RunningKvsup, origin: str) -> None:
    """Local pages, desktop shells, and what ``origins`` lists."""
    answer = kvsup.client.get("/api/version", headers={"origin": origin})

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers


def test_error_to_an_allowed_origin_is_readable_by_the_page(kvsup: RunningKvsup) -> None:
    """A page sees why it failed: 404 and 405 carry the headers, too."""
    for method, path in (("GET", "/api/nothing"), ("GET", "/api/chat")):
        answer = kvsup.client.request(method, path, headers={"origin": LOCAL})

        assert answer.headers["access-control-allow-origin"] == LOCAL


def test_same_origin_and_no_origin_get_no_cors_headers(kvsup: RunningKvsup) -> None:
    """What does not cross an origin needs no permission."""
    own = kvsup.client.get("/api/version", headers={"origin": kvsup.url})
    none = kvsup.client.get("/api/version")

    assert (own.status_code, none.status_code) == (200, 200)
    assert not [name for name in (*own.headers, *none.headers) if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/nothing"])
def test_preflight_of_an_allowed_origin_is_204(kvsup: RunningKvsup, path: str) -> None:
    """Any path, with what a browser may send."""
    answer = kvsup.client.options(
        path, headers={"origin": LOCAL, "access-control-request-method": "POST"}
    )

    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == LOCAL
    assert answer.headers["access-control-max-age"] == "43200"
    assert "POST" in answer.headers["access-control-allow-methods"].split(",")
    allowed = answer.headers["access-control-allow-headers"].split(",")
    assert {"Authorization", "Content-Type", "X-Stainless-Retry-Count"} <= set(allowed)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:1", "8.8.8.8", "[2606:4700::1111]"])
def test_foreign_host_is_403_without_a_body(kvsup: RunningKvsup, host: str) -> None:
    """A name that a stranger points at this machine reaches nothing."""
    answer = kvsup.client.get("/api/tags", headers={"host": host})

    assert (answer.status_code, answer.content) == (403, b"")


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]", "192.168.1.2", "a.localhost",
        "box.local", "x.internal",
    ],
)  # fmt: skip
def test_local_host_is_served(kvsup: RunningKvsup, host: str) -> None:
    """Names that only this machine or its network can mean."""
    assert kvsup.client.get("/api/tags", headers={"host": host}).status_code == 200


def test_engine_error_before_the_first_byte_is_plain_words(kvsup: RunningKvsup) -> None:
    """llama-server's JSON is unwrapped: clients show the text."""
    schema = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]}
    body = {"model": "smollm2", "prompt": "x", "format": schema}

    status, text = _post(kvsup, "/api/generate", body)

    assert status == 400
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_control_endpoint_for_an_unknown_model_is_404(kvsup: RunningKvsup) -> None:
    """Endpoints of kvsup itself speak as the others do."""
    for path in ("/kvsup/stop", "/kvsup/reset"):
        assert _post(kvsup, path, {"model": "gone"}) == (404, "model 'gone' not found")
    assert _post(kvsup, "/kvsup/stop", {})[0] == 400


def test_answers_have_no_server_header(kvsup: RunningKvsup) -> None:
    """What a server is made of is nobody's business."""
    answer: httpx.Response = kvsup.client.get("/api/version")

    assert "server" not in answer.headers
