"""Requests to llama-server, field by field."""

import base64
import json
from typing import Any

import pytest

from kvsup.ollama.requests import InvalidFormat, decode_chat, decode_generate
from kvsup.ollama.to_llama import (
    LlamaCall,
    Turn,
    chat_body,
    completion_body,
    generate_body,
    with_media,
)

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
HISTORY: tuple[Turn, ...] = (
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
)
SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}


def _chat(*, system: str | None = None, **fields: object) -> LlamaCall:
    fields = {"messages": [{"role": "user", "content": "hi"}], **fields}
    request = decode_chat(json.dumps(fields).encode())
    return chat_body(request, model="m", system=system, options={"top_k": 7}, num_ctx=100)


def _generate(*, system: str | None = None, **fields: object) -> LlamaCall:
    request = decode_generate(json.dumps({"prompt": "hi", **fields}).encode())
    return generate_body(request, model="m", system=system, options={"top_k": 7}, num_ctx=100)


def _turns(call: LlamaCall) -> list[dict[str, Any]]:
    turns = call.body["messages"]
    assert isinstance(turns, list)
    return turns


def test_chat_plain_request_streams_with_progress_and_defaults() -> None:
    """Every call streams, reports progress and sends Ollama's defaults under both layers."""
    call = _chat(stream=False, options={"seed": 3})

    assert call.path == "/v1/chat/completions"
    assert call.body["model"] == "m"
    assert call.body["messages"] == [{"role": "user", "content": "hi"}]
    assert (call.body["stream"], call.body["return_progress"]) == (True, True)
    assert call.body["cache_prompt"] is True
    assert (call.body["top_k"], call.body["seed"], call.body["temperature"]) == (7, 3, 0.8)
    absent = {"tools", "response_format", "chat_template_kwargs", "logprobs", "top_logprobs"}
    assert not absent & call.body.keys()


@pytest.mark.parametrize(
    ("first", "roles"),
    [("user", ["system", "user"]), ("system", ["system"]), ("SYSTEM", ["system"])],
)
def test_chat_models_system_stands_in_front_of_others_only(first: str, roles: list[str]) -> None:
    """The model's system text gives way to one of the request's own."""
    call = _chat(system="be kind", messages=[{"role": first, "content": "x"}])

    messages = _turns(call)
    assert [message["role"] for message in messages] == roles
    assert messages[0]["content"] == ("be kind" if len(roles) == 2 else "x")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["user"], ["system", *HISTORY, "user"]),
        (["system", "user"], [*HISTORY, "system", "user"]),
        (["user", "system"], ["system", *HISTORY, "user", "system"]),
    ],
)
def test_chat_messages_of_the_model_stand_before_the_request_s_own(
    asked: list[str], expected: list[str | Turn]
) -> None:
    """In Ollama's order: a system text of the request stays where it is, behind them."""
    fields = {"messages": [{"role": role, "content": "x"} for role in asked]}
    request = decode_chat(json.dumps(fields).encode())

    call = chat_body(request, model="m", system="x", options={}, num_ctx=9, history=HISTORY)

    turns = [{"role": one, "content": "x"} if isinstance(one, str) else one for one in expected]
    assert call.body["messages"] == turns


@pytest.mark.parametrize(
    ("context", "expected"), [(None, HISTORY), ([], ()), ([5], ())], ids=["null", "empty", "some"]
)
def test_generate_goes_on_from_a_context_without_the_models_messages(
    context: list[int] | None, expected: tuple[Turn, ...]
) -> None:
    """They are in it; also one without a token is one, as for Ollama."""
    request = decode_generate(json.dumps({"prompt": "hi", "context": context}).encode())

    call = generate_body(request, model="m", system="S", options={}, num_ctx=9, history=HISTORY)

    system, prompt = {"role": "system", "content": "S"}, {"role": "user", "content": "hi"}
    assert call.body["messages"] == [system, *expected, prompt]


