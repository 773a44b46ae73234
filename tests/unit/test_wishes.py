"""What requests to the APIs beside Ollama's want of kvsup, in their bodies and headers."""

import json
import math
import tracemalloc
from typing import Any

import pytest

from kvsup.api.wishes import KEEP_ALIVE, KV_CACHE_TYPE, OPTIONS, Wishes, read_wishes
from kvsup.errors import RequestError
from kvsup.fitting import Asked

FORM = "multipart/form-data; boundary=XX"


def _read(body: dict[str, Any], **headers: str) -> Wishes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_wishes(json.dumps(body).encode(), named)


def _form(*parts: tuple[str, str]) -> bytes:
    """Return a form with a part for each pair of disposition and content."""
    texts = [
        f"--XX\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n"
        for disposition, content in parts
    ]
    return ("".join(texts) + "--XX--\r\n").encode()


def test_request_without_wishes_has_none() -> None:
    """Only the model is read."""
    assert _read({"model": "m", "temperature": 1}) == Wishes("m", Asked(), {}, None)
    assert _read({}).model is None
    assert _read({"model": None, "options": None, "keep_alive": None}).keep_alive_s is None


@pytest.mark.parametrize("place", ["body", "header"])
def test_options_are_read_in_their_types_and_those_of_the_load_apart(place: str) -> None:
    """By Ollama's names; unknown ones are nothing."""
    options = {"num_predict": 3, "temperature": 1, "num_ctx": 64.0, "mirostat": 1, "seed": None}

    if place == "body":
        wishes = _read({"options": options})
    else:
        wishes = read_wishes(b"{}", {OPTIONS: json.dumps(options)})

    assert wishes.options == {"num_predict": 3, "temperature": 1.0, "num_ctx": 64}
    assert wishes.asked == Asked(num_ctx=64)


def test_options_of_the_body_overrule_those_of_the_header_one_by_one() -> None:
    """A header is set once, for all requests of a client."""
    header = {OPTIONS: '{"seed":1,"top_k":2}'}

    wishes = read_wishes(b'{"options":{"seed":3}}', header)

    assert wishes.options == {"seed": 3, "top_k": 2}


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        ({"kv_cache_type": "q8_0:q4_0"}, {}, "q8_0:q4_0"),
        ({"options": {"kv_cache_type": "q8_0"}}, {}, "q8_0"),
        ({}, {KV_CACHE_TYPE: "f16:q8_0"}, "f16:q8_0"),
        ({}, {OPTIONS: '{"kv_cache_type":"q5_1"}'}, "q5_1"),
        ({}, {OPTIONS: '{"kv_cache_type":"q5_1"}', KV_CACHE_TYPE: "f16"}, "f16"),
        ({"options": {"kv_cache_type": "q8_0"}}, {KV_CACHE_TYPE: "f16"}, "q8_0"),
        ({"kv_cache_type": "bf16", "options": {"kv_cache_type": "q8_0"}}, {}, "bf16"),
    ],
)
def test_pair_of_cache_types_is_read_from_each_place(
    body: dict[str, Any], headers: dict[str, str], expected: str
) -> None:
    """The most particular place wins."""
    wishes = read_wishes(json.dumps(body).encode(), headers)

    assert wishes.asked == Asked(kv_cache_type=expected)


@pytest.mark.parametrize(
    ("keep_alive", "expected_s"),
    [("5m", 300.0), (0, 0.0), ("0", 0.0), ("1h30m", 5400.0), (2.5, 2.5), (-1, math.inf)],
)
def test_keep_alive_of_the_body_is_a_duration(keep_alive: object, expected_s: float) -> None:
    """A negative one is for ever."""
    assert _read({"keep_alive": keep_alive}).keep_alive_s == expected_s


@pytest.mark.parametrize(
    ("text", "expected_s"), [("5m", 300.0), ("0", 0.0), ("-1", math.inf), ("120", 120.0)]
)
def test_keep_alive_of_the_header_is_a_duration_or_seconds(text: str, expected_s: float) -> None:
    """A header has no numbers, so digits are seconds."""
    assert read_wishes(b"{}", {KEEP_ALIVE: text}).keep_alive_s == expected_s


