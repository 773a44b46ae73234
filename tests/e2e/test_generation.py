"""``/api/chat`` and ``/api/generate`` field by field, on models whose answers are known."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartKvsup
from tests.running import RunningKvsup, eventually
from tests.standin.script import STANDIN, write_script
from tests.tiny import ANSWER, ANSWER_TOKENS, TinyModels

PIECES = ["Tiny", " models", " say", " what", " they", " were", " told", "."]

METRICS = [
    "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count",
    "eval_duration",
]  # fmt: skip

PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
N_PROMPT_TOKENS = 21  # one a byte, but for the three tags
HI = [{"role": "user", "content": "Hi"}]
CHAT: dict[str, Any] = {"model": "plain", "messages": HI}
GENERATE: dict[str, Any] = {"model": "plain", "prompt": "Hi"}
BODIES = {"/api/chat": CHAT, "/api/generate": GENERATE}

SETTINGS = "num_ctx = 512\nthreads = 1\n"
REPORTED = 'data: {"error":{"code":500,"message":"it broke","type":"x"}}\n\n'


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    system = 'system = "Be brief."\n'
    models = {
        "plain": f'model = "{tiny.plain()}"\n{SETTINGS}',
        "brief": f'model = "{tiny.plain()}"\n{SETTINGS}{system}',
        "fill_in": f'model = "{tiny.fill_in()}"\n{SETTINGS}',
        "embedder": f'model = "{tiny.embedding()}"\nthreads = 1\n',
    }
    folder = tmp_path_factory.mktemp("generation") / "kvsup"
    host = "max_loaded_models = 4\n"
    with RunningKvsup(folder, models=models, llama_server=any_build, host=host) as running:
        yield running
    assert running.children() == []


def _lines(kvsup: RunningKvsup, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = kvsup.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def _whole(kvsup: RunningKvsup, path: str, **body: Any) -> dict[str, Any]:
    answer = kvsup.client.post(path, json={**body, "stream": False})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    value: dict[str, Any] = answer.json()
    return value


def _refused(kvsup: RunningKvsup, path: str, **body: Any) -> tuple[int, str]:
    answer = kvsup.client.post(path, json=body)
    assert set(answer.json()) == {"error"}
    return answer.status_code, answer.json()["error"]


def _rendered(kvsup: RunningKvsup, path: str, **body: Any) -> str:
    """Return the prompt that a request makes."""
    answer = kvsup.client.post(path, json={**body, "_debug_render_only": True})
    assert answer.status_code == 200, answer.text
    shown: str = answer.json()["_debug_info"]["rendered_template"]
    return shown


def test_chat_stream_has_a_line_for_each_piece_and_one_end(kvsup: RunningKvsup) -> None:
    """Every line has its own time; the metrics stand on the last one only."""
    *lines, last = _lines(kvsup, "/api/chat", **CHAT)

    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": piece} for piece in PIECES
    ]
    assert {tuple(line) for line in lines} == {("model", "created_at", "message", "done")}
    assert list(last) == ["model", "created_at", "message", "done", "done_reason", *METRICS]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert last["eval_count"] == ANSWER_TOKENS


def test_generate_stream_has_a_line_for_each_piece_and_the_context_at_its_end(
    kvsup: RunningKvsup,
) -> None:
    """``response`` in place of the message, otherwise as a chat."""
    *lines, last = _lines(kvsup, "/api/generate", **GENERATE)

    assert [line["response"] for line in lines] == PIECES
    assert {tuple(line) for line in lines} == {("model", "created_at", "response", "done")}
    assert list(last) == [
        "model", "created_at", "response", "done", "done_reason", "context", *METRICS,
    ]  # fmt: skip
    assert (last["response"], last["done"], last["done_reason"]) == ("", True, "stop")


@pytest.mark.parametrize("path", BODIES)
def test_whole_answer_is_the_last_object_with_all_text(kvsup: RunningKvsup, path: str) -> None:
    """The same fields in the same order as the last line of a stream."""
    *_, last = _lines(kvsup, path, **BODIES[path])

    whole = _whole(kvsup, path, **BODIES[path])

    assert list(whole) == list(last)
    assert (whole.get("response") or whole["message"]["content"]) == ANSWER
    assert whole.get("context") == last.get("context")
    assert whole["prompt_eval_count"] == last["prompt_eval_count"] == N_PROMPT_TOKENS
    assert 0 < whole["eval_duration"] < whole["total_duration"]
    assert 0 < whole["load_duration"] < whole["total_duration"]


@pytest.mark.parametrize("path", BODIES)
def test_answer_that_the_limit_ends_says_length(kvsup: RunningKvsup, path: str) -> None:
    """Three tokens are three pieces."""
    *lines, last = _lines(kvsup, path, **BODIES[path], options={"num_predict": 3})

    assert len(lines) == 3
    assert (last["done_reason"], last["eval_count"]) == ("length", 3)


def test_created_at_is_utc_and_rises_from_line_to_line(kvsup: RunningKvsup) -> None:
    """RFC 3339 with Z and at most nine digits."""
    times = [line["created_at"] for line in _lines(kvsup, "/api/chat", **CHAT)]

    assert all(time.endswith("Z") and len(time) <= 30 for time in times)
    assert [datetime.fromisoformat(time[:19]) for time in times]
    assert sorted(times, key=lambda time: time.rstrip("Z").ljust(30, "0")) == times


@pytest.mark.parametrize("path", BODIES)
def test_load_and_unload_answers_have_no_metrics(kvsup: RunningKvsup, path: str) -> None:
    """Five fields, also where nothing was loaded."""
    text = {"/api/chat": "message", "/api/generate": "response"}[path]
    expected = ["model", "created_at", text, "done", "done_reason"]

    replies = [
        _whole(kvsup, path, model="plain", **more)
        for more in ({}, {"keep_alive": 0}, {"keep_alive": "0s"})
    ]

    assert [list(reply) for reply in replies] == [expected] * 3
    assert [reply["done_reason"] for reply in replies] == ["load", "unload", "unload"]


@pytest.mark.parametrize("zero", [0, 0.0, "0", "0s", "0h"])
def test_keep_alive_of_zero_in_any_form_unloads(kvsup: RunningKvsup, zero: object) -> None:
    """A number, or a duration with or without its unit."""
    _whole(kvsup, "/api/generate", model="plain")

    reply = _whole(kvsup, "/api/generate", model="plain", keep_alive=zero)

    assert reply["done_reason"] == "unload"
    eventually(lambda: kvsup.models()["plain"]["state"] == "stopped")


@pytest.mark.parametrize(
    ("keep_alive", "text"),
    [
        ("abc", 'time: invalid duration "abc"'),
        ("10", 'time: missing unit in duration "10"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        (True, "Unsupported type: 'bool'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
        ([], "Unsupported type: '[]interface {}'"),
    ],
)
@pytest.mark.parametrize("path", BODIES)
def test_keep_alive_that_is_no_duration_is_told_in_go_s_words(
    kvsup: RunningKvsup, path: str, keep_alive: object, text: str
) -> None:
    """Before the model is looked up."""
    assert _refused(kvsup, path, model="gone", keep_alive=keep_alive) == (400, text)


@pytest.mark.parametrize("path", BODIES)
def test_top_logprobs_out_of_range_is_refused_before_the_model_is_looked_up(
    kvsup: RunningKvsup, path: str
) -> None:
    """Even where no logprobs are asked for."""
    text = "top_logprobs must be between 0 and 20"

    for number in (-1, 21):
        assert _refused(kvsup, path, model="gone", top_logprobs=number) == (400, text)


@pytest.mark.parametrize(
    ("path", "more"),
    [("/api/chat", {}), ("/api/generate", {}), ("/api/generate", {"raw": True})],
)
def test_logprobs_stand_on_the_line_of_their_token(
    kvsup: RunningKvsup, path: str, more: dict[str, object]
) -> None:
    """Bytes as numbers; alternatives only where they are asked for."""
    asked = {**BODIES[path], **more, "logprobs": True, "options": {"num_predict": 2}}

    *plain, end = _lines(kvsup, path, **asked)
    *ranked, _ = _lines(kvsup, path, **asked, top_logprobs=2)
    whole = _whole(kvsup, path, **asked)

    assert [[entry["token"] for entry in line["logprobs"]] for line in plain] == [
        ["Tiny"], [" models"],
    ]  # fmt: skip
    assert list(plain[0]["logprobs"][0]) == ["token", "logprob", "bytes"]
    assert plain[0]["logprobs"][0]["bytes"] == list(b"Tiny")
    assert plain[0]["logprobs"][0]["logprob"] == pytest.approx(0, abs=1e-6)
    assert "logprobs" not in end
    alternatives = ranked[1]["logprobs"][0]["top_logprobs"]
    assert [list(entry) for entry in alternatives] == [["token", "logprob", "bytes"]] * 2
    assert alternatives[0]["token"] == " models"
    assert whole["logprobs"] == [entry for line in plain for entry in line["logprobs"]]


@pytest.mark.parametrize("path", BODIES)
def test_format_json_makes_an_object_and_a_schema_that_object(
    kvsup: RunningKvsup, path: str
) -> None:
    """Also with the grammar on a raw prompt; empty is as if absent."""
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["text", "count"],
    }

    def answered(wanted: object, **more: object) -> str:
        whole = _whole(kvsup, path, **BODIES[path], format=wanted, **more)
        text: str = whole.get("response") or whole["message"]["content"]
        return text

    assert json.loads(answered("json")) == {ANSWER: ANSWER}
    assert json.loads(answered(schema)) == {"text": ANSWER, "count": 0}
    assert answered("") == answered(None) == ANSWER
    if path == "/api/generate":
        assert json.loads(answered(schema, raw=True)) == {"text": ANSWER, "count": 0}
        assert json.loads(answered("json", raw=True)) == {ANSWER: ANSWER}


def test_rendered_prompt_of_both_routes_is_shown_without_running_it(kvsup: RunningKvsup) -> None:
    """One plain object that is not done; the model's template, or the prompt as it is if raw."""
    chat = _whole(kvsup, "/api/chat", **CHAT, _debug_render_only=True)
    generate = _whole(kvsup, "/api/generate", **GENERATE, _debug_render_only=True)

    info = {"rendered_template": PROMPT, "image_count": 0}
    assert list(chat) == ["model", "created_at", "message", "done", "_debug_info"]
    assert list(generate) == ["model", "created_at", "response", "done", "_debug_info"]
    assert chat["_debug_info"] == generate["_debug_info"] == info
    assert chat["done"] is generate["done"] is False
    assert _rendered(kvsup, "/api/generate", **GENERATE, raw=True) == "Hi"


