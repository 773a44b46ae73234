"""Request bodies are decoded as Ollama decodes them."""

import json

import pytest

from kvsup.errors import RequestError
from kvsup.ollama.requests import (
    decode_chat,
    decode_embed,
    decode_embeddings,
    decode_generate,
    decode_show,
)


def _body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_chat_full_body_gives_every_field() -> None:
    """All fields of the documented request arrive, typed."""
    call = {"id": "c1", "function": {"name": "f", "arguments": {"A": 1}, "index": 2}}
    body = _body(
        model="m",
        messages=[
            {"role": "USER", "content": "hi", "images": ["aGk=\n"]},
            {"role": "assistant", "tool_calls": [call], "thinking": "hm"},
            {"role": "tool", "content": "3", "tool_name": "f", "tool_call_id": "c1"},
        ],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"Type": "x"}}}],
        stream=False,
        format="json",
        options={"seed": 1, "top_k": None},
        keep_alive="1m",
        think="high",
        logprobs=True,
        top_logprobs=20,
    )

    request = decode_chat(body)

    user, assistant, tool = request.messages
    assert (user.role, user.content, user.images) == ("user", "hi", ("aGk=\n",))
    assert (assistant.content, assistant.thinking) == ("", "hm")
    assert assistant.tool_calls[0].id == "c1"
    assert assistant.tool_calls[0].function.arguments == {"A": 1}
    assert assistant.tool_calls[0].function.index == 2
    assert (tool.tool_name, tool.tool_call_id) == ("f", "c1")
    assert request.tools[0]["function"] == {"name": "f", "parameters": {"Type": "x"}}
    assert (request.stream, request.format, request.think) == (False, "json", "high")
    assert (request.options, request.keep_alive_s) == ({"seed": 1}, 60.0)
    assert (request.logprobs, request.top_logprobs) == (True, 20)


def test_chat_null_fields_count_as_absent() -> None:
    """``null`` is the same as leaving the field out, at every level that Ollama types."""
    request = decode_chat(
        b'{"model":"m","messages":[{"role":"user","content":null,"images":null},null],'
        b'"stream":null,"tools":null,"options":null,"keep_alive":null,"think":null}'
    )

    assert request.stream is True
    assert request.messages[0].content == ""
    assert request.messages[1].role == ""
    assert (request.tools, request.options, request.keep_alive_s, request.think) == (
        (),
        {},
        None,
        None,
    )


def test_chat_keys_in_other_case_count() -> None:
    """Keys match in any case, but not those inside of arguments and schemas."""
    request = decode_chat(
        b'{"Model":"m","MESSAGES":[{"Role":"user","CONTENT":"hi","Tool_Calls":'
        b'[{"Function":{"Name":"f","Arguments":{"City":"Oslo"}}}]}]}'
    )

    assert request.model == "m"
    assert request.messages[0].content == "hi"
    assert request.messages[0].tool_calls[0].function.arguments == {"City": "Oslo"}


@pytest.mark.parametrize("body", [b' {"model":"m"} trailing {', b'{"model":"x","model":"m","y":1}'])
def test_chat_first_value_counts(body: bytes) -> None:
    """Bytes after the first value and unknown keys are ignored; of a repeated key the last wins."""
    assert decode_chat(body).model == "m"


@pytest.mark.parametrize("body", [b"null", b"{}"])
def test_chat_empty_object_has_defaults(body: bytes) -> None:
    """``null`` and ``{}`` are requests without fields."""
    assert decode_chat(body).model == ""


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b" \n\t", "missing request body"),
        (b'{"model":', "unexpected EOF"),
        (b'{"model":"x', "unexpected EOF"),
        (b"{model}", "invalid character 'm'"),
        (b'{"a":NaN}', "NaN is no JSON value"),
        (b"[" * 100_000, "invalid JSON"),
        (b"[1]", "json: cannot unmarshal array into Go value"),
        (b'"x"', "json: cannot unmarshal string into Go value"),
        (b"true", "json: cannot unmarshal bool into Go value"),
        (b"7", "json: cannot unmarshal number into Go value"),
    ],
)
def test_chat_body_that_is_no_object_raises(body: bytes, text: str) -> None:
    """What is no JSON object is the client's error, with Go's words where they are known."""
    with pytest.raises(RequestError, match=text.replace("(", r"\(")):
        decode_chat(body)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"messages": [{"content": [{"type": "text"}]}]},
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of",
        ),
        (
            {"model": 1},
            "json: cannot unmarshal number into Go struct field ChatRequest.model of type string",
        ),
        (
            {"messages": [{"tool_calls": [{"function": {"arguments": "{}"}}]}]},
            "string into Go struct field ChatRequest.messages.tool_calls.function.arguments of",
        ),
        ({"stream": "false"}, "ChatRequest.stream of type bool"),
        ({"tools": {}}, "ChatRequest.tools of type slice"),
        ({"messages": ["hi"]}, "ChatRequest.messages of type map"),
        ({"options": []}, "ChatRequest.options of type map"),
        ({"keep_alive": "1d"}, 'time: unknown unit "d" in duration "1d"'),
        ({"keep_alive": True}, "Unsupported type: 'bool'"),
        (
            {"think": "much"},
            'invalid think value: "much" (must be "high", "medium", "low", "max", true, or false)',
        ),
        (
            {"think": 1},
            'think must be a boolean or string ("high", "medium", "low", "max", true, or false)',
        ),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
        (
            {"messages": [{"images": ["data:image/png;base64,aGk="]}]},
            "illegal base64 data at input byte 4",
        ),
        ({"messages": [{"images": ["aGk"]}]}, "illegal base64 data at input byte 3"),
    ],
)
def test_chat_wrong_field_raises_with_ollamas_text(fields: dict[str, object], text: str) -> None:
    """A wrong type or value is the client's error."""
    with pytest.raises(RequestError) as caught:
        decode_chat(_body(**fields))

    assert text in str(caught.value)


