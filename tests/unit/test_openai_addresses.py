"""Media that a request names by an address."""

import json

import msgspec
import pytest

from kvsup.errors import RequestError
from kvsup.openai.addresses import Addressed, names_an_address

URL = "http://127.0.0.1/secret"
DATA = "data:image/png;base64,AAAA"


def _content(*parts: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": list(parts)}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        _content({"type": "image_url", "image_url": {"url": URL}}),
        _content({"type": "image_url", "image_url": " HTTPS://x"}),
        _content(
            {"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {"data": URL}}
        ),
        _content({"type": "image", "source": {"type": "url", "url": URL}}),
        _content({"type": "tool_result", "content": [{"type": "image", "source": {"url": URL}}]}),
        json.dumps({"input": [{"content": [{"type": "input_image", "image_url": URL}]}]}).encode(),
        b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"\\u0068ttp://x"}}]}]}',
    ],
)
def test_medium_by_address_is_found(body: bytes) -> None:
    """In whichever API's form."""
    assert names_an_address(body)


@pytest.mark.parametrize(
    "body",
    [
        _content({"type": "image_url", "image_url": {"url": DATA}}),
        _content({"type": "text", "text": URL}),
        json.dumps({"messages": [{"role": "user", "content": URL}]}).encode(),
        json.dumps({"tools": [{"type": "image", "url": URL}], "messages": []}).encode(),
        json.dumps({"input": URL}).encode(),
        b"{}",
    ],
)
def test_text_that_is_an_address_is_text(body: bytes) -> None:
    """People write of pages; tools describe them."""
    assert not names_an_address(body)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64,QQ", "detail": "low"},
            },
        ),
        (
            {"type": "image_url", "image_url": f" {URL}"},
            {"type": "image_url", "image_url": "data:image/png;base64,QQ"},
        ),
        (
            {"type": "input_image", "image_url": URL},
            {"type": "input_image", "image_url": "data:image/png;base64,QQ"},
        ),
        (
            {"type": "image", "source": {"type": "url", "url": URL}},
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": "QQ"},
            },
        ),
    ],
)
def test_image_takes_the_place_of_its_address(part: object, expected: object) -> None:
    """In each API's form, twice if it is named twice; everything else stays."""
    result = {"type": "tool_result", "content": [part]}
    text = {"type": "text", "text": URL}

    addressed = Addressed(_content(text, part, result))

    assert addressed.addresses == [URL]
    assert addressed.with_images({URL: ("image/png", "QQ")}) == msgspec.json.encode(
        json.loads(_content(text, expected, {**result, "content": [expected]}))
    )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": URL}},
        {"type": "file", "file": {"file_data": URL}},
        {"type": "document", "source": {"type": "url", "url": URL}},
        {"type": "image_url", "image_url": {"url": DATA, "other": URL}},
        {"type": "image", "source": {"type": "base64", "data": URL}},
    ],
)
def test_medium_that_is_no_image_stays_refused(part: object) -> None:
    """Nothing of it goes on to llama-server, which would fetch it."""
    with pytest.raises(RequestError, match="only images may be named by a URL"):
        Addressed(_content({"type": "image_url", "image_url": URL}, part))