def test_system_of_a_request_replaces_that_of_the_model(kvsup: RunningKvsup) -> None:
    """In a chat only if it comes first."""
    own, other = (f"<|im_start|>system\n{text}<|im_end|>\n" for text in ("Be brief.", "Sing."))
    sing = {"role": "system", "content": "Sing."}

    def chat(*messages: dict[str, str]) -> str:
        return _rendered(kvsup, "/api/chat", model="brief", messages=messages)

    def generate(**more: str) -> str:
        return _rendered(kvsup, "/api/generate", model="brief", prompt="Hi", **more)

    assert chat(*HI) == own + PROMPT
    assert chat(sing, *HI) == other + PROMPT
    assert chat(*HI, sing).startswith(own)
    assert generate() == own + PROMPT
    assert generate(system="Sing.") == other + PROMPT


def test_template_of_a_request_is_go_text_in_place_of_the_model_s(kvsup: RunningKvsup) -> None:
    """It sees the system text and the prompt; what is no template is a 500, as in Ollama."""
    template = "{{ if .System }}[{{ .System }}]{{ end }}{{ .Prompt }}>"

    shown = _rendered(kvsup, "/api/generate", model="brief", prompt="Hi", template=template)
    answer = _whole(kvsup, "/api/generate", **GENERATE, template=template)
    status, text = _refused(kvsup, "/api/generate", **GENERATE, template="{{ .Prompt")

    assert shown == "[Be brief.]Hi>"
    assert (answer["response"], answer["prompt_eval_count"]) == (ANSWER, 3)
    assert status == 500
    assert text.startswith("template: :1: unclosed action")