def test_keep_alive_of_the_body_overrules_the_header() -> None:
    """Also where it is nought."""
    assert read_wishes(b'{"keep_alive":0}', {KEEP_ALIVE: "5m"}).keep_alive_s == 0


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"model":"\xff"}', b'{"model":1}',
        b'{"options":[]}', b'{"options":{"seed":"x"}}', b'{"options":{"stop":"x"}}',
        b'{"options":{"num_ctx":"x"}}', b'{"keep_alive":true}', b'{"keep_alive":"soon"}',
        b'{"keep_alive":[]}', b'{"kv_cache_type":1}', b'{"options":{"kv_cache_type":1}}',
        b'{"options":{"temperature":NaN}}', b'{"x":' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_body_that_is_wrong_is_a_client_error(body: bytes) -> None:
    """And nothing else: no other exception leaves, and not the 500 of Ollama's own API."""
    with pytest.raises(RequestError) as caught:
        read_wishes(body, {})

    assert type(caught.value) is RequestError


@pytest.mark.parametrize(
    "headers",
    [
        {OPTIONS: ""},
        {OPTIONS: "x"},
        {OPTIONS: "[]"},
        {OPTIONS: '{"seed":"x"}'},
        {OPTIONS: "[" * 100_000},
        {OPTIONS: '{"x":"\xff"}', KEEP_ALIVE: "soon"},
        {KEEP_ALIVE: "soon"},
    ],
)
def test_header_that_is_wrong_is_a_client_error(headers: dict[str, str]) -> None:
    """Never dropped in silence."""
    with pytest.raises(RequestError):
        read_wishes(b"{}", headers)


def test_model_of_a_form_is_its_field() -> None:
    """Wherever it stands, with blanks around it."""
    body = _form(('name="file"; filename="a.wav"', "RIFF"), ('name="model"', " ear \r\n"))

    assert read_wishes(body, {"content-type": FORM}).model == "ear"


def test_model_of_a_large_form_is_read_without_a_copy_of_it() -> None:
    """Its sound has tens of MiB, and no other stream moves meanwhile."""
    sound = ('name="file"; filename="a.wav"', "\0" * (8 << 20))
    body = _form(sound, ('name="model"', "ear"))

    tracemalloc.start()
    try:
        wishes = read_wishes(body, {"content-type": FORM})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert wishes.model == "ear"
    assert peak_bytes < 1 << 20


def test_model_of_a_form_that_is_no_text_is_a_client_error() -> None:
    """As in JSON."""
    body = _form(('name="model"', "ear")).replace(b"ear", b"\xff")

    with pytest.raises(RequestError, match="invalid request"):
        read_wishes(body, {"content-type": FORM})


def test_wishes_beside_a_form_are_in_headers() -> None:
    """A form has no members."""
    headers = {"content-type": FORM, KEEP_ALIVE: "1m", KV_CACHE_TYPE: "f16"}

    wishes = read_wishes(_form(('name="model"', "ear")), headers)

    assert (wishes.keep_alive_s, wishes.asked.kv_cache_type) == (60, "f16")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, b""),
        (FORM, b"no form at all"),
        (FORM, b"--XX\r\nContent-Disposition: form-data; name=model"),
        (FORM, _form(('name="other"', "x"))),
        (FORM, _form(('filename="model"', "x"))),
        (FORM, _form(('name="model"; filename="model"', "x"))),
        (FORM, _form(('name="file"; filename="; name=model"', "x"))),
        ("multipart/form-data", _form(('name="model"', "x"))),
        ("multipart/form-data; boundary=\xe9", b"--\xff"),
    ],
)
def test_form_without_a_model_has_none(content_type: str, body: bytes) -> None:
    """Whatever was sent, it is told that the model is missing."""
    assert not read_wishes(body, {"content-type": content_type}).model
