"""What the TOML file, headers and body members set for OpenAI's and Anthropic's APIs."""

import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import StartKvsup
from tests.running import RunningKvsup, eventually
from tests.standin.script import STANDIN, write_script
from tests.tiny import TinyModels

ECHO = "{% for message in messages %}[{{ message.role }}|{{ message.content }}]{% endfor %}"
HI = [{"role": "user", "content": "Hi"}]
SYSTEM = "Be brief."

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 50},
}
LIMITS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
OTHERS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "Hi"},
    "/v1/messages/count_tokens": {"messages": HI},
    "/v1/rerank": {"query": "Hi", "documents": ["a"]},
    "/chat/completions": {"messages": HI},
    "/responses": {"input": "Hi"},
}
ROUTES = {**BODIES, **OTHERS}

VARYING = re.compile(rb'"id":"[^"]*"|"created":\d+|,?"timings":\{[^}]*\}|"cached_tokens":\d+')

MODELS = """
model = "{path}"
num_ctx = 512
threads = 1
system = "Be brief."

[options]
num_predict = 3
stop = ["told"]

[variants.stopping]
[variants.stopping.options]
num_predict = 50

[variants.locked]
allow_request_kv = false
"""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    template = tiny.folder / "echo.jinja"
    template.write_text(ECHO)
    models = {
        "plain": f'model = "{tiny.plain()}"\nnum_ctx = 512\nthreads = 1\n',
        "set": f'template = "{template}"\n' + MODELS.format(path=tiny.plain()),
    }
    folder = tmp_path_factory.mktemp("settings") / "kvsup"
    host = "max_loaded_models = 4\n"
    with RunningKvsup(folder, models=models, llama_server=any_build, host=host) as running:
        yield running
    assert running.children() == []


def _ask(
    kvsup: RunningKvsup, path: str, headers: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    body = {"model": "set", **ROUTES[path], **more}
    answer = kvsup.client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def _text(answer: httpx.Response) -> str:
    """Return what the model says in an answer of any API."""
    value = answer.json()
    if "choices" in value:
        choice = value["choices"][0]
        text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    elif "output" in value:
        text = value["output"][-1]["content"][0]["text"]
    else:
        text = "".join(block["text"] for block in value["content"])
    return text


def _n_read(answer: httpx.Response) -> int:
    """Return how many tokens of prompt were read."""
    usage = answer.json()["usage"]
    if "prompt_tokens" in usage:
        number: int = usage["prompt_tokens"]
        return number
    cached: int = usage.get("cache_read_input_tokens", 0)
    return cached + int(usage["input_tokens"])


def _left_s(kvsup: RunningKvsup, name: str = "set") -> float:
    entries = kvsup.client.get("/api/ps").json()["models"]
    entry = next(entry for entry in entries if entry["name"] == f"{name}:latest")
    expires_at = datetime.fromisoformat(entry["expires_at"][:19]).replace(tzinfo=timezone.utc)
    return (expires_at - datetime.now(timezone.utc)).total_seconds()


@pytest.mark.parametrize("path", LIMITS)
def test_options_of_the_model_are_defaults_under_the_request_s_own(
    kvsup: RunningKvsup, path: str
) -> None:
    """The limit by its name in each API, a stop text too."""
    own = _ask(kvsup, path)
    limit: dict[str, Any] = {LIMITS[path]: 5}
    asked = _ask(kvsup, path, **limit)

    assert _text(own) == "Tiny models say"
    assert _text(asked) == "Tiny models say what they"


@pytest.mark.parametrize("path", LIMITS)
def test_null_in_a_request_is_as_if_absent(kvsup: RunningKvsup, path: str) -> None:
    """Clients in typed languages send every field that they know."""
    nulls: dict[str, Any] = dict.fromkeys((LIMITS[path], "stop", "temperature"))
    nulls |= {"instructions": None} if path == "/v1/responses" else {}

    answer = _ask(kvsup, path, **nulls)

    assert _text(answer) == "Tiny models say"
    assert _n_read(answer) == _n_read(_ask(kvsup, path))


def test_stop_of_the_model_ends_answers_of_every_api(kvsup: RunningKvsup) -> None:
    """Also of Anthropic's, by its own name; a request's own replaces it."""
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/messages"):
        stopped = _ask(kvsup, path, model="set:stopping")

        assert _text(stopped).strip() == "Tiny models say what they were"
    own = _ask(kvsup, "/v1/messages", model="set:stopping", stop_sequences=["say"])
    assert _text(own).strip() == "Tiny models"


@pytest.mark.parametrize("path", BODIES)
def test_every_option_reaches_the_sampler_of_every_api(kvsup: RunningKvsup, path: str) -> None:
    """Also those for which an API has no field; the slot shows what it was asked last."""
    options = {"seed": 7, "min_p": 0.25, "repeat_last_n": 5}

    answer = _ask(kvsup, path, options=options)

    (slot,) = kvsup.client.get("/upstream/set/slots").json()
    assert {name: slot["params"][name] for name in options} == options
    assert "x-kvsup-note" not in answer.headers


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": "S"}, *HI]}),
        ("/v1/responses", {"instructions": "S"}),
        ("/v1/messages", {"system": "S"}),
    ],
)
def test_system_text_of_the_model_is_a_default_under_the_request_s_own(
    kvsup: RunningKvsup, path: str, own: dict[str, Any]
) -> None:
    """One token a letter tells which was read."""
    prompt = "[user|Hi]"

    assert _n_read(_ask(kvsup, path)) == len(f"[system|{SYSTEM}]{prompt}")
    assert _n_read(_ask(kvsup, path, **own)) == len(f"[system|S]{prompt}")