def test_suffix_is_filled_in_by_the_model_or_by_a_template(kvsup: RunningKvsup) -> None:
    """A model with the tokens for it, or a template that uses it; others are refused."""
    middle: dict[str, Any] = {"prompt": "a", "suffix": "b"}
    template = "{{ .Prompt }}-{{ .Suffix }}"

    filled = _whole(kvsup, "/api/generate", model="fill_in", **middle)
    by_template = _whole(kvsup, "/api/generate", model="plain", template=template, **middle)
    shown = _rendered(kvsup, "/api/generate", model="plain", template=template, **middle)

    assert filled["response"] == by_template["response"] == ANSWER
    assert filled["prompt_eval_count"] > 2
    assert shown == "a-b"
    refused = (400, "registry.ollama.ai/library/plain:latest does not support insert")
    assert _refused(kvsup, "/api/generate", model="plain", **middle) == refused
    assert (
        _refused(kvsup, "/api/generate", model="plain", template="{{ .Prompt }}", **middle)
        == refused
    )


def test_context_of_an_answer_goes_on_in_the_next_request(kvsup: RunningKvsup) -> None:
    """Its text stands before the new prompt; the next context holds both."""
    first = _whole(kvsup, "/api/generate", **GENERATE)

    shown = _rendered(kvsup, "/api/generate", **GENERATE, context=first["context"])
    second = _whole(kvsup, "/api/generate", **GENERATE, context=first["context"])

    assert shown == PROMPT + ANSWER + PROMPT
    assert second["response"] == ANSWER
    assert second["context"][: len(first["context"])] == first["context"]
    assert len(second["context"]) == 2 * len(first["context"])
    assert second["prompt_eval_count"] > first["prompt_eval_count"] + len(PIECES)