def test_chat_tool_turns_are_in_openais_shape() -> None:
    """Arguments become JSON text, the tool's name goes into ``name``, past thinking is left out."""
    calls = [
        {"id": "c", "function": {"name": "f", "arguments": {"city": "Ö"}}},
        {"function": {"name": "g", "index": 1}},
    ]
    call = _chat(
        messages=[
            {"role": "assistant", "thinking": "hm", "tool_calls": calls},
            {"role": "tool", "content": "3", "tool_name": "f", "tool_call_id": "c"},
        ],
        tools=[{"function": {"name": "f"}}],
    )

    assert call.body["messages"] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "c",
                    "index": 0,
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"city":"Ö"}'},
                },
                {"index": 1, "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "3", "name": "f", "tool_call_id": "c"},
    ]
    assert call.body["tools"] == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"BM", "image/bmp"),
        (b"RIFF\0\0\0\0WAVEfmt ", "wav"),
        (b"ID3\4", "mp3"),
        (b"\xff\xfb\x90", "mp3"),
    ],
)
def test_chat_media_are_parts_by_their_signature(head: bytes, kind: str) -> None:
    """Images become data URLs, sounds ``input_audio``; the text stands in front."""
    encoded = base64.b64encode(head + bytes(40)).decode()
    message = {"role": "user", "content": "see", "images": [encoded[:20] + "\n" + encoded[20:]]}

    turn = _turns(_chat(messages=[message]))[0]

    text, medium = turn["content"]
    assert text == {"type": "text", "text": "see"}
    if kind in {"wav", "mp3"}:
        assert medium["input_audio"] == {"data": encoded, "format": kind}
    else:
        assert medium["image_url"] == {"url": f"data:{kind};base64,{encoded}"}


@pytest.mark.parametrize(
    ("think", "kwargs"),
    [
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
    ],
)
def test_chat_think_becomes_template_arguments(think: object, kwargs: object) -> None:
    """A level is thinking with an effort; absent leaves the template its default."""
    assert _chat(think=think).body["chat_template_kwargs"] == kwargs


@pytest.mark.parametrize(
    ("value", "response_format"),
    [
        ("json", {"type": "json_object", "schema": {"type": "object"}}),
        ({}, {"type": "json_object", "schema": {"type": "object"}}),
        (
            SCHEMA,
            {"type": "json_schema", "json_schema": {"name": "schema", "schema": SCHEMA}},
        ),
        ("", None),
        (None, None),
    ],
)
def test_chat_format_becomes_response_format(value: object, response_format: object) -> None:
    """``json`` means any object; a schema goes as it is, its order kept."""
    assert _chat(format=value).body.get("response_format") == response_format


@pytest.mark.parametrize(
    ("value", "quoted"), [("xml", r'"\"xml\""'), ([1], '"[1]"'), (3, '"3"'), (True, '"true"')]
)
def test_format_of_other_kind_raises_with_ollamas_text(value: object, quoted: str) -> None:
    """The text quotes the value's JSON once more."""
    text = f'invalid format: {quoted}; expected "json" or a valid JSON Schema object'

    with pytest.raises(InvalidFormat) as chat:
        _chat(format=value)
    with pytest.raises(InvalidFormat) as generate:
        _generate(format=value)

    assert (str(chat.value), str(generate.value)) == (text, text)


@pytest.mark.parametrize(("asked", "sent"), [(0, 1), (3, 3)])
def test_logprobs_ask_for_one_alternative_at_least(asked: int, sent: int) -> None:
    """llama-server gives none without alternatives."""
    chat = _chat(logprobs=True, top_logprobs=asked).body
    raw = _generate(logprobs=True, top_logprobs=asked, raw=True).body

    assert (chat["logprobs"], chat["top_logprobs"], raw["n_probs"]) == (True, sent, sent)


def test_top_logprobs_alone_is_not_sent() -> None:
    """llama-server refuses it without ``logprobs`` (b11434); Ollama ignores it."""
    assert "top_logprobs" not in _chat(top_logprobs=3).body