def test_counted_tokens_have_the_system_text_of_the_model(kvsup: RunningKvsup) -> None:
    """As the message will."""
    counted = _ask(kvsup, "/v1/messages/count_tokens").json()

    assert counted == {"input_tokens": _n_read(_ask(kvsup, "/v1/messages"))}


def test_prompt_of_a_completion_has_no_system_text(kvsup: RunningKvsup) -> None:
    """It is the client's as it is."""
    assert _n_read(_ask(kvsup, "/v1/completions")) == 2


@pytest.mark.parametrize("path", LIMITS)
def test_options_of_a_header_and_of_the_body_overrule_those_of_the_model(
    kvsup: RunningKvsup, path: str
) -> None:
    """By Ollama's names: the body over the header, the API's own member over all."""
    header = {"x-kvsup-options": '{"num_predict": 1}'}

    texts = [
        _text(_ask(kvsup, path, header)),
        _text(_ask(kvsup, path, header, options={"num_predict": 2})),
        _text(_ask(kvsup, path, header, options={"num_predict": 2}, **{LIMITS[path]: 5})),
    ]

    assert texts == ["Tiny", "Tiny models", "Tiny models say what they"]


@pytest.mark.parametrize("path", BODIES)
def test_keep_alive_is_set_by_header_or_body_for_every_api(kvsup: RunningKvsup, path: str) -> None:
    """Ollama ignores it there."""
    _ask(kvsup, path, {"x-kvsup-keep-alive": "3h"})
    by_header_s = _left_s(kvsup)
    _ask(kvsup, path, {"x-kvsup-keep-alive": "3h"}, keep_alive="2h")
    by_body_s = _left_s(kvsup)

    assert 2 * 3600 < by_header_s <= 3 * 3600 + 1
    assert 3600 < by_body_s <= 2 * 3600 + 1


def test_keep_alive_of_zero_unloads_after_the_answer(kvsup: RunningKvsup) -> None:
    """The answer comes first."""
    answer = _ask(kvsup, "/v1/chat/completions", keep_alive=0)

    assert _text(answer)
    eventually(lambda: kvsup.models()["set"]["state"] == "stopped")


@pytest.mark.parametrize(
    ("headers", "more"),
    [({"x-kvsup-kv-cache-type": "q8_0:q5_1"}, {}), ({}, {"kv_cache_type": "q8_0:q5_1"})],
)
def test_pair_of_cache_types_is_chosen_by_header_or_body(
    kvsup: RunningKvsup, headers: dict[str, str], more: dict[str, str]
) -> None:
    """A process of its own, unless the model says that no other is to be had."""
    _ask(kvsup, "/v1/chat/completions", headers, **more)

    running = {entry["kv_cache_type"] for entry in kvsup.client.get("/api/ps").json()["models"]}
    body = {"model": "set:locked", "messages": HI, **more}
    locked = kvsup.client.post("/v1/chat/completions", json=body, headers=headers)
    assert "q8_0:q5_1" in running
    assert locked.status_code == 400
    assert "allow_request_kv" in locked.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "more"),
    [
        ({"x-kvsup-options": "x"}, {}),
        ({"x-kvsup-keep-alive": "soon"}, {}),
        ({"x-kvsup-kv-cache-type": "q9_9"}, {}),
        ({}, {"options": {"seed": "x"}}),
        ({}, {"options": []}),
        ({}, {"keep_alive": True}),
    ],
)
@pytest.mark.parametrize("path", BODIES)
def test_wish_that_is_wrong_is_400_in_the_shape_of_its_api(
    kvsup: RunningKvsup, path: str, headers: dict[str, str], more: dict[str, Any]
) -> None:
    """Not Ollama's 500."""
    body = {"model": "plain", **BODIES[path], **more}

    answer = kvsup.client.post(path, json=body, headers=headers)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_stream_is_the_bytes_of_llama_server_with_and_without_settings(
    kvsup: RunningKvsup, path: str
) -> None:
    """But for identifiers, times and timings."""
    body = {"model": "plain", **BODIES[path], "stream": True, "seed": 1, "max_tokens": 4}

    passed = kvsup.client.post(path, json=body)
    set_by_kvsup = kvsup.client.post(path, json={**body, "options": {"top_k": 40}})
    direct = kvsup.client.post(f"/upstream/plain{path}", json=body)

    assert VARYING.sub(b"", passed.content) == VARYING.sub(b"", direct.content)
    assert VARYING.sub(b"", set_by_kvsup.content) == VARYING.sub(b"", direct.content)