def test_chat_lone_surrogate_is_replaced() -> None:
    """Half a UTF-16 pair becomes U+FFFD, in texts, lists and keys; whole pairs stay."""
    request = decode_chat(rb'{"model":"\ud800x","format":{"\udc00":["\ud83d\ude00"]}}')

    assert request.model == "\ufffdx"
    assert request.format == {"\ufffd": ["\U0001f600"]}


@pytest.mark.parametrize(
    ("fields", "load_only", "unload"),
    [
        ({"messages": []}, True, False),
        ({"keep_alive": 0.0}, True, True),
        ({"keep_alive": "0"}, True, True),
        ({"messages": [{"role": "user"}], "keep_alive": 0}, False, False),
    ],
)
def test_chat_without_messages_loads_or_unloads(
    fields: dict[str, object], load_only: object, unload: object
) -> None:
    """No messages: load; and keep_alive 0: unload."""
    request = decode_chat(_body(**fields))

    assert (request.is_load_only, request.is_unload) == (load_only, unload)


def test_generate_full_body_gives_every_field() -> None:
    """All fields of the documented request arrive; those of other programs are ignored."""
    request = decode_generate(
        _body(
            model="m", prompt="p", suffix="s", system="y", template="t", context=[1, 2], raw=True,
            images=["aGk="], shift=False, truncate=False, width=5, think=True,
        )
    )  # fmt: skip

    assert (request.prompt, request.suffix, request.system) == ("p", "s", "y")
    assert (request.template, request.context, request.raw) == ("t", (1, 2), True)
    assert (request.images, request.shift, request.truncate) == (("aGk=",), False, False)
    assert request.think is True
    assert not request.is_load_only


def test_generate_without_prompt_loads_or_unloads() -> None:
    """An empty prompt loads; with keep_alive 0 it unloads."""
    assert decode_generate(_body(prompt="")).is_load_only
    assert decode_generate(_body(keep_alive=0)).is_unload
    assert not decode_generate(_body(prompt="p", keep_alive=0)).is_unload


def test_generate_bad_image_raises() -> None:
    """Images are checked as Go's decoder does."""
    with pytest.raises(RequestError, match="illegal base64 data at input byte 2"):
        decode_generate(_body(images=["aG!="]))


@pytest.mark.parametrize(
    ("value", "texts"),
    [(None, ()), ("", ()), ([], ()), ("a", ("a",)), (["a", ""], ("a", "")), ([""], ("",))],
)
def test_embed_input_gives_texts(value: object, texts: tuple[str, ...]) -> None:
    """Nothing to embed only loads the model; a list with an empty text does embed."""
    assert decode_embed(_body(model="m", input=value)).texts() == texts


@pytest.mark.parametrize("value", [1, ["a", 1], ["a", None], {}, [["a"]]])
def test_embed_wrong_input_raises_only_when_read(value: object) -> None:
    """The input's type is checked after the model's name, so not while decoding."""
    request = decode_embed(_body(model="m", input=value))

    with pytest.raises(RequestError, match="invalid input type"):
        request.texts()


def test_embeddings_prompt_arrives() -> None:
    """The older route has one prompt."""
    assert decode_embeddings(_body(prompt="a", keep_alive=-1)).prompt == "a"
    assert decode_embeddings(b"{}").is_load_only


@pytest.mark.parametrize("fields", [{"model": "m"}, {"name": "m"}, {"model": "", "name": "m"}])
def test_show_model_or_name_counts(fields: dict[str, object]) -> None:
    """Old clients say ``name``."""
    assert decode_show(_body(**fields, verbose=True)).model == "m"