def test_context_is_not_for_raw_prompts(kvsup: RunningKvsup) -> None:
    """The answer has none, and a request with one is refused, as with the other two."""
    assert "context" not in _whole(kvsup, "/api/generate", **GENERATE, raw=True)
    for field in ({"context": [1]}, {"system": "x"}, {"template": "x"}):
        assert _refused(kvsup, "/api/generate", **GENERATE, raw=True, **field) == (
            400,
            "raw mode does not support template, system, or context",
        )


@pytest.mark.parametrize("token", [999_999, -1])
def test_context_with_a_token_that_is_not_in_the_vocabulary_is_400(
    kvsup: RunningKvsup, token: int
) -> None:
    """It is the client's mistake."""
    status, _ = _refused(kvsup, "/api/generate", **GENERATE, context=[token])

    assert status == 400


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/api/chat", '"Embedder" does not support chat'),
        ("/api/generate", '"Embedder" does not support generate'),
    ],
)
def test_model_that_only_embeds_is_refused_with_its_name_as_sent(
    kvsup: RunningKvsup, path: str, text: str
) -> None:
    """A capability that is missing is a 400."""
    assert _refused(kvsup, path, **{**BODIES[path], "model": "Embedder"}) == (400, text)


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ([["hang_up"]], "llama-server closed the connection mid-answer"),
        ([["send", REPORTED], ["raw", "0\r\n\r\n"]], "it broke"),
    ],
)
def test_error_after_the_first_line_is_one_last_line_without_done(
    start_kvsup: StartKvsup, tmp_path: Path, tiny: TinyModels, end: list[list[str]], text: str
) -> None:
    """200 has been said already; the stream must not look whole."""
    script = write_script(tmp_path / "s.json", answers=[[["head"], ["token", "Hello"], *end]])
    model = f'model = "{tiny.plain()}"\nllama_server = "{STANDIN}"\n{script}\n'
    kvsup = start_kvsup({"plain": model})

    *lines, last = _lines(kvsup, "/api/chat", **CHAT)

    assert [line["message"]["content"] for line in lines] == ["Hello"]
    assert not any(line["done"] for line in lines)
    assert list(last) == ["error"]
    assert last["error"].endswith(text)


def test_error_before_the_first_line_has_its_status(
    start_kvsup: StartKvsup, tmp_path: Path, tiny: TinyModels
) -> None:
    """What llama-server refuses is no stream."""
    refusal = '{"error":{"code":429,"message":"not now","type":"x"}}'
    head = f"HTTP/1.1 429 No\r\nContent-Length: {len(refusal)}\r\nConnection: close\r\n\r\n"
    script = write_script(tmp_path / "s.json", answers=[[["raw", head + refusal]]])
    model = f'model = "{tiny.plain()}"\nllama_server = "{STANDIN}"\n{script}\n'
    kvsup = start_kvsup({"plain": model})

    assert _refused(kvsup, "/api/chat", **CHAT) == (429, "not now")