@pytest.mark.parametrize("path", BODIES)
def test_stream_has_the_headers_that_proxies_need(kvsup: RunningKvsup, path: str) -> None:
    """Without them they hold events back."""
    answer = _ask(kvsup, path, model="plain", stream=True)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"


def _assert_shape(path: str, answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    error, kind = answer.json()["error"], {400: "invalid_request_error", 404: "not_found_error"}
    assert error["type"] == kind[status]
    assert error["message"]
    if path.startswith("/v1/messages"):
        assert set(answer.json()) == {"type", "error", "request_id"}
        assert answer.json()["type"] == "error"
        assert re.fullmatch("req_[0-9a-f]{24}", answer.json()["request_id"])
    else:
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "content", [b"", b"  ", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"model":', b"[" * 9000]
)
@pytest.mark.parametrize("path", ROUTES)
def test_body_that_is_no_object_is_400_on_every_route(
    kvsup: RunningKvsup, path: str, content: bytes
) -> None:
    """In the shape of its API."""
    _assert_shape(path, kvsup.client.post(path, content=content), 400)


@pytest.mark.parametrize("model", [None, "", 1, [], {}, True])
@pytest.mark.parametrize("path", ROUTES)
def test_model_that_is_missing_or_no_text_is_400_on_every_route(
    kvsup: RunningKvsup, path: str, model: object
) -> None:
    """There are several, so none is meant."""
    body = {**ROUTES[path], **({} if model is None else {"model": model})}

    _assert_shape(path, kvsup.client.post(path, json=body), 400)


@pytest.mark.parametrize("path", ROUTES)
def test_model_that_is_unknown_is_404_on_every_route(kvsup: RunningKvsup, path: str) -> None:
    """With the name as it was sent."""
    answer = kvsup.client.post(path, json={"model": "Gone:1", **ROUTES[path]})

    _assert_shape(path, answer, 404)
    assert answer.json()["error"]["message"] == "model 'Gone:1' not found"


@pytest.mark.parametrize("path", BODIES)
def test_input_of_a_wrong_type_is_400_on_every_route(kvsup: RunningKvsup, path: str) -> None:
    """What is to be answered must be there and be of its kind."""
    (member,) = {"messages", "prompt", "input"} & set(BODIES[path])

    for value in (1, True, [1.5]):
        body = {"model": "plain", **BODIES[path], member: value}
        _assert_shape(path, kvsup.client.post(path, content=json.dumps(body)), 400)


def test_openai_client_raises_its_classes(kvsup: RunningKvsup) -> None:
    """Those that programs catch."""
    with openai.OpenAI(base_url=f"{kvsup.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="gone", input="Hi")
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="plain", prompt="Hi", extra_body={"keep_alive": "soon"})


@pytest.mark.parametrize(
    ("path", "beginning"),
    [
        ("/v1/chat/completions", "data: {"),
        ("/v1/completions", "data: {"),
        ("/v1/messages", "event: error\ndata: {"),
        ("/completion", "data: {"),
    ],
)
def test_stream_that_breaks_ends_in_an_error_event_and_not_as_if_whole(
    start_kvsup: StartKvsup, tmp_path: Path, tiny: TinyModels, path: str, beginning: str
) -> None:
    """In the shape of its API, so that its SDK raises."""
    native = 'data: {"content":"Hello","tokens":[7],"tokens_predicted":1,"stop":false}\n\n'
    said = ["send", native] if path == "/completion" else ["token", "Hello"]
    script = write_script(tmp_path / "s.json", answers=[[["head"], said]])
    model = f'model = "{tiny.plain()}"\nllama_server = "{STANDIN}"\n{script}\n'
    kvsup = start_kvsup({"plain": model})
    body = {"model": "plain", **BODIES.get(path, {"prompt": "Hi"}), "stream": True}

    answer = kvsup.client.post(path, json=body)

    assert answer.status_code == 200
    *_, last = answer.text.rstrip("\n").split("\n\n")
    assert last.startswith(beginning)
    assert json.loads(last[last.index("{") :])["error"]["message"]
    assert "[DONE]" not in answer.text