def test_generate_prompt_is_a_chat_of_one_turn() -> None:
    """The request's system text replaces the model's."""
    call = _generate(system="model's", images=[PNG])
    own = _generate(system="model's")

    assert call.path == "/v1/chat/completions"
    system, user = _turns(call)
    assert system == {"role": "system", "content": "model's"}
    assert [part["type"] for part in user["content"]] == ["text", "image_url"]
    assert own.body["messages"] == [system, {"role": "user", "content": "hi"}]


def test_generate_requests_system_replaces_models() -> None:
    """Only one system text is sent."""
    request = decode_generate(b'{"prompt":"hi","system":"own"}')

    call = generate_body(request, model="m", system="model's", options={}, num_ctx=100)

    assert call.body["messages"] == [
        {"role": "system", "content": "own"},
        {"role": "user", "content": "hi"},
    ]


def test_generate_raw_goes_to_completion_as_it_is() -> None:
    """No template, no system text of the model."""
    call = _generate(system="model's", raw=True, format=SCHEMA)

    assert call.path == "/completion"
    assert call.body["prompt"] == "hi"
    assert call.body["json_schema"] == SCHEMA
    assert (call.body["stream"], call.body["return_progress"]) == (True, True)
    assert "messages" not in call.body
    assert _generate(raw=True, format="json").body["json_schema"] == {"type": "object"}
    assert "json_schema" not in _generate(raw=True).body


@pytest.mark.parametrize("raw", [True, False])
def test_generate_num_predict_zero_is_no_limit(raw: object) -> None:
    """Ollama leaves 0 out on generate, but not on chat."""
    assert "n_predict" not in _generate(raw=raw, options={"num_predict": 0}).body
    assert _chat(options={"num_predict": 0}).body["n_predict"] == 0


def test_completion_goes_on_after_the_prompt_that_is_given() -> None:
    """It replaces the request's own prompt; the options are the request's and the model's."""
    request = decode_generate(b'{"prompt": "hi", "options": {"seed": 3}}')

    call = completion_body(request, [1, 2], model="m", options={"top_k": 7}, num_ctx=100)

    assert call.path == "/completion"
    assert call.body["prompt"] == [1, 2]
    assert (call.body["seed"], call.body["top_k"]) == (3, 7)


@pytest.mark.parametrize(
    ("prompt", "text", "order"),
    [
        ("see [img-0] and [img-1]", "see <m> and <m>", "AB"),
        ("see [img-1] and [img-0]", "see <m> and <m>", "BA"),
        ("see [img] twice [img]", "see <m> twice <m>", "AB"),
        ("see <m> and [img]", "see <m> and <m>", "AB"),
        ("see [img] and [img-0]", "see <m> and <m>", "BA"),
        ("see [img-1]", "<m>see <m>", "AB"),
        ("see [img-0]", "<m>see <m>", "BA"),
        ("see", "<m><m>see", "AB"),
    ],
)
def test_image_stands_where_its_number_says_or_in_front(prompt: str, text: str, order: str) -> None:
    """Data is sent in the order of the markers; a tag without number is any other image's place."""
    images = {"A": "AAAA", "B": "BB"}

    assert with_media(prompt, ["AA\nAA", "BB"], marker="<m>") == {
        "prompt_string": text,
        "multimodal_data": [images[name] for name in order],
    }


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("[img-0] is not [img-1]", "<m> is not [img-1]"),
        ("[img-1]", "<m>[img-1]"),
        ("[img] [img]", "<m> [img]"),
        ("[img-0] [img-0]", "<m> [img-0]"),
        ("[img-00] [img-] [img-x] [img-\u0661]", "<m> [img-] [img-x] [img-\u0661]"),
        (f"[img-{'9' * 5000}]", f"<m>[img-{'9' * 5000}]"),
        (r"\1 \g<0>", r"<m>\1 \g<0>"),
        ("[img-0] <m>", "<m> "),
    ],
)
def test_tag_without_an_image_of_its_own_stays_text(prompt: str, text: str) -> None:
    """There are as many markers as images, else llama-server refuses the prompt."""
    assert with_media(prompt, ["A"], marker="<m>") == {
        "prompt_string": text,
        "multimodal_data": ["A"],
    }
