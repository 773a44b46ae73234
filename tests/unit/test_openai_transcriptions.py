"""Forms that ask for a transcription as plain text, and that text."""

import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.errors import RequestError
from kvsup.openai.transcriptions import TextAnswer, asked_as_json

SOUND = b"RIFF\r\n\r\nresponse_format\r\n--other\r\ntext"
"""Bytes that could be taken for the form's own."""


def _form(**fields: str) -> tuple[bytes, str]:
    """Return a body and its content type, as httpx and so OpenAI's package makes them."""
    files = {"file": ("sound.wav", SOUND, "audio/wav")}
    request = httpx.Request("POST", "http://x", data={"model": "m", **fields}, files=files)
    return request.read(), request.headers["content-type"]


def test_form_that_asks_for_text_goes_on_asking_for_json() -> None:
    """All else of it stays, byte by byte."""
    form, content_type = _form(response_format="text", language="de")

    sent = asked_as_json(form, content_type)

    field = b'name="response_format"\r\n\r\n'
    assert form.count(field + b"text\r\n") == 1
    assert sent == form.replace(field + b"text\r\n", field + b"json\r\n")


@pytest.mark.parametrize("fields", [{}, {"response_format": "json"}])
def test_form_that_asks_for_no_text_stays(fields: dict[str, str]) -> None:
    """The field's name within the sound is not the field."""
    assert asked_as_json(*_form(**fields)) is None


def test_form_whose_boundary_is_quoted_is_read() -> None:
    """A boundary with such characters must be quoted in the header."""
    field = b'Content-Disposition: form-data; name="response_format"'
    form = b"--a:b\r\n" + field + b"\r\n\r\ntext\r\n--a:b--\r\n"

    sent = asked_as_json(form, 'multipart/form-data; charset=utf-8; boundary="a:b"')

    assert sent == form.replace(b"text", b"json")


def test_header_of_a_field_may_be_written_otherwise() -> None:
    """Case does not count, nor which headers stand around it, nor what precedes the first part."""
    form = (
        b"preamble\r\n--b\r\nContent-Type: text/plain\r\n"
        b"content-disposition: FORM-DATA; name=response_format\r\n\r\ntext\r\n--b--\r\n"
    )

    sent = asked_as_json(form, "multipart/form-data; boundary=b")

    assert sent == form.replace(b"\ntext\r", b"\njson\r")


def test_name_of_the_file_may_hold_any_letters() -> None:
    """Clients send it as raw UTF-8."""
    form, content_type = _form(response_format="text")
    named = form.replace(b"sound.wav", "gr\u00f6\u00dfe.wav".encode())

    sent = asked_as_json(named, content_type)

    assert sent is not None
    assert "gr\u00f6\u00dfe.wav".encode() in sent
    assert b"\r\n\r\njson\r\n" in sent


@pytest.mark.parametrize("wanted", ["srt", "vtt", "verbose_json", "diarized_json", ""])
def test_other_format_is_refused_by_name(wanted: str) -> None:
    """The model says a text; it tells no times of words."""
    form, content_type = _form(response_format=wanted)

    with pytest.raises(RequestError, match=f"'response_format': '{wanted}'.*'json' and 'text'"):
        asked_as_json(form, content_type)


def test_text_in_pieces_is_refused() -> None:
    """A stream is of events, which are JSON."""
    form, content_type = _form(response_format="text", stream="true")

    with pytest.raises(RequestError, match="'response_format' must be 'json'"):
        asked_as_json(form, content_type)


def test_text_that_is_explicitly_whole_is_given() -> None:
    """``stream`` may be there and false."""
    assert asked_as_json(*_form(response_format="text", stream="false")) is not None


def test_file_by_the_name_of_the_field_stays() -> None:
    """llama-server takes what has a file's name for a file, and so answers JSON."""
    field = b'Content-Disposition: form-data; name="response_format"; filename="a.txt"'
    form = b"--b\r\n" + field + b"\r\n\r\ntext\r\n--b--\r\n"

    assert asked_as_json(form, "multipart/form-data; boundary=b") is None


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_form_without_a_boundary_stays(content_type: str) -> None:
    """llama-server says what is wrong with it."""
    form, _ = _form(response_format="text")

    assert asked_as_json(form, content_type) is None


@given(st.binary(max_size=60), st.text(max_size=20))
def test_no_form_makes_it_fail(data: bytes, boundary: str) -> None:
    """Whatever is no form is left to llama-server."""
    form = b"--b\r\n" + data + b"response_format\r\n--b\r\n" + data

    assert asked_as_json(form, f"multipart/form-data; boundary={boundary}") is None
    assert asked_as_json(form, "multipart/form-data; boundary=b") is None


@pytest.mark.parametrize("n_bytes", [1, 1000])
def test_answer_becomes_its_text(n_bytes: int) -> None:
    """In whatever pieces it comes."""
    text = 'a "quoted" gr\u00f6\u00dfe\n'
    data = json.dumps({"type": "transcript.text.done", "text": text, "usage": {}}).encode()
    answer = TextAnswer()

    fed = [answer.feed(data[at : at + n_bytes]) for at in range(0, len(data), n_bytes)]

    assert set(fed) == {b""}
    assert answer.finish() == text.encode()


@pytest.mark.parametrize("data", [b"not JSON", b'{"words": 1}', b""])
def test_answer_without_a_text_passes(data: bytes) -> None:
    """What a later build answers is not lost."""
    answer = TextAnswer()
    answer.feed(data)

    assert answer.finish() == data
